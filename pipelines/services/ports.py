"""Free ports on loopback, outside the ranges that others draw from."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Collection, Iterable

# Above Ray's worker ports (10002-19999), below the ephemeral ports (from 32768) that any outgoing connection may take.
_RANGE = range(20100, 32000)


def free_ports(count: int, *, avoid: Collection[int] = ()) -> list[int]:
    """`count` different ports on which nobody listens now, drawn at random so that two neighbours seldom meet.

    Raises:
        OSError: There are not that many.
    """
    candidates = [port for port in _RANGE if port not in avoid]
    random.SystemRandom().shuffle(candidates)
    with contextlib.ExitStack() as held:
        found: list[int] = []
        for port in candidates:
            if len(found) == count:
                return found
            if (listener := _bind(port)) is not None:
                held.enter_context(listener)
                found.append(port)
    raise OSError(f"{count} free ports are needed on 127.0.0.1 between {_RANGE.start} and {_RANGE.stop}; too many are taken")


def are_free(ports: Iterable[int]) -> bool:
    """Whether nobody listens on any of them."""
    with contextlib.ExitStack() as held:
        for port in ports:
            if (listener := _bind(port)) is None:
                return False
            held.enter_context(listener)
    return True


def _bind(port: int) -> socket.socket | None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that only waits out its last connection is free
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        return None
    return listener
