"""Batches for training, and rows in order: from data that is staged on the node, streamed through it, or read directly."""
