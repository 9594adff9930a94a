"""Engines on Ray Serve, measured: `make ray-test`."""
