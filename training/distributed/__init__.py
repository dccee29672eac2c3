"""Data-parallel ranks, heartbeats, signals, and the way into Ray."""
