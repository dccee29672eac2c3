"""The training loop, its state, its metrics, and rank 0's hooks. Knows no Ray; `training.launch` starts it.

`trainer` and the modules that it imports need torch alone.
"""
