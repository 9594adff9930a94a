"""Performance suites: measurements against the limits of the machine, plain torch and fixed targets."""
