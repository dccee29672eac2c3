"""Start the training loop: under Ray Train (`ray_train`, for the train step), or with torch alone (`torchrun`)."""
