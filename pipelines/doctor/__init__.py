"""Check that a cluster has all that a run needs."""
