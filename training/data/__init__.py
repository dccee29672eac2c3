"""Images in, training-ready shards out, batches into the loop."""
