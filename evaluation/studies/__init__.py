"""Studies of trained models and of sample files. A module computes one study, and formats it as text, page and metrics."""
