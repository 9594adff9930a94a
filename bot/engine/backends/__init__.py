"""Backends, one module each: `open_engine(options, progress)`, optionally `preflight(options, taken)`."""
