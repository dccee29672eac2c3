"""The model of a trial, its measures, and its record."""
