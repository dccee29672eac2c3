"""The driver of a RayJob: `python -m components.launch.driver <URI of its call>`, on the cluster's head.

It runs the same step as a laptop does, on its own cluster.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from components.launch.step import Step, run_on_cluster
from training import storage
from training.console import say


def main(words: Sequence[str]) -> int:
    """Run the call in the file; Ray and KubeRay read success or failure from the exit code."""
    if len(words) != 1:
        say("usage: python -m components.launch.driver <URI of the call's JSON>")
        return 2
    call = storage.read_json(words[0])
    try:
        step = Step(**call["step"])
        returned = run_on_cluster(step, call["arguments"], "auto")
        if call["answer_uri"]:
            storage.write_json(call["answer_uri"], {"returned": returned})
        say(f"{step.name} is done on the Ray cluster")
    except (ValueError, OSError) as error:
        say(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
