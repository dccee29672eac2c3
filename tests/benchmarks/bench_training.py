"""Training steps of three networks beside diffusers' of the same architecture; the average of the weights; the loader."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator

import torch
from measuring import Measured, Run, convolution_peak, excess_percent, of, ratio, take_turns
from photographs import crops_of_photographs
from training_steps import NETWORKS, baseline_step, move_by_parameter, network_experiment, our_trainer, set_up, updates_of

from training.config.experiment import Experiment
from training.config.files import read_experiment_file
from training.config.presets import preset
from training.cost.accelerators import CARDS
from training.cost.estimate import TRAINING_PASSES, count_macs
from training.cost.suggest import suggest_experiment
from training.data.loading.loader import Loader
from training.models.ema import EMA
from training.models.unet import make_model


def measure(run: Run) -> Iterator[tuple[str, Measured]]:
    """The rows of this group."""
    set_up(run.device)
    peaks = {
        "fp32": convolution_peak(run.device, torch.float32, quick=run.quick),
        "bf16": convolution_peak(run.device, torch.bfloat16, quick=run.quick),
    }
    for name in NETWORKS:
        yield from _steps(name, run, peaks)
        gc.collect()
    yield "digits", _throughput(preset("digits-hybrid-cosine"), run)
    if run.device.type == "cpu":
        yield "own", _throughput(_own_images_experiment(), run)
    yield "ema", _average(run)
    if run.device.type == "cpu":
        yield "loader", _from_loader(run)


def _steps(name: str, run: Run, peaks: dict[str, float]) -> Iterator[tuple[str, Measured]]:
    on_gpu = run.device.type == "cuda"
    experiment = network_experiment(name, run)
    sides = {"baseline": baseline_step(experiment, run.device)}
    for precision in ("fp32", "bf16"):
        sides[precision] = updates_of(our_trainer(experiment, run.device, precision=precision))  # type: ignore[arg-type]
    times = take_turns(sides, rounds=run.rounds(20 if on_gpu else 3), warmup=3 if on_gpu else 1, device=run.device)
    batch, macs = experiment.optim.global_batch_size, sum(count_macs(experiment).values())
    flops = 2 * TRAINING_PASSES * macs * batch

    def share(side: str) -> float:
        return flops / statistics.median(times[side]) / peaks["bf16" if side == "bf16" else "fp32"]

    for precision in ("fp32", "bf16"):
        note = f"batch {batch}; {share(precision):.0%} of the convolutions' peak, the baseline {share('baseline'):.0%}"
        if on_gpu:
            note += f"; {batch / statistics.median(times[precision]):,.0f} images/s"
        speed = {"forward_macs": float(macs), "flops_per_second": flops / statistics.median(times[precision])}
        yield f"{name}-{precision}", ratio(times["baseline"], times[precision], note, **speed)
    card = next((card for key, card in CARDS.items() if on_gpu and key in torch.cuda.get_device_name(run.device)), None)
    if card is not None:
        each = [100 * flops / seconds / card.peak_flops for seconds in times["bf16"]]
        yield f"{name}-mfu", Measured(value=statistics.median(each), low=min(each), high=max(each))


def _own_images_experiment() -> Experiment:
    """The experiment that `iddpm init` suggests for thousands of small colour images and a CPU."""
    return read_experiment_file(suggest_experiment(num_images=4_000, min_side=64, channels=3, num_classes=10, card="CPU", name="own"))


def _throughput(experiment: Experiment, run: Run) -> Measured:
    times = take_turns(
        {"step": updates_of(our_trainer(experiment, run.device, precision="fp32"))}, rounds=run.rounds(20), device=run.device
    )
    batch, macs = experiment.optim.global_batch_size, sum(count_macs(experiment).values())
    flops = 2 * TRAINING_PASSES * macs * batch
    speed = {"forward_macs": float(macs), "flops_per_second": flops / statistics.median(times["step"])}
    return of([batch / seconds for seconds in times["step"]], f"batch {batch}, fp32", **speed)


def _average(run: Run) -> Measured:
    model = make_model(network_experiment("cifar10", run)).to(run.device)
    ours, kept = EMA(model, [0.9999]), [parameter.detach().clone() for parameter in model.parameters()]
    parameters = list(model.parameters())
    sides = {"theirs": lambda: move_by_parameter(kept, parameters), "ours": lambda: ours.update(model)}
    times = take_turns(sides, rounds=run.rounds(20), warmup=3, device=run.device)
    moved = 3 * 4 * sum(parameter.numel() for parameter in parameters)  # both read, one written
    return ratio(times["theirs"], times["ours"], f"ours moves {moved / statistics.median(times['ours']) / 1e9:.0f} GB/s")


def _from_loader(run: Run) -> Measured:
    """Measured by the clock: a thread of the loader's own is part of what it costs."""
    experiment = network_experiment("cifar10", run, batch=2)
    size = experiment.optim.global_batch_size
    with crops_of_photographs(512, 32) as crops:
        loader = Loader(crops.data_uri, seed=0, global_batch_size=size, cache_dir=crops.cache)
        memory, stored = (our_trainer(experiment, run.device, precision="fp32", source=source) for source in (None, loader))
        times = take_turns({"memory": updates_of(memory), "stored": updates_of(stored)}, rounds=run.rounds(24), clock="wall")
    return excess_percent(times["memory"], times["stored"], f"batch {size}")
