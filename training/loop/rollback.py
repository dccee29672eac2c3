"""Roll a diverging run back to its last good checkpoint, and go on with other random draws."""

from __future__ import annotations

import functools
import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

from training import storage
from training.checkpoints import checkpoint
from training.console import say
from training.distributed.ranks import broadcast_object
from training.loop.interfaces import DivergedError, Outcome
from training.loop.trainer import Trainer

MAX_ROLLBACKS = 2
"""Largest number of roll-backs to the same checkpoint; each checkpoint has its own count."""


def train_with_rollbacks(
    make_trainer: Callable[[], Trainer],
    run_uri: str,
    *,
    rank: int = 0,
    world_size: int = 1,
    finish_saving: Callable[[], None] = lambda: None,
    on_rollback: Callable[[int], None] = lambda step: None,
    retry_seconds: float = storage.OUTAGE_SECONDS,
) -> Outcome:
    """Train from the run's latest checkpoint; when training diverges, go back to the last good one, with other draws.

    Args:
        on_rollback: Called with the step of the checkpoint that this rank goes back to, 0 for the beginning.
        retry_seconds: Seconds of retries while the storage does not answer; the other ranks wait for them.

    Returns:
        The end of training, with a `failure` where `MAX_ROLLBACKS` to one checkpoint did not help. A failure is not raised, because Ray
        would start the workers again, and they would fail in the same way.
    """

    def find(choose: Callable[[str], str | None]) -> str | None:
        uri = storage.retry(lambda: choose(run_uri), seconds=retry_seconds) if rank == 0 else None
        return broadcast_object(uri, world_size)  # type: ignore[no-any-return]

    def load(uri: str, name: str) -> dict[str, Any]:
        return storage.retry(lambda: checkpoint.load(uri, name), seconds=retry_seconds)

    uri, rollbacks = find(checkpoint.latest), 0
    rollbacks_to: Counter[str | None] = Counter()
    while True:
        trainer = make_trainer()
        if uri is not None:
            trainer.restore(functools.partial(load, uri))
            if rank == 0:
                say(f"resuming from step {trainer.step}")
        trainer.rollbacks = max(trainer.rollbacks, rollbacks)
        try:
            return trainer.train()
        except DivergedError as error:
            reason, step, rollbacks = str(error), trainer.step, trainer.rollbacks + 1
        finally:
            trainer.close()
        finish_saving()
        uri = find(_last_good)
        rollbacks_to[uri] += 1
        if rollbacks_to[uri] > MAX_ROLLBACKS:
            failure = f"{reason}; going back to the last good checkpoint {MAX_ROLLBACKS} times did not help"
            return Outcome(step=step, stop_reason=None, failure=failure)
        on_rollback(checkpoint.step_of(uri) if uri is not None else 0)
        if rank == 0:
            say(f"{reason}; going back to the last good checkpoint ({rollbacks_to[uri]} of {MAX_ROLLBACKS})")
        del trainer  # frees its memory before the next one is built
        gc.collect()


def _last_good(run_uri: str) -> str | None:
    """Return the latest checkpoint that was not saved while updates were skipped, or None; later ones are removed.

    A run that is stopped while it skips updates saves its state too, because a few skipped updates are no divergence. If it then diverges,
    it had begun to before that state.
    """
    for step in reversed(checkpoint.steps(run_uri)):
        uri = checkpoint.checkpoint_uri(run_uri, step)
        if not checkpoint.load(uri, "state.json").get("unlogged", {}).get("consecutive"):
            return uri
        checkpoint.remove(run_uri, [step])
    return None
