"""CUDA kernels in Triton; importing the modules requires triton."""
