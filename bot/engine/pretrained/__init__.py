"""Chat models of the transformers library, as the serving loop wants them."""
