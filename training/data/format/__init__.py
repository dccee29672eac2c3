"""The format of a prepared data set: manifest, Parquet shards, and orders by a seed. For `training.data` and its users."""
