"""A loopback server per platform, as strict as the platform is."""
