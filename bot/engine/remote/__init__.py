"""Model servers with an OpenAI-compatible API, used as an engine."""
