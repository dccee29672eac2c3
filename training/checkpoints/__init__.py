"""Checkpoints of a run, averages of its weights, and published checkpoints in and out.

Knows storage, config and models. The loop writes them; evaluation, the steps and the commands read them.
"""
