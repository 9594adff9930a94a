"""Markdown as platforms take it: what one message may hold, and where a long text is cut."""
