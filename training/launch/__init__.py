"""Start the training loop: under Ray Train, under torchrun, or alone."""
