"""One training step beside diffusers' `UNet2DModel` of the same architecture; `make bench-train`.

    python tests/benchmarks/bench_train.py [--write]     prints a table; --write puts it into BENCHMARKS.md

The baseline is what a reader would write from the paper with that library: eager float32, a noise-prediction step, AdamW as
torch makes it by default, the average of the weights parameter by parameter. Ours is a whole update of `training.loop`:
keyed noise and timesteps, L_hybrid with its bound, fused AdamW, the average, what is logged. So ours does more in a step.

All variants take turns in one process; the number is the least of several times (processor seconds of one thread on a CPU,
the device's own clock on a GPU), and the ratio is baseline over ours. The roofline is the speed of the network's
convolutions alone, measured in the same run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from diffusers_twin import diffusers_twin

from training.bare import RandomImages
from training.config import Experiment, Resources
from training.cost import CARDS, TRAINING_PASSES, count_macs
from training.loop import Trainer, normalize
from training.presets import preset

NETWORKS = {"CIFAR-10": "cifar10-hybrid-cosine", "ImageNet-64": "imagenet64-hybrid-cosine"}
CPU_BATCH = {"CIFAR-10": 8, "ImageNet-64": 2}
GPU_BATCH = {"CIFAR-10": 128, "ImageNet-64": 128}
GOALS = {"fp32": 1.0, "bf16": 1.7}
GPU_GOAL, MFU_GOAL = 3.0, 0.35
BEGIN, END = "<!-- bench-train begins -->", "<!-- bench-train ends -->"


def baseline_step(experiment: Experiment, device: torch.device) -> Callable[[], object]:
    """A step of the baseline on the same images."""
    network = diffusers_twin(experiment.model, experiment.data.image_size).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0)
    average = [parameter.detach().clone() for parameter in network.parameters()]
    source = RandomImages(experiment, device)

    def step() -> None:
        x_0 = normalize(source.images)
        t = torch.rand(len(x_0), device=device) * 1000
        noise = torch.randn_like(x_0)
        mixed = 0.7 * x_0 + 0.7 * noise
        loss = (network(mixed, t).sample[:, :3] - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for kept, parameter in zip(average, network.parameters(), strict=True):
                kept.mul_(0.9999).add_(parameter, alpha=1e-4)

    return step


def our_step(experiment: Experiment, device: torch.device, *, precision: str, compiled: bool) -> Callable[[], object]:
    """An update of the loop on the same images."""
    resources = Resources(precision=precision, compile=compiled, num_gpus_per_worker=int(device.type == "cuda"))  # type: ignore[arg-type]
    trainer = Trainer(experiment, resources, RandomImages(experiment, device), device=device)
    batches = trainer.batches.batches(0, 10**9)

    def step() -> None:
        trainer._update(next(batches))
        trainer.step += 1

    return step


def convolution_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a large 3x3 convolution, forward: what the network could reach if it were nothing else."""
    x = torch.randn(16, 256, 32, 32, device=device, dtype=dtype)
    weight = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
    flops = 2 * 16 * 32 * 32 * 256 * 256 * 9
    with torch.no_grad():
        return flops / min(seconds_of(lambda: torch.nn.functional.conv2d(x, weight, padding=1), device) for _ in range(5))


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Processor seconds on a CPU, the device's seconds on a GPU."""
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    started = time.process_time()
    step()
    return time.process_time() - started


def measure(name: str, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """The rows of one network."""
    on_gpu = device.type == "cuda"
    batch = (GPU_BATCH if on_gpu else CPU_BATCH)[name]
    experiment = preset(NETWORKS[name], [f"optim.global_batch_size={batch}", "model.dropout=0", "diffusion.timestep_sampler=uniform"])
    variants: dict[str, Callable[[], object]] = {"diffusers, eager fp32": baseline_step(experiment, device)}
    for precision in ("fp32", "bf16"):
        variants[f"ours, {precision}"] = our_step(experiment, device, precision=precision, compiled=on_gpu)
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for step in variants.values():
        for _ in range(3 if on_gpu else 1):
            step()
    for _ in range(repeats):
        for variant, step in variants.items():
            times[variant].append(seconds_of(step, device))
    flops = 2 * TRAINING_PASSES * sum(count_macs(experiment).values()) * batch
    peaks = {"fp32": convolution_peak(device, torch.float32), "bf16": convolution_peak(device, torch.bfloat16)}
    card = next((c for key, c in CARDS.items() if on_gpu and key in torch.cuda.get_device_name(device)), None)
    base = min(times["diffusers, eager fp32"])
    rows = []
    for variant, taken in times.items():
        best, precision = min(taken), "bf16" if "bf16" in variant else "fp32"
        rows.append(
            {
                "network": name,
                "batch": batch,
                "variant": variant,
                "ratio": base / best,
                "spread": max(taken) / best - 1,
                "share_of_convolution_peak": flops / best / peaks[precision],
                "images_per_second": batch / best if on_gpu else None,
                "mfu": flops / best / card.peak_flops if card else None,
            }
        )
    return rows


def table(rows: list[dict[str, Any]], device: torch.device) -> str:
    """Markdown, with the machine and the versions."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.processor() or platform.machine()} CPU, one thread"
    lines = [
        f"Measured {datetime.date.today().isoformat()} on {where}, torch {torch.__version__}, by `make bench-train`.",
        "",
        "| network | batch | variant | times the baseline | spread | share of measured convolution peak | images/s | MFU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed = f"{row['images_per_second']:,.0f}" if row["images_per_second"] else "-"
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else "-"
        lines.append(
            f"| {row['network']} | {row['batch']} | {row['variant']} | {row['ratio']:.2f} | {row['spread']:.0%} "
            f"| {row['share_of_convolution_peak']:.0%} | {speed} | {mfu} |"
        )
    return "\n".join(lines)


def missed(rows: list[dict[str, Any]], device: torch.device) -> list[str]:
    """Goals that this run did not reach."""
    told = []
    for row in rows:
        if not row["variant"].startswith("ours"):
            continue
        precision = row["variant"].rpartition(" ")[2]
        if device.type == "cuda":
            if precision == "bf16" and row["ratio"] < GPU_GOAL:
                told.append(f"{row['network']} bf16: {row['ratio']:.2f} times the baseline, goal {GPU_GOAL}")
            if precision == "bf16" and row["mfu"] is not None and row["mfu"] < MFU_GOAL:
                told.append(f"{row['network']} bf16: MFU {row['mfu']:.1%}, goal {MFU_GOAL:.0%}")
        elif (precision == "fp32" or "avx512_bf16" in Path("/proc/cpuinfo").read_text()) and row["ratio"] < GOALS[precision]:
            told.append(f"{row['network']} {precision}: {row['ratio']:.2f} times the baseline, goal {GOALS[precision]}")
    return told


def write(markdown: str, path: Path) -> None:
    """Puts the table between its marks."""
    text = path.read_text()
    new = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{markdown}\n{END}", text, flags=re.DOTALL)
    path.write_text(new)


def main() -> int:
    """Runs, prints, and returns 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description="One training step beside diffusers' network.")
    parser.add_argument("--repeats", type=int, default=0, help="timed steps a variant; 0 takes 5 on a CPU, 20 on a GPU")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    repeats = options.repeats or (20 if device.type == "cuda" else 5)
    rows = [row for name in NETWORKS for row in measure(name, device, repeats)]
    markdown = table(rows, device)
    print(json.dumps(rows) if options.json else markdown)
    if options.write:
        write(markdown, Path(__file__).parents[2] / "BENCHMARKS.md")
    failures = missed(rows, device)
    for failure in failures:
        print(f"missed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
