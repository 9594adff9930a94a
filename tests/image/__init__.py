"""The container image, built and tested: `make image`, `make image-test`."""
