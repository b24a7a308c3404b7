"""Other people's locks, measured the same way; one that cannot run here is left out by name."""
