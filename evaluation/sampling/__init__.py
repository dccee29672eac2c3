"""Trained networks read from checkpoints, and the images drawn from them. `draw` serves the command line, the rest evaluation."""
