"""Commands that start, watch and end runs, on this machine and on a cluster."""
