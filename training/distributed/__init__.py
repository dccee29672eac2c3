"""Data-parallel ranks, heartbeats, signals, and Ray sessions.

Knows config and torch; only `ray_session` and `ray_logs` import Ray. `signals` needs only the standard library, and any package may
import it.
"""
