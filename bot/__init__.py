"""A self-hosted chat bot that serves one ChatGLM-6B to Discord, Telegram and Slack."""

__version__ = "0.1.0"
