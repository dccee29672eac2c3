"""Bits per dimension of images under a model, and its estimators. `split_likelihood` serves evaluation and ablations."""
