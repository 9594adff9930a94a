"""What is broken on purpose, and counted: `make reliability`."""
