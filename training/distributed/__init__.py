"""Data-parallel ranks, heartbeats, signals, and Ray sessions.

Knows config and torch; only `ray_session` and `parallel_map` import Ray. `signals` needs the standard library alone, and every package may
use it.
"""
