"""Scores of checkpoints beside training, early stopping, and the nightly check."""
