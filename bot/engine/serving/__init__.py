"""The serving loop: many requests, one model, one worker thread."""
