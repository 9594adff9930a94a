"""Compare our model with a folder of golden tensors: `python -m tests.golden DIR`."""
