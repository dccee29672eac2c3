"""The process that does a step: `python -m components.launch.driver <URI of its call>`, on a Ray cluster's head or in the step's pod."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from components.launch.call import TRY_AGAIN
from components.launch.repeat import may_pass
from components.launch.step import Step, run_on_cluster
from training import storage
from training.config.errors import UserError
from training.console import say
from training.distributed.cores import limit_threads
from training.loop.interfaces import TrainingError


def main(words: Sequence[str]) -> int:
    """Run the call in the file; Ray, KubeRay and the step's pod read success or failure from the exit code."""
    if len(words) != 1:
        say("usage: python -m components.launch.driver <URI of the call's JSON>")
        return 2
    call = storage.retry(lambda: storage.read_json(words[0]))
    step, address, answer_uri = Step(**call["step"]), call["ray_address"], call["answer_uri"]
    limit_threads()
    try:
        returned = step(**call["arguments"]) if address == "local" else run_on_cluster(step, call["arguments"], address)
        if answer_uri:
            storage.write_json(answer_uri, {"returned": returned})
    except Exception as error:  # of any step: the exit code must say whether it may pass
        if address == "local":
            storage.write_json(answer_uri, {"error": str(error), "is_users": isinstance(error, UserError)})
        if isinstance(error, (ValueError, OSError, TrainingError)):
            say(f"{type(error).__name__}: {error}")
        else:
            traceback.print_exc()
        return TRY_AGAIN if may_pass(error) else 1
    if address != "local":
        say(f"{step.name} is done on the Ray cluster")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
