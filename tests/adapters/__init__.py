"""The adapters with the platforms' real libraries, against servers of our own on this machine."""
