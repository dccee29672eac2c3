"""Data-parallel workers: who takes which images of a batch, the network whose gradients they share, and what they tell each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.config.experiment import Resources


def shard_bounds(global_batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and last but one of a rank's images in the global batch: equal shares, those of the first ranks one longer."""
    size, longer = divmod(global_batch_size, world_size)
    start = rank * size + min(rank, longer)
    return start, start + size + (rank < longer)


def gather(values: Tensor, global_batch_size: int, world_size: int) -> Tensor:
    """Puts the ranks' shares of a vector over the global batch together, in the batch's order."""
    if world_size == 1:
        return values
    bounds = [shard_bounds(global_batch_size, rank, world_size) for rank in range(world_size)]
    padded = nn.functional.pad(values, (0, bounds[0][1] - len(values)))  # the first share is the longest
    parts = [torch.empty_like(padded) for _ in bounds]
    dist.all_gather(parts, padded)
    return torch.cat([part[: stop - start] for part, (start, stop) in zip(parts, bounds, strict=True)])


def broadcast_object(value: Any, world_size: int) -> Any:
    """Rank 0's value on every rank."""
    if world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


class AsyncStopFlag:
    """Whether rank 0 wants something, told to all ranks without anybody waiting: each call says what the call before told.

    By then the device has long passed the message, with a whole update queued behind it. So all ranks learn it after the same
    update, and a rank's host is never further than one update ahead of its device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._told: tuple[Callable[[], Any], Tensor] | None = None

    def exchange(self, wanted: bool) -> bool:
        """For all ranks after the same update.

        Args:
            wanted: On rank 0; of the others it is not looked at.

        Returns:
            What rank 0 said in the call before.
        """
        before, self._told = self._told, self._send(wanted)
        if before is None:
            return False
        arrive, flag = before
        arrive()
        return bool(flag.item())

    def _send(self, wanted: bool) -> tuple[Callable[[], Any], Tensor]:
        flag = torch.full((1,), float(wanted), device=self._device)
        message = dist.broadcast(flag, src=0, async_op=True)
        if self._device.type != "cuda":
            return message.wait, flag
        message.wait()  # puts the streams in order; the host goes on
        copy = torch.empty(1, pin_memory=True).copy_(flag, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return copied.synchronize, copy


class Network:
    """A model as training calls it: compiled, data-parallel and under autocast, as the resources say; float32 in and out."""

    def __init__(self, model: nn.Module, resources: Resources, device: torch.device, world_size: int) -> None:
        network: Any = torch.compile(model, dynamic=False) if resources.compile else model
        self._ddp: DistributedDataParallel | None = None
        if world_size > 1:
            ids = [device.index] if device.type == "cuda" else None
            network = self._ddp = DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)
        self._network = network
        self._device_type = device.type
        self._autocast = resources.precision == "bf16"

    def __call__(self, x_t: Tensor, timesteps: Tensor, **kwargs: Tensor) -> Tensor:
        """The network's output."""
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._autocast):
            output: Tensor = self._network(x_t, timesteps, **kwargs).float()
        return output

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, gradients are added to this rank's own and not shared yet."""
        return self._ddp.no_sync() if self._ddp is not None else contextlib.nullcontext()
