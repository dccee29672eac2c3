"""Choose the checkpoint that is reported, and find the checkpoint that a word names."""
