"""Feature extractors by name, and their weights. Distances, monitoring, evaluation and studies load them here."""
