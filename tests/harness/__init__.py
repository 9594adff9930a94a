"""Shared test code: fakes, loopback servers, and a harness around the chat."""
