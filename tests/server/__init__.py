"""Tests of the HTTP APIs over loopback."""
