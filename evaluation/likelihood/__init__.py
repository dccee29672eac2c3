"""Bits per dimension of images under a model, and its estimators."""
