"""Scoring a checkpoint: Frechet distances, likelihood, early stopping, reports. Imports training only."""
