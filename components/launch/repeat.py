"""Repeat work that was lost for a reason that may pass: a service away, a process or a machine gone or at a standstill, too little memory.

Kubeflow Pipelines starts a step again only if its pod was stopped or could not start (`k8s/components/kfp/workflow-defaults.yaml`). A step
that ends with an error, and one whose process was killed in its pod, fail for good. So these are repeated here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from components.cluster.connection import KubernetesAwayError
from training import storage
from training.console import format_duration, say
from training.distributed.ray_logs import MemoryShortageError
from training.distributed.ray_session import StandstillError
from training.storage.retry import is_transient_storage_error

T = TypeVar("T")

MAX_LOSSES = 3
"""Work that is lost this often without a new checkpoint is given up."""
PAUSE_SECONDS = 30.0
"""Pause between two tries. It is short, because the failed try has already waited for a service that is away."""


class LostError(RuntimeError):
    """Work was lost that may succeed when it is done again; one line with the reason."""


def may_pass(error: BaseException) -> bool:
    """Return True for an error that says nothing against the work itself."""
    lost = (LostError, KubernetesAwayError, MemoryShortageError, StandstillError)
    return isinstance(error, lost) or is_transient_storage_error(error)


def repeat_lost(
    work: Callable[[], T],
    progress: Callable[[], int] = lambda: 0,
    *,
    is_lost: Callable[[BaseException], bool] = may_pass,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Do work, and do it again each time it is lost, up to `MAX_LOSSES` times without progress.

    Args:
        work: It must find what an earlier try has done.
        progress: Returns the step of the last checkpoint; 0 for work that has none.
        is_lost: Returns True for an exception after which another try may succeed.

    Raises:
        Exception: That of `work`, if it is not lost; the last one if it was lost too often.
    """
    losses, step = 0, _last(progress, 0)
    while True:
        try:
            return work()
        except Exception as error:
            if not is_lost(error):
                raise
            before, step = step, _last(progress, step)
            losses = losses + 1 if step <= before else 1
            if losses >= MAX_LOSSES:
                say(f"{error}; lost {losses} times without a new checkpoint: given up")
                raise
            say(f"{error}; going on from step {step:,} in {format_duration(PAUSE_SECONDS)} (lost {losses} of {MAX_LOSSES} times)")
            sleep(PAUSE_SECONDS)


def _last(progress: Callable[[], int], otherwise: int) -> int:
    try:
        return progress()
    except storage.StorageError:
        return otherwise
