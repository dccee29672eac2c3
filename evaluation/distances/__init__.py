"""Distances between two sets of images, and reference statistics of real images. `metrics` lists the metrics by name."""
