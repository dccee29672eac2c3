"""A file of all images: the field's format, a batch in memory at a time, and nothing of a failure."""

import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.records import npz
from training.config.errors import UserError

_IMAGES = torch.randint(0, 256, (25, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
_LABELS = torch.arange(25) % 10


def _batches() -> Iterator[tuple[Tensor, Tensor | None]]:
    return ((_IMAGES[first : first + 10].clone(), _LABELS[first : first + 10]) for first in range(0, 25, 10))


@pytest.mark.parametrize("labelled", [True, False])
def test_batches_make_the_file_that_numpy_would_write_of_all_images(labelled: bool, tmp_path: Path) -> None:
    npz.write_images(str(tmp_path / "whole.npz"), _IMAGES, _LABELS if labelled else None)
    batches = ((images, labels if labelled else None) for images, labels in _batches())
    npz.write_batches(str(tmp_path / "new" / "parts.npz"), batches, 25)
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "new" / "parts.npz") as parts:
        assert parts.files == whole.files == ["arr_0", "arr_1"][: 1 + labelled]
        for name in whole.files:
            assert parts[name].dtype == whole[name].dtype
            assert np.array_equal(parts[name], whole[name])


def test_no_earlier_batch_stays_in_memory(tmp_path: Path) -> None:
    drawn: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[tuple[Tensor, None]]:
        for _ in range(4):
            images = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
            drawn.append(weakref.ref(images))
            yield images, None
            del images
            assert sum(each() is not None for each in drawn) <= 1  # the writer holds the last one until it gets the next

    npz.write_batches(str(tmp_path / "all.npz"), batches(), 40)
    assert npz.batch_shape(str(tmp_path / "all.npz")) == (40, 8, 8, 3)


@pytest.mark.parametrize(("told", "message"), [(25, "chunk 2 is missing"), (30, "30 images were to be written, and there are 25")])
def test_a_failure_leaves_neither_a_file_nor_a_temporary_one(
    told: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor | None]]:
        yield from _batches()
        if told == 25:
            raise UserError(message)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match=message):
        npz.write_batches(str(tmp_path / "all.npz"), batches(), told)
    assert list(tmp_path.iterdir()) == []
