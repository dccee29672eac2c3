"""Check that a cluster has everything that a run needs: `examine.examine`, for the command line."""
