"""The container image, built and tried as an operator would: `make image`, `make image-test`."""
