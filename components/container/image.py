"""The reference of the one image that every component runs in, as the compiled pipelines have it.

The reference is part of KFP's cache key, so a tag that moves would give stale cache hits: it must be a digest or a
tag that is never written twice. It is read when a pipeline is compiled, from the environment:

    IDDPM_IMAGE=ghcr.io/me/iddpm@sha256:... iddpm compile compiled/
"""

from __future__ import annotations

import os
import re

from training.config.errors import UserError

VERSION = "0.1.0"
DEFAULT_IMAGE = f"iddpm-pipelines:{VERSION}"
"""Reference of the image that `make image` builds: named by the release, never `latest`."""

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:(?=[^/]*[.:]){_LABEL}(?:\.{_LABEL})*(?::\d+)?/)?"  # the registry: a host name, which a dot or a port tells from the image's name
    rf"{_PART}(?:/{_PART})*(?::(?P<tag>\w[\w.-]{{0,127}}))?(?:@sha256:(?P<digest>[0-9a-f]{{64}}))?",
    re.ASCII,
)
"""The grammar of container runtimes. Kubernetes takes a pod whose image has another form, and the pod waits for ever."""
_MOVING_TAGS = ("latest", "main", "master", "dev", "edge", "nightly", "stable")


class ImageError(UserError):
    """The image reference is malformed, or its tag can move."""


def image_from(reference: str, *, variable: str = "IDDPM_IMAGE") -> str:
    """Return the reference if it is immutable.

    Args:
        reference: `name:tag` or `name@sha256:digest`, with or without a registry in front.
        variable: Name of the variable or parameter, for the error.

    Raises:
        ImageError: The reference is malformed, has neither tag nor digest, or its tag is one that moves.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ImageError(
            f"{variable}: {reference!r} is not an image reference like name:tag or name@sha256:<64 hexadecimal digits>; "
            "an image's name is in lower case"
        )
    if match["digest"] is None and (match["tag"] is None or match["tag"].lower() in _MOVING_TAGS):
        raise ImageError(f"{variable}: {reference!r} can change under a cached step; name a digest or a tag that is never written twice")
    return reference


BASE_IMAGE = os.environ.get("IDDPM_IMAGE") or DEFAULT_IMAGE
"""Image of the components in this compilation. Compiling checks it; a run on this machine uses no image, so nothing checks it there."""
