"""Trained networks read from checkpoints, and the images that are drawn from them."""
