"""Commands about data sets and stored runs."""
