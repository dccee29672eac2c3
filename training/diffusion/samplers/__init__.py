"""Samplers of the reverse process: one interface, the loop that repeats its step, and one file for each method.

A new method is a module here with a `make_sampler`, named as its `SamplingMethod` in `training.config.experiment`.
"""
