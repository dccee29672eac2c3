"""Preparing images beside the released code's method, and loading them beside a DataLoader over files."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from measuring import Measured, Run, of, take_turns
from photographs import crops_of_photographs, jpegs
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from training.data.images.resize import prepare_image
from training.data.loading.loader import Loader

SIZES = ((500, 375), (1000, 750), (2000, 1500))
_BATCH = 128


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group."""
    sizes = [preparation_ratios(width, height, rounds=run.rounds(5)) for width, height in (SIZES[:1] if run.quick else SIZES)]
    error = max(sized.error for sized in sizes)
    yield "prepare-exact", _over_sizes([sized.exact for sized in sizes], "")
    yield (
        "prepare-reduced",
        _over_sizes([sized.reduced for sized in sizes], f"differs from exact by {error:.1f} grey levels at most of the three"),
    )
    wall, cpu = loading_ratios(256 if run.quick else 4096, rounds=run.rounds(3))
    yield "load-wall", wall
    yield "load-cpu", cpu
    yield "waiting", waiting(10 if run.quick else 60)


class Preparation:
    """Ratios of one size of photograph, a round after another, and the mean error of reduced decoding in grey levels."""

    def __init__(self, exact: list[float], reduced: list[float], error: float) -> None:
        self.exact, self.reduced, self.error = exact, reduced, error


def preparation_ratios(width: int, height: int, *, rounds: int = 5) -> Preparation:
    """Exact and reduced preparation against the released code's method, in processor seconds."""
    cv2.setNumThreads(1)
    files = jpegs(width, height, 8)

    def prepared(mode: str, reduced: bool = False) -> list[np.ndarray]:
        return [prepare_image(data, [64], mode, reduced_decode=reduced).images[0] for data in files]

    sides = {"adm": lambda: prepared("adm"), "area": lambda: prepared("area"), "reduced": lambda: prepared("area", True)}
    times = take_turns(sides, rounds=rounds)
    exact, reduced = np.stack(prepared("area")).astype(float), np.stack(prepared("area", True)).astype(float)
    each = {side: [slow / fast for slow, fast in zip(times["adm"], times[side], strict=True)] for side in ("area", "reduced")}
    return Preparation(each["area"], each["reduced"], float(np.abs(exact - reduced).mean()))


def _over_sizes(sizes: list[list[float]], note: str) -> Measured:
    """The geometric mean over the sizes, of each round."""
    rounds = [float(np.exp(np.log(each).mean())) for each in zip(*sizes, strict=True)]
    told = " / ".join(f"{statistics.median(size):.2f}" for size in sizes)
    return of(rounds, f"by size {told}" + (f"; {note}" if note else ""))


class PngFiles(Dataset[torch.Tensor]):
    """The data set of most training loops: a PNG file an item."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.asarray(Image.open(self.paths[index])).transpose(2, 0, 1).copy())


def loading_ratios(num_images: int, *, rounds: int = 3) -> tuple[Measured, Measured]:
    """Our loader against a DataLoader with two workers: images a second by the clock, and a processor second."""
    passes = 8  # ours is so quick that one would be too short to time
    with crops_of_photographs(num_images, 64) as crops:
        loader = Loader(crops.data_uri, seed=0, global_batch_size=_BATCH, cache_dir=crops.cache)
        ratios: list[tuple[float, float]] = []
        for _ in range(rounds):
            started, spent = time.perf_counter(), _processor_seconds()
            for batch in DataLoader(PngFiles(crops.paths), batch_size=_BATCH, shuffle=True, num_workers=2):
                assert batch.shape[1:] == (3, 64, 64)
            their_wall, their_cpu = time.perf_counter() - started, _processor_seconds() - spent
            started, spent = time.perf_counter(), _processor_seconds()
            for ours in loader.batches(0, passes * num_images // _BATCH):
                assert ours.images.shape[1:] == (3, 64, 64)
            our_wall, our_cpu = (time.perf_counter() - started) / passes, (_processor_seconds() - spent) / passes
            ratios.append((their_wall / our_wall, their_cpu / our_cpu))
    return of([wall for wall, _ in ratios]), of([cpu for _, cpu in ratios])


def _processor_seconds() -> float:
    """Return the seconds of this process and of its children that have ended: a DataLoader's workers are children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def waiting(num_steps: int, step_seconds: float = 0.05) -> Measured:
    """The percentage of a step that waits for its batch; the step is a sleep: so long does this processor wait for an accelerator."""
    waited = []
    with crops_of_photographs(1024, 64) as crops:
        batches = Loader(crops.data_uri, seed=0, global_batch_size=_BATCH, cache_dir=crops.cache).batches(0, num_steps)
        next(batches)
        for _ in range(num_steps - 1):
            time.sleep(step_seconds)
            started = time.perf_counter()
            next(batches)
            waited.append(time.perf_counter() - started)
    each = [100 * seconds / step_seconds for seconds in waited]
    return Measured(value=statistics.fmean(each), low=min(each), high=max(each), note="the mean step, and the range of steps")
