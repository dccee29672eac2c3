"""Build the project's container image, name it, and test it from inside."""
