"""From images to Parquet shards, and from shards to the batches of the training loop."""
