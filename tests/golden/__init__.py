"""Holds a folder of published numbers against our model: `python -m tests.golden DIR`."""
