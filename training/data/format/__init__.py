"""The format of a prepared data set: Parquet shards, the manifest, and orders that depend on a seed alone."""
