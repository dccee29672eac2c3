"""Training in bf16 beside training in fp32: do both end at the same place, within the spread of the seeds?

The demo's experiment is trained in both precisions from each seed, on the same batches, timesteps and noise. Both models are then measured
in fp32: the distance of 1,000 images by 20 DDIM steps with eta = 0.5, and bits/dim of the 300 test images by 25 terms of the bound. Each
model is a line of `precision.jsonl`: the same command goes on where it was stopped.

The processor need not be fast in bf16: only the numbers count. Two processes share the work.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bench_quality import Bits, bits_per_dim, draw
from digits_model import NUM_STEPS, trained_model

from evaluation.distances.frechet import Moments, frechet_distance
from evaluation.distances.reference_statistics import compute_reference
from evaluation.features.extractors import load_extractor
from evaluation.records.intervals import student_interval
from training.config.experiment import Precision, SamplingConfig

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
_SAMPLING = SamplingConfig(method="ddim", spacing="20", eta=0.5)
_MEASURES = {"distance": "FD(digits-classifier)", "bits_per_dim": "bits/dim"}


def measure(scratch: Path, seed: int, precision: Precision, num_steps: int, num_images: int) -> dict[str, Any]:
    """Train a model, as far as that is not done, and measure it."""
    torch.set_num_threads(1)
    model, data_uri = trained_model(scratch, num_steps=num_steps, seed=seed, precision=precision)
    extractor = load_extractor("digits-classifier")
    moments = Moments(extractor.dim)
    for start in range(0, num_images, 125):
        moments.update(extractor(draw(model.checkpoint_uri, _SAMPLING, start, min(125, num_images - start))))
    reference = compute_reference(f"{data_uri}/train", extractor, str(scratch / "references")).features
    bits = bits_per_dim(model.checkpoint_uri, data_uri, Bits("stratified", min(300, num_images), 0))
    measures = {"distance": frechet_distance(reference, moments), "bits_per_dim": float(bits.mean())}
    return {"seed": seed, "precision": precision, "num_steps": num_steps, "num_images": num_images, **measures}


def table(models: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each measure in Markdown: means, spread of the seeds, and the difference of seeds that both precisions have."""
    found = {precision: {model["seed"]: model for model in models if model["precision"] == precision} for precision in PRECISIONS}
    seeds = sorted(found["fp32"].keys() & found["bf16"].keys())
    lines = [
        f"{len(seeds)} seeds.",
        "",
        "| measure | fp32 | bf16 | sd of the seeds in fp32 | bf16 less fp32, 95% interval |",
        "|---|---|---|---|---|",
    ]
    for name, words in _MEASURES.items():
        values = {precision: [found[precision][seed][name] for seed in seeds] for precision in PRECISIONS}
        each = [low - high for low, high in zip(values["bf16"], values["fp32"], strict=True)]
        mean, error = statistics.fmean(each), statistics.stdev(each) / len(seeds) ** 0.5
        low, high = student_interval(mean, error, len(seeds) - 1)
        means = " | ".join(f"{statistics.fmean(values[precision]):.3f}" for precision in PRECISIONS)
        lines.append(f"| {words} | {means} | {statistics.stdev(values['fp32']):.3f} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) |")
    return "\n".join(lines)


def read(stored: Path) -> list[dict[str, Any]]:
    """Return all models that were measured."""
    return [json.loads(line) for line in stored.read_text().splitlines()] if stored.exists() else []


def main() -> None:
    """Measure what is missing, then print the table of all that was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--num-steps", type=int, default=NUM_STEPS, help="Updates of each training.")
    parser.add_argument("--num-images", type=int, default=1000, help="Images that are drawn from each model.")
    parser.add_argument("--scratch", type=Path, default=Path(".iddpm/bench-precision"), help="Directory of the models and the results.")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    stored = arguments.scratch / "precision.jsonl"
    common = (arguments.num_steps, arguments.num_images)
    known = {(model["seed"], model["precision"], model["num_steps"], model["num_images"]) for model in read(stored)}
    missing = [(seed, precision) for seed in arguments.seeds for precision in PRECISIONS if (seed, precision, *common) not in known]
    if missing:
        trained_model(arguments.scratch, num_steps=1)  # prepares the data, which the processes share
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(measure, arguments.scratch, seed, precision, *common) for seed, precision in missing]:
            with stored.open("a") as file:
                file.write(json.dumps(done.result()) + "\n")
    print(table([model for model in read(stored) if (model["num_steps"], model["num_images"]) == common]))


if __name__ == "__main__":
    main()
