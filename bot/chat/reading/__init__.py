"""Reading files that people attach: a separate process per file turns bytes into text."""
