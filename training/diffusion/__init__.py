"""The diffusion process of the paper: schedules, posteriors, objectives, samplers.

Knows torch and training.config; everything above may import it.
"""
