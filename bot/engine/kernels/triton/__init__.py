"""Products and parts of a decoding step on CUDA; whoever imports what is in here needs triton."""
