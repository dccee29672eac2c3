"""From an image source to a data set: plan, make each shard independently, publish. `prepare.prepare` is the entry for all callers."""
