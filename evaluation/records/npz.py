"""The field's npz files: statistics (mu, sigma) and batches of images (arr_0, arr_1), read and written.

EDM and pytorch-fid keep `mu` and `sigma`; the ADM evaluator's reference batches add `mu_s`, `sigma_s` (the sFID's spatial
features) and `arr_0`, uint8 images [N, height, width, channels]; its sample batches hold `arr_0` and, for conditional
models, the labels `arr_1`. None of these files says which network, images or resize they come from.
"""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training import storage
from training.config.errors import UserError
from training.shapes import Int64, UInt8

Arrays = dict[str, npt.NDArray[Any]]

_BATCH = "a batch of images is uint8 [N, height, width, 1 or 3]"


@contextlib.contextmanager
def open_npz(uri: str) -> Iterator[Any]:
    """The file as numpy reads it, one array when it is asked for; pickled objects are refused.

    Raises:
        UserError: It is not an npz file of plain arrays, or an array of it is damaged.
        StorageError: It can't be read.
    """
    with storage.open_local(uri) as path:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{uri} is not an npz file, or it is cut short")
        try:
            with np.load(path, allow_pickle=False) as file:
                yield file
        except UserError:
            raise
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{uri} is not an npz file of plain arrays, or is damaged: {error}") from error


def read_arrays(uri: str, *, without: Collection[str] = ()) -> Arrays:
    """Every array of an npz file, but for those that are not wanted; see `open_npz`."""
    with open_npz(uri) as file:
        return {name: file[name] for name in file.files if name not in without}


def write_arrays(uri: str, arrays: Mapping[str, npt.NDArray[Any]], *, compress: bool = False) -> None:
    """Writes an npz file, whole or not at all."""
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    storage.write_bytes(uri, buffer.getvalue())


def read_images(uri: str) -> tuple[UInt8[Tensor, "batch channels height width"], Int64[Tensor, " batch"] | None]:
    """A batch of images and its labels, where it has some.

    Raises:
        UserError: There is no `arr_0` of uint8 images, or there are not as many labels.
    """
    arrays = read_arrays(uri)
    images = arrays.get("arr_0")
    if images is None:
        raise UserError(f"{uri}: arr_0 is absent; {_BATCH}")
    _require_batch(images.dtype, images.shape, uri)
    labels = arrays.get("arr_1")
    if labels is not None and labels.shape != images.shape[:1]:
        raise UserError(f"{uri}: {labels.shape} labels do not fit {len(images)} images")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return pixels, None if labels is None else torch.from_numpy(labels.astype(np.int64))


def count_images(uri: str) -> int:
    """How many images a batch holds, from its header alone.

    Raises:
        UserError: There is no `arr_0` of uint8 images.
    """
    with _batch(uri) as (_, shape):
        return shape[0]


def stream_images(uri: str, batch_size: int) -> Iterator[UInt8[Tensor, "batch channels height width"]]:
    """The images of a batch, however large, with `batch_size` of them in memory at a time.

    Raises:
        UserError: There is no `arr_0` of uint8 images, or it ends early.
    """
    with _batch(uri) as (member, shape):
        for first in range(0, shape[0], batch_size):
            count = min(batch_size, shape[0] - first)
            try:
                data = member.read(count * math.prod(shape[1:]))
            except (zlib.error, zipfile.BadZipFile, EOFError) as error:
                raise UserError(f"{uri}: arr_0 is damaged ({error}); fetch or draw it again") from error
            if len(data) != count * math.prod(shape[1:]):
                raise UserError(f"{uri}: arr_0 ends before its {shape[0]:,} images; fetch or draw it again")
            pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(count, *shape[1:])
            yield pixels.permute(0, 3, 1, 2).contiguous()


@contextlib.contextmanager
def _batch(uri: str) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """`arr_0`, open behind its header, and its shape."""
    with storage.open_local(uri) as path, contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            num_labels = None
            if "arr_1.npy" in archive.namelist():
                with archive.open("arr_1.npy") as labels:
                    num_labels = (*_header(labels)[0], 0)[0]
            member = stack.enter_context(archive.open("arr_0.npy"))
            shape, fortran, dtype = _header(member)
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{uri}: arr_0 can't be read ({error}); {_BATCH}") from error
        _require_batch(dtype, shape, uri)
        if num_labels not in (None, shape[0]):
            raise UserError(f"{uri}: {num_labels:,} labels (arr_1) do not fit {shape[0]:,} images")
        if fortran:
            raise UserError(f"{uri}: arr_0 is in Fortran's order; write it with numpy.ascontiguousarray")
        yield member, shape


def _header(member: Any) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether in Fortran's order, and type of an array; its data follow in the member."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    return shape, fortran, dtype


def _require_batch(dtype: npt.DTypeLike, shape: tuple[int, ...], uri: str) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise UserError(f"{uri}: arr_0 is {dtype} {shape}; {_BATCH}")


def write_images(
    uri: str, images: UInt8[Tensor, "batch channels height width"], labels: Int64[Tensor, " batch"] | None, *, grey_as_rgb: bool = False
) -> None:
    """Writes a batch of images as the ADM evaluator reads them.

    Args:
        uri: Where to.
        images: The images.
        labels: Their labels, or None.
        grey_as_rgb: Repeat a single channel three times, for evaluators that insist on colour.
    """
    if grey_as_rgb and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    arrays: Arrays = {"arr_0": images.permute(0, 2, 3, 1).contiguous().cpu().numpy()}
    if labels is not None:
        arrays["arr_1"] = labels.cpu().numpy()
    write_arrays(uri, arrays, compress=True)
