"""Studies of trained models: comparison, EMA sweep, replay of early stopping, scores of image files."""
