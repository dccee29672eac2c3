"""The field's npz files: statistics (mu, sigma) and batches of images (arr_0, arr_1), read and written.

EDM and pytorch-fid keep `mu` and `sigma`; the ADM evaluator's reference batches add `mu_s`, `sigma_s` (the sFID's spatial
features) and `arr_0`, uint8 images [N, height, width, channels]; its sample batches hold `arr_0` and, for conditional
models, the labels `arr_1`. None of these files says which network, images or resize they come from.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evaluation.fid import FeatureStatistics
from training import storage
from training.shapes import Int64, UInt8

Arrays = dict[str, npt.NDArray[Any]]


class NpzError(ValueError):
    """A file that is not the npz it should be; the message names it and what is missing."""


def read_arrays(uri: str) -> Arrays:
    """Every array of an npz file; pickled objects are refused.

    Raises:
        NpzError: It is not an npz file of plain arrays.
        StorageError: It can't be read.
    """
    try:
        with np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise NpzError(f"{uri} is not an npz file of plain arrays: {error}") from error


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
    mean, covariance = (torch.from_numpy(arrays[f"{name}{suffix}"].astype(np.float64)) for name in ("mu", "sigma"))
    if mean.ndim != 1 or tuple(covariance.shape) != (len(mean), len(mean)):
        raise NpzError(
            f"{uri}: mu{suffix} {tuple(mean.shape)} and sigma{suffix} {tuple(covariance.shape)} are not a mean and its covariance"
        )
    num_images = int(arrays["num_images"]) if "num_images" in arrays else None
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
    if images is None or images.dtype != np.uint8 or images.ndim != 4:
        found = "absent" if images is None else f"{images.dtype} {images.shape}"
        raise NpzError(f"{uri}: arr_0 is {found}; a batch of images is uint8 [N, height, width, channels]")
    labels = arrays.get("arr_1")
    if labels is not None and labels.shape != images.shape[:1]:
        raise NpzError(f"{uri}: {labels.shape} labels do not fit {len(images)} images")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return pixels, None if labels is None else torch.from_numpy(labels.astype(np.int64))


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
