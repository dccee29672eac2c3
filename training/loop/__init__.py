"""The training loop, its state and what it logs. Knows no Ray."""
