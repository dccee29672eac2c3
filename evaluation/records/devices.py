"""The device, the arithmetic and the batch size of evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from training.config.errors import UserError
from training.config.experiment import Experiment, Precision
from training.console import say

MAX_BATCH_SIZE = 250
_PIXELS_AT_A_TIME = 2**20
# Above 32 MB the C library maps memory for an activation and unmaps it after use, and below a few MB it stays in the processor's cache.
_CPU_ACTIVATION_BYTES = 12 * 2**20

_Result = TypeVar("_Result")


def choose_device(name: str) -> str:
    """Return a device that exists here for "auto" (a GPU if this process sees one, else the CPU), "cpu", "cuda" or "cuda:1".

    Raises:
        UserError: There is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"{name!r} is not a device; use auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise UserError(f"there is no device {name!r} here: this process sees {count} GPUs; use auto or cpu")
    return name


def default_batch_size(image_size: int) -> int:
    """Return a batch size that fits a network of the paper's sizes: about a megapixel, at most 250 images.

    A batch that does not fit is halved (`Batches`).
    """
    return min(MAX_BATCH_SIZE, max(1, _PIXELS_AT_A_TIME // image_size**2))


def sampling_batch_size(experiment: Experiment, device: str) -> int:
    """Return the number of images that a sampler draws at a time, where nobody asks for another.

    On a CPU the largest activation of a batch, the first of the highest resolution on the way up, has at most 12 MiB: twice as many
    images are not faster for a network that fills the processor, and page faults make many of them slower.
    """
    size = default_batch_size(experiment.data.image_size)
    if device != "cpu":
        return size
    channels = experiment.model.model_channels * sum(experiment.model.channel_mult[:2])
    return max(1, min(size, _CPU_ACTIVATION_BYTES // (4 * channels * experiment.data.image_size**2)))


class Batches:
    """Batches of images whose size is halved whenever the device has no memory for one."""

    def __init__(self, size: int, device: torch.device | str, image: str) -> None:
        """Begin with that size.

        Args:
            size: Images at a time.
            device: Its name, for messages.
            image: One image, in the words of an error: "a single image of this model".

        Raises:
            UserError: The size is below 1.
        """
        if size < 1:
            raise UserError(f"batches of {size} images: must be at least 1")
        self._size, self._device, self._image = size, device, image

    def map(self, function: Callable[[slice], _Result], num_images: int) -> Iterator[_Result]:
        """Yield what `function` returns for each batch of the images 0 to `num_images` - 1, which it gets as a slice.

        It must do no harm to begin a batch and fail. The next images, also those of another call, are tried in the smaller size.

        Raises:
            UserError: The device has no memory for one image.
        """
        first = 0
        while first < num_images:
            rows = slice(first, min(first + self._size, num_images))
            count = rows.stop - first
            try:
                result = function(rows)
            except torch.OutOfMemoryError as error:
                if count == 1:
                    raise UserError(f"{self._device} has no memory for {self._image}; use another device") from error
            else:
                yield result
                first = rows.stop
                continue
            torch.cuda.empty_cache()  # after the handler, because its traceback keeps the tensors of the failed attempt
            self._size = count // 2
            say(
                f"{self._device} has no memory for {count} images at a time; going on with {self._size}, which changes nothing but rounding"
            )


def describe_arithmetic(device: str, precision: Precision) -> str:
    """Return the arithmetic of a network while sampling, as text for protocol cards."""
    if precision == "bf16":
        return "bfloat16 autocast"
    return "float32" if device == "cpu" else "float32, convolutions in TF32"


@contextlib.contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Compute in IEEE float32: no autocast, and no TF32 in matrix products and convolutions, which CUDA uses by default."""
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    # The three are set together: PyTorch raises an error when it is asked for TF32 and they differ.
    backends = (cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
