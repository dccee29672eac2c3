"""Copies of training images among samples: nearest training images, and the share of copies with its interval."""
