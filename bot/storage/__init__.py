"""Storage of conversations in SQLite or PostgreSQL: one row per exchange."""
