"""Find the largest microbatch that fits into a device's memory, by trial."""

from __future__ import annotations

from collections.abc import Callable

import torch


def largest_that_fits(attempt: Callable[[int], None], shard_size: int) -> int:
    """Return the largest of n, n/2, n/4, ... (rounded up) for which an attempt does not run out of memory.

    Args:
        attempt: Does one forward and backward pass on that many images.
        shard_size: n, the images of a worker in each step.

    Raises:
        torch.OutOfMemoryError: Not even one image fits.
    """
    size = shard_size
    while True:
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        else:
            return size
        # Outside the except clause, whose traceback would keep the failed attempt's tensors alive.
        torch.cuda.empty_cache()
        size = -(-size // 2)
