"""Build the project's container image, name it, test it from inside, and refuse in it a pipeline of another commit."""
