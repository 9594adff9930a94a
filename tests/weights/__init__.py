"""Load and run checkpoints of the published size with random weights: `python -m tests.weights`."""
