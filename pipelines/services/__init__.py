"""S3 and MLflow on loopback, for a laptop and for the tests."""
