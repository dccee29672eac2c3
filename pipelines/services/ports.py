"""Free ports on loopback, outside the ranges that other programs draw from."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterable

# Above Ray's worker ports (10002-19999), below the ephemeral ports (from 32768) that any outgoing connection may take.
_RANGE = range(20100, 32000)


def free_ports(count: int) -> list[int]:
    """Return `count` different ports that are free now, drawn at random so that two programs rarely draw the same.

    Raises:
        OSError: Too few are free.
    """
    with contextlib.ExitStack() as listeners:
        found: list[int] = []
        for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
            if len(found) == count:
                return found
            if (listener := _bind(port)) is not None:
                listeners.enter_context(listener)
                found.append(port)
    raise OSError(
        f"{count} free ports are needed on 127.0.0.1 between {_RANGE.start} and {_RANGE.stop}; stop some programs that listen there"
    )


def are_free(ports: Iterable[int]) -> bool:
    """Tell whether nothing listens on any of the ports."""
    with contextlib.ExitStack() as listeners:
        for port in ports:
            if (listener := _bind(port)) is None:
                return False
            listeners.enter_context(listener)
    return True


def _bind(port: int) -> socket.socket | None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose last connection is in TIME_WAIT is free
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        return None
    return listener
