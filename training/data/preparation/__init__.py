"""From an image source to a data set: plan, make each shard independently, publish. Callers use `prepare.prepare_sizes`."""
