"""The test suite; tests/README.md says where a test belongs."""
