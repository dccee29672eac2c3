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

from evaluation.distances.frechet import FeatureStatistics
from training import storage
from training.shapes import Int64, UInt8

Arrays = dict[str, npt.NDArray[Any]]

_BATCH = "a batch of images is uint8 [N, height, width, 1 or 3]"


class NpzError(ValueError):
    """A file that is not the npz it should be; the message names it and what is missing."""


@contextlib.contextmanager
def opened(uri: str) -> Iterator[Any]:
    """The file as numpy reads it, one array when it is asked for; pickled objects are refused.

    Raises:
        NpzError: It is not an npz file of plain arrays, or an array of it is damaged.
        StorageError: It can't be read.
    """
    with storage.open_local(uri) as path:
        if not zipfile.is_zipfile(path):
            raise NpzError(f"{uri} is not an npz file, or it is cut short")
        try:
            with np.load(path, allow_pickle=False) as file:
                yield file
        except NpzError:
            raise
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise NpzError(f"{uri} is not an npz file of plain arrays, or is damaged: {error}") from error


def read_arrays(uri: str, *, without: Collection[str] = ()) -> Arrays:
    """Every array of an npz file, but for those that are not wanted; see `opened`."""
    with opened(uri) as file:
        return {name: file[name] for name in file.files if name not in without}


def write_arrays(uri: str, arrays: Mapping[str, npt.NDArray[Any]], *, compress: bool = False) -> None:
    """Writes an npz file, whole or not at all."""
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    storage.write_bytes(uri, buffer.getvalue())


def statistics_of(arrays: Mapping[str, npt.NDArray[Any]], uri: str, suffix: str = "") -> FeatureStatistics:
    """The statistics in `mu` and `sigma` (with a suffix: "_s" for the spatial ones).

    Raises:
        NpzError: They are absent, or their shapes are not those of a mean and a covariance.
    """
    missing = [name for name in (f"mu{suffix}", f"sigma{suffix}") if name not in arrays]
    if missing:
        raise NpzError(f"{uri} holds {', '.join(arrays) or 'nothing'}; statistics need {' and '.join(missing)}")
    try:
        mean, covariance = (torch.from_numpy(arrays[f"{name}{suffix}"].astype(np.float64)) for name in ("mu", "sigma"))
        num_images = int(arrays["num_images"]) if "num_images" in arrays else None
    except (TypeError, ValueError) as error:
        raise NpzError(f"{uri}: mu{suffix}, sigma{suffix} or num_images are no numbers ({error})") from error
    if mean.ndim != 1 or tuple(covariance.shape) != (len(mean), len(mean)):
        raise NpzError(
            f"{uri}: mu{suffix} {tuple(mean.shape)} and sigma{suffix} {tuple(covariance.shape)} are not a mean and its covariance"
        )
    if bool((covariance.diagonal() < 0).any()) or not torch.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise NpzError(f"{uri}: sigma{suffix} is no covariance: it has negative variances, or is not symmetric")
    return FeatureStatistics(mean=mean, covariance=(covariance + covariance.T) / 2, num_images=num_images)


def write_statistics(uri: str, statistics: FeatureStatistics, spatial: FeatureStatistics | None = None) -> None:
    """Writes what EDM, pytorch-fid and the ADM evaluator read: mu and sigma, and mu_s and sigma_s where given."""
    arrays: Arrays = {"mu": statistics.mean.numpy(), "sigma": statistics.covariance.numpy()}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean.numpy(), "sigma_s": spatial.covariance.numpy()}
    write_arrays(uri, arrays)


def read_images(uri: str) -> tuple[UInt8[Tensor, "batch channels height width"], Int64[Tensor, " batch"] | None]:
    """A batch of images and its labels, where it has some.

    Raises:
        NpzError: There is no `arr_0` of uint8 images, or there are not as many labels.
    """
    arrays = read_arrays(uri)
    images = arrays.get("arr_0")
    if images is None:
        raise NpzError(f"{uri}: arr_0 is absent; {_BATCH}")
    _require_batch(images.dtype, images.shape, uri)
    labels = arrays.get("arr_1")
    if labels is not None and labels.shape != images.shape[:1]:
        raise NpzError(f"{uri}: {labels.shape} labels do not fit {len(images)} images")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return pixels, None if labels is None else torch.from_numpy(labels.astype(np.int64))


def count_images(uri: str) -> int:
    """How many images a batch holds, from its header alone.

    Raises:
        NpzError: There is no `arr_0` of uint8 images.
    """
    with _batch(uri) as (_, shape):
        return shape[0]


def stream_images(uri: str, batch_size: int) -> Iterator[UInt8[Tensor, "batch channels height width"]]:
    """The images of a batch, however large, with `batch_size` of them in memory at a time.

    Raises:
        NpzError: There is no `arr_0` of uint8 images, or it ends early.
    """
    with _batch(uri) as (member, shape):
        for first in range(0, shape[0], batch_size):
            count = min(batch_size, shape[0] - first)
            try:
                data = member.read(count * math.prod(shape[1:]))
            except (zlib.error, zipfile.BadZipFile, EOFError) as error:
                raise NpzError(f"{uri}: arr_0 is damaged ({error}); fetch or draw it again") from error
            if len(data) != count * math.prod(shape[1:]):
                raise NpzError(f"{uri}: arr_0 ends before its {shape[0]:,} images; fetch or draw it again")
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
            raise NpzError(f"{uri}: arr_0 can't be read ({error}); {_BATCH}") from error
        _require_batch(dtype, shape, uri)
        if num_labels not in (None, shape[0]):
            raise NpzError(f"{uri}: {num_labels:,} labels (arr_1) do not fit {shape[0]:,} images")
        if fortran:
            raise NpzError(f"{uri}: arr_0 is in Fortran's order; write it with numpy.ascontiguousarray")
        yield member, shape


def _header(member: Any) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether in Fortran's order, and type of an array; its data follow in the member."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    return shape, fortran, dtype


def _require_batch(dtype: npt.DTypeLike, shape: tuple[int, ...], uri: str) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise NpzError(f"{uri}: arr_0 is {dtype} {shape}; {_BATCH}")


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
