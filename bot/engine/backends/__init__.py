"""One module per way to run a model; each has `open_engine(options, progress)`, and may have `preflight(options)`."""
