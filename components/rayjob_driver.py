"""The driver of a RayJob: `python -m components.rayjob_driver <address of its arguments>`, on the cluster's head.

The same training step as on a laptop, on the cluster that it finds itself on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from training import storage
from training.progress import say


def main(words: Sequence[str]) -> int:
    """Trains what the file says; the exit code is what Ray, and so KubeRay, calls success or failure."""
    if len(words) != 1:
        say("usage: python -m components.rayjob_driver <URI of the arguments' JSON>")
        return 2
    from components.training_run import train_run

    arguments = storage.read_json(words[0])
    try:
        train_run(**arguments, ray_address="auto")
    except (ValueError, OSError) as error:
        say(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
