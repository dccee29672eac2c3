"""From here to a service whose address may be known only inside the cluster."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipelines.client.port_forward import forwarded

_INSIDE = re.compile(r"(?P<service>[a-z0-9-]+)\.(?P<namespace>[a-z0-9-]+)\.svc(\.cluster\.local)?")


class NoWayError(ValueError):
    """The address is one of the cluster's own, and no way there was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How services are reached.

    Attributes:
        port_forward: Whether kubectl may open a way into the cluster.
        has_cluster: Whether there is a cluster to open one into.
    """

    port_forward: bool
    has_cluster: bool

    @contextlib.contextmanager
    def to(self, address: str) -> Iterator[str]:
        """An address that works from here for the time of the block.

        Raises:
            NoWayError: See there.
            PortForwardError: kubectl opens none.
        """
        split = urlsplit(address)
        match = _INSIDE.fullmatch(split.hostname or "")
        if match is None or os.environ.get("KUBERNETES_SERVICE_HOST"):
            yield address
            return
        if not (self.port_forward and self.has_cluster):
            raise NoWayError(f"{split.netloc} is an address inside the cluster")
        with forwarded(match["namespace"], match["service"], split.port or (443 if split.scheme == "https" else 80)) as forward:
            yield forward.url
