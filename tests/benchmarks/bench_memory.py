"""Peaks of memory: of training steps, each in a process of its own, and of what a Frechet distance keeps."""

from __future__ import annotations

import ctypes.util
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import torch
from measuring import Measured, Run, peak_rss_bytes, resident_bytes
from training_steps import COMMON, SMALL, baseline_step, network_experiment, our_trainer, set_up, updates_of

from evaluation.distances.frechet import Moments
from training.config.experiment import Experiment, Precision
from training.config.presets import preset
from training.cost.peak import scoring_bytes, training_bytes
from training.models.unet import example_inputs, make_model

PREDICTED: tuple[tuple[str, int, Precision | Literal["scoring"]], ...] = (
    ("fashion-mnist", 128, "fp32"),
    ("cifar10", 8, "fp32"),
    ("cifar10", 8, "bf16"),
    ("imagenet64", 2, "fp32"),
    ("fashion-mnist", 128, "scoring"),
    ("cifar10", 32, "scoring"),
)
"""Preset, images at once, and precision of a training, or scoring."""


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group."""
    bytes_of = {side: _in_own_process(training_peak, side, run) for side in ("baseline", "fp32", "bf16")}
    for precision in ("fp32", "bf16"):
        note = f"{bytes_of[precision] / 1e6:,.0f} MB, the baseline {bytes_of['baseline'] / 1e6:,.0f} MB"
        yield f"training-{precision}", Measured(value=bytes_of[precision] / bytes_of["baseline"], note=note)
    if run.device.type == "cpu":
        yield from predictions(run)
        held = Moments(2048)
        held.update(torch.randn(64, 2048))
        size = sum(tensor.numel() * tensor.element_size() for tensor in (held.total, held.outer))
        yield "moments", Measured(value=size / 1e6, note="whatever the number of images")


def predictions(run: Run) -> Iterator[tuple[str, Measured]]:
    """Distance of the predicted peaks from what a process needs beyond its libraries."""
    for name, batch, work in PREDICTED:
        experiment = _predicted_experiment(name, batch, run)
        size = experiment.optim.global_batch_size
        predicted = scoring_bytes(experiment, size) if work == "scoring" else training_bytes(experiment, size, bf16=work == "bf16")
        allocator = ctypes.util.find_library("tcmalloc_minimal")
        preloaded = {"LD_PRELOAD": allocator} if allocator else {}
        measured = _in_own_process(predicted_peak, name, batch, work, run, environment=preloaded)
        note = f"predicted {predicted / 1e6:,.0f} MB, measured {measured / 1e6:,.0f} MB"
        if allocator:
            plain = _in_own_process(predicted_peak, name, batch, work, run)
            # The heap's free pages go back to the system at once, so the process has what is live and no holes; that is too slow for use.
            dense = _in_own_process(predicted_peak, name, batch, work, run, environment=preloaded | {"TCMALLOC_AGGRESSIVE_DECOMMIT": "t"})
            note += f", without the heap's holes {dense / 1e6:,.0f} MB, with the C library's allocator {plain / 1e6:,.0f} MB"
        else:
            note += " with the C library's allocator, as tcmalloc is not installed"
        yield f"predicted-{name}-{work}", Measured(value=100 * abs(predicted / measured - 1), note=note)


def _predicted_experiment(name: str, batch: int, run: Run) -> Experiment:
    small = SMALL if run.quick else ()
    return preset(f"{name}-hybrid-cosine", [*COMMON, *small, f"optim.global_batch_size={2 if run.quick else batch}"])


def _in_own_process(work: Callable[..., int], *arguments: object, environment: Mapping[str, str] | None = None) -> int:
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def predicted_peak(name: str, batch: int, work: Precision | Literal["scoring"], run: Run) -> int:
    """Bytes that four updates or scorings need beyond what the same on a small network takes; in a thread, as Ray Train trains."""
    set_up(run.device)

    def do(experiment: Experiment) -> None:
        step = _scoring_of(experiment) if work == "scoring" else updates_of(our_trainer(experiment, run.device, precision=work))
        for _ in range(4):
            step()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(do, _predicted_experiment(name, 1, replace(run, quick=True))).result()
        before = resident_bytes()
        thread.submit(do, _predicted_experiment(name, batch, run)).result()
    return peak_rss_bytes() - before


def _scoring_of(experiment: Experiment) -> Callable[[], object]:
    network, inputs = make_model(experiment).eval(), example_inputs(experiment, experiment.optim.global_batch_size)
    return torch.no_grad()(lambda: network(**inputs))


def training_peak(side: str, run: Run) -> int:
    """Bytes that a process needs for two steps beyond what its libraries take."""
    import diffusers.models.unets.unet_2d  # noqa: F401

    set_up(run.device)
    experiment = network_experiment("cifar10", run)
    before = peak_rss_bytes()
    step = baseline_step(experiment, run.device) if side == "baseline" else updates_of(our_trainer(experiment, run.device, precision=side))  # type: ignore[arg-type]
    step()
    step()
    return torch.cuda.max_memory_allocated() if run.device.type == "cuda" else peak_rss_bytes() - before
