"""What was said, kept in a database: one row per exchange."""
