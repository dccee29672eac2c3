"""Progress lines of a training run."""

from __future__ import annotations

import math
import time

from training.console import format_rate, format_remaining, say

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Prints one line every few seconds: step, loss, speed, time left."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._started: tuple[float, int] | None = None
        self._shown_at = -math.inf

    def show(self, step: int, loss: float, images_per_second: float) -> None:
        """Print the line of a step, if it is time for one."""
        now = time.monotonic()
        left = ""
        if self._started is None:
            self._started = (now, step)  # the first interval contains the warm-up; time left counts from its end
        else:
            left = format_remaining(step - self._started[1], self._num_steps - self._started[1], now - self._started[0])
        if now - self._shown_at >= SECONDS_BETWEEN_LINES or step == self._num_steps:
            self._shown_at = now
            say(f"step {step:,}/{self._num_steps:,}  loss {loss:.4f}  {format_rate(images_per_second, 1, 'images')}  {left}".rstrip())
