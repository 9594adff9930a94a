"""Products and layers on a CPU in C, which is compiled where the bot runs; torch does the same where it cannot be."""
