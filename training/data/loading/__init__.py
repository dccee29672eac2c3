"""Batches for the training loop, from data that is staged on the node or streamed."""
