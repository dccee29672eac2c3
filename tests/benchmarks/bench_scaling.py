"""From one worker to two: how much of a second core reaches the work."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from digits_model import trained_model
from measuring import Measured, Run, convolution_peak, of
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


def _efficiency(work: Callable[[int], float], run: Run, note: str = "") -> Measured:
    """Seconds with one worker over twice the seconds with two, in turns."""
    times = [(work(1), work(2)) for _ in range(run.rounds(2))]
    return of([one / two / 2 for one, two in times], note)


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
        return _efficiency(work, run)


def convolve(run: Run, times: int) -> None:
    """A fixed amount of arithmetic on one thread."""
    torch.set_num_threads(1)
    for _ in range(times):
        convolution_peak(torch.device("cpu"), torch.float32, quick=run.quick)


def training(run: Run) -> Measured:
    """`training.launch.torchrun` by itself and under torchrun."""
    batch = 4 if run.quick else 32
    overrides = [*COMMON, *(SMALL if run.quick else ()), f"optim.global_batch_size={batch}"]
    arguments = [
        "-m",
        "training.launch.torchrun",
        "--preset",
        "cifar10-hybrid-cosine",
        "--warmup",
        "1",
        "--steps",
        "1" if run.quick else "2",
    ]
    arguments += [word for override in overrides for word in ("--set", override)]

    def work(workers: int) -> float:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if workers == 2 else []
        done = subprocess.run([sys.executable, *launcher, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"training by {workers} workers failed: {done.stderr.strip().splitlines()[-1]}")
        return batch / json.loads(done.stdout.splitlines()[-1])["images_per_second"]

    one, two = work(1), work(2)
    return Measured(value=one / two / 2, note=f"batch {batch}, two updates of each after one")


def preparation(run: Run) -> Measured:
    """Photographs of 1000x750 in shards of a sixteenth each."""
    num_photos = 32 if run.quick else 640
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
        return _efficiency(work, run, f"{num_photos} JPEGs of 1000x750")


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
        return _efficiency(work, run, f"{num_images} images by DPM-Solver++ 20")
