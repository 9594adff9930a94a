"""Markdown for chat platforms: formats, block structure, splitting into messages."""
