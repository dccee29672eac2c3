"""The field's npz files: statistics (mu, sigma) and batches of images (arr_0, arr_1).

EDM and pytorch-fid store `mu` and `sigma`. The ADM evaluator's reference batches add `mu_s`, `sigma_s` (the sFID's spatial
features) and `arr_0`, uint8 images [N, height, width, channels]; its sample batches contain `arr_0` and, for conditional
models, the labels `arr_1`. None of these files records the network, the images or the resize.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training import storage
from training.config.errors import UserError
from training.data.cache.disk_cache import TMPDIR_REMEDY, explain_local_disk_errors
from training.data.format.order import Purpose, permutation
from training.shapes import Int64, UInt8

Arrays = dict[str, npt.NDArray[Any]]
POSITION_SEED = 0
"""Seed of the positions that `stream_with_positions` gives the images of a file."""

_DAMAGED = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, tokenize.TokenError, NotImplementedError, OSError)


@contextlib.contextmanager
def open_npz(uri: str) -> Iterator[Any]:
    """Open an npz file as `numpy.load` does, which reads an array when it is indexed. Pickled objects are refused.

    Raises:
        UserError: It is no npz file of plain arrays, or an array is damaged.
        StorageError: It can't be read.
    """
    with storage.open_local(uri) as path:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{uri} is not an npz file, or it is cut short; fetch it again")
        try:
            with np.load(path, allow_pickle=False) as file:
                yield file
        except (UserError, storage.StorageError):
            raise
        except _DAMAGED as error:
            raise UserError(f"{uri} is not an npz file of plain arrays, or is damaged: {error}") from error


def read_arrays(uri: str) -> Arrays:
    """Read every array of an npz file; see `open_npz`."""
    with open_npz(uri) as file:
        return {name: file[name] for name in file.files}


def write_arrays(uri: str, arrays: Mapping[str, npt.NDArray[Any]], *, compress: bool = False) -> None:
    """Write an npz file. An interruption leaves no incomplete file."""
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    storage.write_bytes(uri, buffer.getvalue())


def write_images(uri: str, images: UInt8[Tensor, "batch channels height width"], labels: Int64[Tensor, " batch"] | None) -> None:
    """Write a batch of images and their labels in the ADM evaluator's format."""
    arrays: Arrays = {"arr_0": images.permute(0, 2, 3, 1).contiguous().cpu().numpy()}
    if labels is not None:
        arrays["arr_1"] = labels.cpu().numpy()
    write_arrays(uri, arrays, compress=True)


def write_batches(uri: str, batches: Iterable[tuple[Tensor, Tensor | None]], num_images: int) -> None:
    """Write images and labels as `write_images` does, with one of the batches in memory at a time. A failure leaves nothing behind.

    Args:
        batches: uint8 NCHW images, and their labels or None.
        num_images: Number of images in all batches.

    Raises:
        StorageError: It can't be written.
        UserError: The disk for temporary files is full, or the batches have another number of images.
    """
    with tempfile.TemporaryDirectory(prefix="iddpm-") as directory:
        path = Path(directory) / "images.npz"
        with explain_local_disk_errors(path, TMPDIR_REMEDY):
            count = _write_zip(path, batches, num_images)
        if count != num_images:
            raise UserError(f"{uri}: {num_images:,} images were to be written, and there are {count:,}; draw them again")
        storage.upload(path, uri)


def _write_zip(path: Path, batches: Iterable[tuple[Tensor, Tensor | None]], num_images: int) -> int:
    """Write the file that `numpy.savez_compressed` would write; return the number of images."""
    count, all_labels = 0, []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:  # its size is not known before
            for images, labels in batches:
                pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
                if not count:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *pixels.shape[1:])}
                    np.lib.format.write_array_header_1_0(member, header)
                member.write(pixels.data)
                count += len(pixels)
                all_labels += [] if labels is None else [labels.cpu().numpy()]
        if all_labels:
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.concatenate(all_labels), allow_pickle=False)
    return count


def read_images(uri: str) -> tuple[UInt8[Tensor, "batch channels height width"], Int64[Tensor, " batch"] | None]:
    """Read a batch of uint8 images in `arr_0` and its labels, if it has some; refuse a damaged file and other numbers of labels."""
    with _open_batch(uri) as (member, shape, labels):
        return _read_pixels(uri, member, shape, shape[0]), labels


def batch_shape(uri: str) -> tuple[int, ...]:
    """Return a batch's [N, height, width, channels], from its header alone. Raises as `read_images`."""
    with _open_batch(uri) as (_, shape, _):
        return shape


def stream_images(uri: str, batch_size: int) -> Iterator[UInt8[Tensor, "batch channels height width"]]:
    """Read the images of a batch of any size, with `batch_size` of them in memory at a time. Raises as `read_images`."""
    with _open_batch(uri) as (member, shape, _):
        for first in range(0, shape[0], batch_size):
            yield _read_pixels(uri, member, shape, min(batch_size, shape[0] - first))


def stream_with_positions(
    uri: str, batch_size: int
) -> Iterator[tuple[Int64[Tensor, " batch"], UInt8[Tensor, "batch channels height width"]]]:
    """Read a batch as `stream_images` does, and give each image its position in a random order of the whole file.

    Files are often sorted by class, so their first images, or runs of neighbours, are no random sample of them; images of neighbouring
    positions are. The order is a permutation with the fixed seed 0 (`POSITION_SEED`), so that a file always gives the same numbers.
    """
    with _open_batch(uri) as (member, shape, _):
        # The preparation of data sets has number 0: by that order the rows of a prepared data set would be sorted by class again.
        positions = torch.from_numpy(permutation(shape[0], POSITION_SEED, Purpose.SHUFFLE, number=1))
        for some in torch.split(positions, batch_size):
            yield some, _read_pixels(uri, member, shape, len(some))


@contextlib.contextmanager
def _open_batch(uri: str) -> Iterator[tuple[Any, tuple[int, ...], Int64[Tensor, " batch"] | None]]:
    """Open `arr_0` after its header, and return it with its shape and the labels."""
    with storage.open_local(uri) as path, contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            labels = None
            if "arr_1.npy" in archive.namelist():
                with archive.open("arr_1.npy") as file:
                    labels = np.lib.format.read_array(file, allow_pickle=False)
            member = stack.enter_context(archive.open("arr_0.npy"))
            version = np.lib.format.read_magic(member)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = read_header(member)
        except (KeyError, *_DAMAGED) as error:
            raise UserError(f"{uri}: arr_0 can't be read ({error}); a batch of images is uint8 [N, height, width, 1 or 3]") from error
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise UserError(f"{uri}: arr_0 is {dtype} {shape}; a batch of images is uint8 [N, height, width, 1 or 3], none of them 0")
        if labels is not None and labels.shape != shape[:1]:
            raise UserError(f"{uri}: {labels.size:,} labels (arr_1) do not fit {shape[0]:,} images")
        if labels is not None and labels.dtype.kind not in "iu":
            raise UserError(f"{uri}: arr_1 is {labels.dtype}; labels are whole numbers, so store anything else under another name")
        if fortran_order:
            raise UserError(f"{uri}: arr_0 is in Fortran's order; write it with numpy.ascontiguousarray")
        yield member, shape, None if labels is None else torch.from_numpy(labels.astype(np.int64))


def _read_pixels(uri: str, member: Any, shape: tuple[int, ...], count: int) -> UInt8[Tensor, "batch channels height width"]:
    num_bytes = count * math.prod(shape[1:])
    try:
        data = member.read(num_bytes)
    except _DAMAGED as error:
        raise UserError(f"{uri}: arr_0 is damaged ({error}); fetch or draw it again") from error
    if len(data) != num_bytes:
        raise UserError(f"{uri}: arr_0 ends before its {shape[0]:,} images; fetch or draw it again")
    pixels = torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8)).view(count, *shape[1:])
    return pixels.permute(0, 3, 1, 2).contiguous()
