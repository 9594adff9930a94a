"""What `python -m bot bench` does: measures how fast a model runs on this machine."""
