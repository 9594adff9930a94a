"""HTTP APIs: those of ChatGLM-6B's own servers, and OpenAI's chat completions."""
