"""Inspect images before their preparation, and prepared data sets: description, verification, contact sheet. For the commands."""
