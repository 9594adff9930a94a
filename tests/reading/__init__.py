"""Reading files: text of all kinds, hostile files."""
