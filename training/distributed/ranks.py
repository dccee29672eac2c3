"""Data-parallel ranks: their shards of a batch, the network whose gradients they average, and their messages."""

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
    """Return the bounds (start, stop) of a rank's shard of the global batch.

    Shards are equal, except that those of the first ranks may be one image longer.
    """
    size, longer = divmod(global_batch_size, world_size)
    start = rank * size + min(rank, longer)
    return start, start + size + (rank < longer)


def gather(values: Tensor, global_batch_size: int, world_size: int) -> Tensor:
    """Return on every rank the vector over the global batch, [global_batch_size], from each rank's shard of it."""
    if world_size == 1:
        return values
    bounds = [shard_bounds(global_batch_size, rank, world_size) for rank in range(world_size)]
    padded = nn.functional.pad(values, (0, bounds[0][1] - len(values)))  # the first shard is the longest
    parts = [torch.empty_like(padded) for _ in bounds]
    dist.all_gather(parts, padded)
    return torch.cat([part[: stop - start] for part, (start, stop) in zip(parts, bounds, strict=True)])


def broadcast_object(value: Any, world_size: int) -> Any:
    """Return rank 0's value on every rank; a collective operation."""
    if world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def use_fast_kernels() -> None:
    """Let a GPU multiply in TF32, and choose its convolutions by trial."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


class AsyncStopFlag:
    """A flag of rank 0 that all ranks read one call late, so that none waits: a call returns what rank 0 passed to the previous call.

    A whole update was queued after that message, so the device has received it. All ranks read it after the same update, and a rank's
    host is at most one update ahead of its device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sent: tuple[Callable[[], Any], Tensor] | None = None

    def exchange(self, is_set: bool) -> bool:
        """Send rank 0's flag, and return that of the previous call; all ranks call it after the same update."""
        before, self._sent = self._sent, self._send(is_set)
        if before is None:
            return False
        arrive, flag = before
        arrive()
        return bool(flag.item())

    def _send(self, is_set: bool) -> tuple[Callable[[], Any], Tensor]:
        flag = torch.full((1,), float(is_set), device=self._device)
        message = dist.broadcast(flag, src=0, async_op=True)
        if self._device.type != "cuda":
            return message.wait, flag
        message.wait()  # orders the streams; the host does not wait
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
        """Return the network's output, float32 [batch, out_channels, height, width]."""
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._autocast):
            output: Tensor = self._network(x_t, timesteps, **kwargs).float()
        return output

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Accumulate gradients on this rank inside the block, without averaging them over the ranks."""
        return self._ddp.no_sync() if self._ddp is not None else contextlib.nullcontext()
