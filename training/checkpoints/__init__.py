"""Checkpoints of a run, averages of its weights, and published checkpoints in and out."""
