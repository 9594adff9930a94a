"""`make reliability`: the figures of tests/chaos, run and written to a table."""
