"""From one worker to two: how much of a second core reaches the work."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from digits_model import trained_model
from measuring import Measured, Run, convolution_peak
from photographs import jpegs
from training_steps import COMMON, SMALL

from evaluation.sampling.sample_set import SamplePlan, draw
from evaluation.sampling.trained_model import ModelSpec
from training.config.experiment import SamplingConfig
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.catalog import open_splits
from training.distributed.ray_session import parallel_map, ray_session


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group; by the clock."""
    if len(os.sched_getaffinity(0)) < 2:
        raise RuntimeError("scaling needs two cores, and this process may use one")
    yield "machine", machine(run)
    yield "train", training(run)
    model, _ = trained_model(run.scratch, num_steps=20)  # how good it is makes no difference here
    with ray_session(num_cpus=2):
        yield "prepare", preparation(run)
        yield "generate", generation(run, model.checkpoint_uri)


def _in_turns(work: Callable[[int], float], run: Run, rounds: int = 2) -> list[tuple[float, float]]:
    """Seconds of the work with one worker and with two, in each round."""
    return [(work(1), work(2)) for _ in range(run.rounds(rounds))]


def _efficiency(times: Sequence[tuple[float, float]], note: str = "") -> Measured:
    """Seconds with one worker over twice the seconds with two: the ratio of the medians, and the range of the rounds."""
    each = [one / two / 2 for one, two in times]
    one, two = (statistics.median(side) for side in zip(*times, strict=True))
    return Measured(value=one / two / 2, low=min(each), high=max(each), note=note)


def machine(run: Run) -> Measured:
    """The same for processes that have nothing to do with each other."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:

        def work(workers: int) -> float:
            started = time.perf_counter()
            pieces = [pool.submit(convolve, run, 2 // workers) for _ in range(workers)]
            for piece in pieces:
                piece.result()
            return time.perf_counter() - started

        work(2)  # the first call starts the processes
        return _efficiency(_in_turns(work, run, rounds=5))


def convolve(run: Run, times: int) -> None:
    """A fixed amount of arithmetic on one thread."""
    torch.set_num_threads(1)
    for _ in range(times):
        convolution_peak(torch.device("cpu"), torch.float32, quick=run.quick)


def training(run: Run) -> Measured:
    """One worker and two take turns at an update of one batch: a processor that others use changes its speed from minute to minute."""
    batch = 4 if run.quick else 32
    overrides = [*COMMON, *(SMALL if run.quick else ()), f"optim.global_batch_size={batch}"]
    script = str(Path(__file__).with_name("two_workers.py"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    done = subprocess.run([sys.executable, *launcher, str(run.rounds(7)), *overrides], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"training by two workers failed: {done.stderr.strip().splitlines()[-1]}")
    seconds = json.loads(done.stdout.splitlines()[-1])
    return _efficiency(list(zip(seconds["one"], seconds["two"], strict=True)), f"batch {batch}, by turns")


def preparation(run: Run) -> Measured:
    """Photographs of 1000x750 in shards of a sixteenth each."""
    num_photos = 32 if run.quick else 1920
    with tempfile.TemporaryDirectory(prefix="iddpm-bench-") as directory:
        root = Path(directory)
        (root / "photos").mkdir()
        files = jpegs(1000, 750, 16)
        for index in range(num_photos):
            (root / "photos" / f"{index:04d}.jpg").write_bytes(files[index % 16])
        source = open_splits(str(root / "photos"))["train"]
        calls = 0

        def work(workers: int) -> float:
            nonlocal calls
            calls += 1
            started = time.perf_counter()
            options = Options(rows_per_shard=num_photos // 16)
            shard_map = functools.partial(parallel_map, num_workers=workers)
            prepare(source, str(root / f"data-{calls}"), image_size=64, options=options, shard_map=shard_map)
            return time.perf_counter() - started

        work(2)  # the first call starts Ray's worker processes
        return _efficiency(_in_turns(work, run, rounds=3), f"{num_photos:,} JPEGs of 1000x750 in 16 shards")


def generation(run: Run, checkpoint_uri: str) -> Measured:
    """DPM-Solver++ 20 on the digits."""
    num_images = 32 if run.quick else 960
    sampling = SamplingConfig(method="dpm_solver_pp", spacing="20")
    batch = num_images // 16
    with tempfile.TemporaryDirectory(prefix="iddpm-bench-") as directory:
        calls = 0

        def work(workers: int) -> float:
            nonlocal calls
            calls += 1
            plan = SamplePlan(
                model=ModelSpec(checkpoint_uri=checkpoint_uri),
                num_images=num_images,
                seed=0,
                sampling=sampling,
                batch_size=batch,
                chunk_size=batch,
                inputs=(),
            )
            started = time.perf_counter()
            draw(plan, f"{directory}/{calls}", num_workers=workers)
            return time.perf_counter() - started

        work(2)
        return _efficiency(_in_turns(work, run, rounds=5), f"{num_images} images by DPM-Solver++ 20")
