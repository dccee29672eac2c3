"""Lengths of time as people write them: "90s", "30m", "24h", "2d"."""

from __future__ import annotations

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str, option: str) -> int:
    """Seconds.

    Args:
        text: Like "90s", "1h30m" or "2d".
        option: What it was given as, for the message.

    Raises:
        ValueError: It is no length of time, or none at all.
    """
    parts = re.findall(r"(\d+)([smhd])", text)
    seconds = sum(int(count) * _SECONDS[unit] for count, unit in parts)
    if "".join(count + unit for count, unit in parts) != text or seconds == 0:
        raise ValueError(f"{option} {text!r} is no length of time; it reads like 90s, 30m, 24h or 1h30m")
    return seconds
