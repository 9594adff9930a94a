"""Loads and asks checkpoints of the published size, made of random weights: `python -m tests.weights`."""
