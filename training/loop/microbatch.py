"""The largest microbatch that a device's memory holds, found by trying."""

from __future__ import annotations

from collections.abc import Callable

import torch


def largest_that_fits(attempt: Callable[[int], None], share: int) -> int:
    """The largest of share, share/2, share/4, ... (rounded up) for which an attempt does not run out of memory.

    Args:
        attempt: Makes one forward and backward pass on that many images.
        share: Images that a worker has in each step.

    Raises:
        torch.OutOfMemoryError: Not even one image fits.
    """
    size = share
    while True:
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        else:
            return size
        # Outside of the handler, whose traceback would keep the failed attempt's tensors alive.
        torch.cuda.empty_cache()
        size = -(-size // 2)
