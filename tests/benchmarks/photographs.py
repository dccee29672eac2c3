"""Images that rows about data are measured on: the two photographs that scikit-learn ships, as files of any size."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.catalog import open_splits


def jpegs(width: int, height: int, count: int) -> list[bytes]:
    """JPEGs of that size, as cameras write them (4:2:0, quality 92)."""
    files = []
    photos = load_sample_images().images
    for index in range(count):
        # A little of another crop each time, so that no two files are the same.
        cropped = Image.fromarray(photos[index % 2]).crop((index % 8, index % 5, 640 - index % 7, 427 - index % 6))
        buffer = io.BytesIO()
        cropped.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=92, subsampling=2)
        files.append(buffer.getvalue())
    return files


@dataclass(frozen=True, slots=True)
class Crops:
    """The same images twice: as PNG files, and as a data set of ours, with a folder to stage it in."""

    paths: list[Path]
    data_uri: str
    cache: Path


@contextmanager
def crops_of_photographs(num_images: int, size: int) -> Iterator[Crops]:
    """Square crops at random places."""
    with tempfile.TemporaryDirectory(prefix="iddpm-bench-") as directory:
        root = Path(directory)
        (root / "png").mkdir()
        photos = load_sample_images().images
        rng = np.random.default_rng(0)
        paths = []
        for index in range(num_images):
            y, x = rng.integers(0, 427 - size), rng.integers(0, 640 - size)
            paths.append(root / "png" / f"{index:05d}.png")
            Image.fromarray(photos[index % 2][y : y + size, x : x + size]).save(paths[-1], compress_level=1)
        prepare(open_splits(str(root / "png"))["train"], str(root / "data"), image_size=size, options=Options(resize="none"))
        yield Crops(paths, str(root / "data"), root / "cache")
