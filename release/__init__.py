"""Tools for releases; not installed with the bot."""
