"""Prepare a data set: plan its order, make its shards side by side, publish it."""
