"""Repeat an action that failed for a reason that may pass, until a budget of seconds is spent.

Most waiting for storage and servers uses this function. It is built on tenacity, and any package may import it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from training.console import format_duration, say
from training.storage.errors import StorageError

if TYPE_CHECKING:
    from tenacity import RetryCallState

_Result = TypeVar("_Result")

OUTAGE_SECONDS = 600.0
"""Default budget: an object store that restarts is back within ten minutes."""


def is_transient_storage_error(error: BaseException) -> bool:
    """Return True for a `StorageError` that may pass, for instance one of a server that restarts."""
    return isinstance(error, StorageError) and error.transient


def retry(
    action: Callable[[], _Result],
    *,
    seconds: float = OUTAGE_SECONDS,
    pause_seconds: float = 2.0,
    max_pause_seconds: float | None = None,
    is_transient: Callable[[BaseException], bool] = is_transient_storage_error,
    report: Callable[[BaseException], None] | None = None,
) -> _Result:
    """Call `action` until it succeeds, its failure is not transient, or the budget is spent.

    Args:
        action: It must be harmless to run twice.
        seconds: Budget, counted from the first failure; 0 tries once.
        max_pause_seconds: Where given, each wait is twice the one before, up to this, with a random part so that many clients do
            not come back at once. None waits `pause_seconds` each time.
        is_transient: Returns True for an exception after which waiting helps.
        report: Gets the first failure; None prints it.
    """
    import tenacity  # imported here, because it imports asyncio, which local paths do not need

    first_failure = math.inf

    def is_budget_spent(state: RetryCallState) -> bool:
        nonlocal first_failure
        now = state.outcome_timestamp or 0.0
        first_failure = min(first_failure, now)
        return now - first_failure >= seconds

    def report_first(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if state.attempt_number > 1 or error is None:
            return
        if report is not None:
            report(error)
        else:
            say(f"{error}; trying again for {format_duration(seconds)}")

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=is_budget_spent,
        wait=tenacity.wait_fixed(pause_seconds)
        if max_pause_seconds is None
        else tenacity.wait_exponential(pause_seconds, max=max_pause_seconds) + tenacity.wait_random(0, pause_seconds),
        before_sleep=report_first,
        reraise=True,
    )
    return retrying(action)
