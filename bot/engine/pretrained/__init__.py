"""Chat models of the transformers library for the serving loop."""
