"""Scores of checkpoints during training, early stopping, and the nightly regression check. The train and nightly steps import it."""
