"""Continuous batching of many requests on one model, in one worker thread."""
