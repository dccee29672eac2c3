"""Feature extractors by name, and their weights."""
