"""Engines on Ray Serve: docs/SCALING.md."""
