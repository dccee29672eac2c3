"""All rows of the suite: the measured thing, its baseline and its goal. The groups fill in the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from machine import has_amx
from measuring import Measured

Unit = Literal[
    "times", "%", "ppm", "s", "s a step", "MB", "GFLOP/s", "GB/s", "images/s", "of 2 workers", "requests", "requests/s", "a minute"
]
Verdict = Literal["met", "MISSED", "", "FAILED"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row before it is measured.

    Attributes:
        key: `<group>.<name>`; the group is the file `bench_<group>.py`.
        what: What is measured.
        against: The named baseline; empty where the number stands for itself.
        unit: Of the number; "times" is how many times better than the baseline.
        goals: Device type -> goal, None for no goal. The row is measured on these devices.
        at_least: Whether the goal is a lower bound.
        reason: Reason for which the goal may be missed, as a profile shows it; printed if it is missed.
    """

    key: str
    what: str
    against: str
    unit: Unit
    goals: Mapping[str, float | None]
    at_least: bool = True
    reason: str = ""

    @property
    def group(self) -> str:
        """The group that measures it."""
        return self.key.split(".")[0]

    def verdict(self, measured: Measured | None, device: str) -> Verdict:
        """Return the verdict: was the goal met on that type of device?"""
        goal = self.goals[device]
        if measured is None:
            return "FAILED"
        if goal is None:
            return ""
        return "met" if (measured.value >= goal if self.at_least else measured.value <= goal) else "MISSED"

    def goal_words(self, device: str) -> str:
        """The goal for a person."""
        goal = self.goals[device]
        return "" if goal is None else f"{'>=' if self.at_least else '<='} {goal:g}"


_FP32 = (
    "a step cannot be faster than its convolutions: were they all, it would be as many times as fast as their peak is above the share "
    "that the baseline reaches"
)
_BF16 = (
    "under half of a step are convolutions, and the rest (normalisation, SiLU, casts, optimiser) gains little; where the processor "
    "has no fast bf16 at all, a training refuses it"
)
_SAMPLING = "70% of our time are convolutions, which both sides take from the same library"


_TWO_WORKERS = (
    "beside it see what the machine gives two processes that share nothing; gloo's average of the gradients takes 2% of an update"
)


def _growth() -> list[Row]:
    """Rows with an upper bound, on the processor alone."""
    of_limit = "the 1 MiB of an object that Kubernetes and Argo take"
    table: tuple[tuple[str, str, str, Unit, float | None], ...] = (
        ("kubernetes-rayjobs", "requests to the Kubernetes API by 100 trainings on RayJobs and the reaper", "", "requests/s", 1),
        ("kubernetes-workers", "requests of a training with 64 workers in 8 pods", "with 1 worker", "times", 1),
        ("mlflow-logging", "requests to MLflow of a training that logs 50 metrics a second", "", "a minute", 7),
        ("mlflow-reaper", "requests to MLflow of the reaper, for each open run, of 10,000 runs", "", "requests", 1),
        ("workflow-12", "Workflow of a sweep of 12 trials", of_limit, "%", 100),
        ("workflow-60", "Workflow of a sweep of 60 trials, the most that is accepted", of_limit, "%", 100),
        ("workflow-200", "Workflow of a sweep of 200 trials, which is refused before it starts", of_limit, "%", None),
        ("runs", "iddpm runs with 10,000 runs in Kubeflow Pipelines and in MLflow, by the clock", "", "s", 5),
        ("doctor", "iddpm doctor with them, 200 nodes and 2,000 pods, by the clock", "", "s", 5),
        ("reaper", "the reaper with 10,000 runs in MLflow, 100 of them open, and 100 RayJobs, by the clock", "", "s", 5),
        ("checkpoint", "requests to S3 to store a checkpoint beside 1,000 others", "the first one", "times", 1),
        ("resume", "requests to S3 to find the last of 1,000 checkpoints and check it", "", "requests", 30),
        ("history", "requests to S3 to read the scores of 1,000 checkpoints, as each start does, for each", "", "requests", 1.1),
        ("staging", "requests to S3 to stage a data set of 10,000 shards, for each shard", "", "requests", 2),
        ("staged-again", "requests to S3 at the next start on that node", "", "requests", 1),
        ("streaming", "requests to S3 to the first batch where the same data set is streamed", "", "requests", 100),
    )
    return [
        Row(key=f"growth.{name}", what=what, against=against, unit=unit, goals={"cpu": goal}, at_least=False)
        for name, what, against, unit, goal in table
    ]


DEPTH, TERMS = 204, 12_288
"""CIFAR-10's network: layers one after another, and terms of its longest sum, a GroupNorm's of 12 channels at 32 px."""


def _roofline() -> list[Row]:
    return [
        Row(key=f"roofline.{key}-{dtype}", what=f"{what}, {dtype}", against="", unit="GFLOP/s", goals={"cpu": None, "cuda": None})
        for key, what in (("convolution", "convolution"), ("matrix-product", "matrix product with the same factors"))
        for dtype in ("fp32", "bf16")
    ]


def _numerics() -> list[Row]:
    """Rows whose goal is the rounding of float32, in millionths, as a relative root mean square.

    An addition rounds by u / sqrt(3) of its result, u = 2^-24. A sum of terms of any sign grows as the square root of their number, so
    n terms that are added one after another have the error u sqrt(n / 6). A layer passes an error on as it is, because a norm follows.
    So L layers have u sqrt(L n / 6), and the difference of two devices has sqrt(2) times that. The loss is a square, which doubles it:
    2 u sqrt(L n / 3). A gradient went through 2 L layers: u sqrt(2 L n / 3). Kernels add in blocks, which is better: two orders of the
    sums on a processor differed by 0.07 ppm in the loss and by 1.2 ppm in the gradient. With the inputs of the convolutions rounded to
    TF32 the gradient differed by 205 ppm, which is above its goal.
    """
    longest = 1e6 * 2**-24 * math.sqrt(DEPTH * TERMS / 3)
    return [
        Row(
            key=f"numerics.{name}",
            what=what,
            against="the same step on the processor",
            unit="ppm",
            goals={"cuda": round(goal)},
            at_least=False,
        )
        for name, what, goal in (
            ("loss", "loss of each image of a training step, CIFAR-10, fp32 without TF32, how far off", 2 * longest),
            ("gradient", "gradient of that step, how far off", math.sqrt(2) * longest),
        )
    ]


def _card() -> list[Row]:
    step = "training step, CIFAR-10, bf16"
    table: tuple[tuple[str, str, str, Unit, float | None], ...] = (
        ("fused", "update of CIFAR-10's weights by AdamW, fused", "AdamW, foreach", "times", 1.0),
        ("waiting", f"share of a {step}, that waits for its batch from the loader", "", "%", 2.0),
        ("compile", f"{step}, torch.compile", "the same step, eager", "times", 1.0),
        ("graphs", "the same in its mode reduce-overhead (CUDA graphs), which no training uses", "torch.compile alone", "times", None),
    )
    return [
        Row(key=f"card.{name}", what=what, against=against, unit=unit, goals={"cuda": goal}, at_least=unit == "times")
        for name, what, against, unit, goal in table
    ]


def _training() -> list[Row]:
    rows = []
    for name, network in (
        ("cifar10", "CIFAR-10"),
        ("imagenet64", "ImageNet-64"),
        ("upsampler", "upsampler to 128 px, C = 96"),
    ):
        for precision, goals, reason in (
            ("fp32", {"cpu": 1.3, "cuda": None}, _FP32),
            ("bf16", {"cpu": 3.5 if has_amx() else 1.5, "cuda": 3.0}, _BF16),
        ):
            rows.append(
                Row(
                    key=f"training.{name}-{precision}",
                    what=f"training step, {network}, {precision}",
                    against="diffusers, eager fp32 (on a GPU TF32)",
                    unit="times",
                    goals=goals,
                    reason=reason,
                )
            )
        rows.append(
            Row(
                key=f"training.{name}-mfu",
                what=f"MFU of that bf16 step, {network}",
                against="the card's dense peak",
                unit="%",
                goals={"cuda": 40.0},
            )
        )
    return rows


def _predicted_memory() -> list[Row]:
    return [
        Row(
            key=f"memory.predicted-{name}",
            what=f"`iddpm cost`'s peak memory of {words}, how far off",
            against="the resident memory of a process with tcmalloc",
            unit="%",
            goals={"cpu": 10.0},
            at_least=False,
            reason="the heap has holes, which the count of live tensors does not see; without tcmalloc, which the image has (Debian, "
            "Ubuntu: libtcmalloc-minimal4), it has more",
        )
        for name, words in (
            ("fashion-mnist-fp32", "training, Fashion-MNIST, batch 128, fp32"),
            ("cifar10-fp32", "training, CIFAR-10, batch 8, fp32"),
            ("cifar10-bf16", "training, CIFAR-10, batch 8, bf16"),
            ("imagenet64-fp32", "training, ImageNet-64, batch 2, fp32"),
            ("fashion-mnist-scoring", "scoring, Fashion-MNIST, 128 images at once"),
            ("cifar10-scoring", "scoring, CIFAR-10, 32 images at once"),
        )
    ]


ROWS: tuple[Row, ...] = (
    *_roofline(),
    Row(key="roofline.copy", what="copy in memory", against="", unit="GB/s", goals={"cpu": None, "cuda": None}),
    *_numerics(),
    *_training(),
    Row(key="training.digits", what="training of the demo's network", against="", unit="images/s", goals={"cpu": None, "cuda": None}),
    Row(key="training.own", what="training of the network for one's own images on a CPU", against="", unit="images/s", goals={"cpu": None}),
    Row(
        key="training.ema",
        what="average of CIFAR-10's weights, one update (foreach)",
        against="parameter by parameter",
        unit="times",
        goals={"cpu": None, "cuda": None},
    ),
    Row(
        key="training.loader",
        what="training step on data from the loader, CIFAR-10's network",
        against="the same step on images in memory",
        unit="%",
        goals={"cpu": 2.0},
        at_least=False,
    ),
    *_card(),
    Row(
        key="data.prepare-exact",
        what="prepare JPEGs of 500, 1000, 2000 px to 64 px, exact area; mean of the three",
        against="the released code's method",
        unit="times",
        goals={"cpu": 1.4},
    ),
    Row(
        key="data.prepare-reduced",
        what="the same with reduced decoding",
        against="the released code's method",
        unit="times",
        goals={"cpu": 2.5},
    ),
    Row(
        key="data.load-wall",
        what="load images of 64 px, by the clock",
        against="torch DataLoader, 2 workers, PNG files",
        unit="times",
        goals={"cpu": 15.0},
    ),
    Row(
        key="data.load-cpu",
        what="load images of 64 px, a processor second",
        against="torch DataLoader, 2 workers, PNG files",
        unit="times",
        goals={"cpu": 50.0},
    ),
    Row(
        key="data.waiting",
        what="share of a 50 ms step on an accelerator that waits for its batch of 128",
        against="",
        unit="%",
        goals={"cpu": 2.0},
        at_least=False,
    ),
    Row(
        key="sampling.ancestral-250",
        what="an image by 250 ancestral steps, CIFAR-10's network at C = 64",
        against="diffusers' network and DDPMScheduler",
        unit="times",
        goals={"cpu": 1.5, "cuda": None},
        reason=_SAMPLING,
    ),
    Row(
        key="sampling.ddim-50",
        what="an image by 50 DDIM steps, the same network",
        against="diffusers' network and DDIMScheduler",
        unit="times",
        goals={"cpu": 1.5, "cuda": None},
        reason=_SAMPLING,
    ),
    Row(
        key="sampling.dpm-solver-20",
        what="an image by 20 DPM-Solver++ steps, the same network",
        against="diffusers' network and DPMSolverMultistepScheduler",
        unit="times",
        goals={"cpu": 1.5, "cuda": None},
        reason=_SAMPLING,
    ),
    Row(
        key="sampling.end-to-end-bf16",
        what="an image by 20 DPM-Solver++ steps in bf16",
        against="the paper's 250 ancestral steps in diffusers, fp32",
        unit="times",
        goals={"cpu": None, "cuda": None},
    ),
    Row(
        key="sampling.batch",
        what="a network evaluation of 250 images of the Fashion-MNIST preset, as many at a time as the sampler takes",
        against="all at once",
        unit="times",
        goals={"cpu": 1.0},
    ),
    *(
        Row(
            key=f"sampling.set-{name}",
            what=f"{count} images by DPM-Solver++, {network}, as many at a time as the sampler takes",
            against="diffusers' network and DPMSolverMultistepScheduler, all at once",
            unit="times",
            goals={"cpu": 1.5},
            reason=_SAMPLING,
        )
        for name, count, network in (
            ("fashion-mnist", 250, "the Fashion-MNIST preset's network"),
            ("cifar10", 64, "CIFAR-10's network at C = 64"),
        )
    ),
    Row(
        key="quality.evaluations",
        what="network evaluations an image by 20 DDIM steps with eta = 0.5, how many times fewer",
        against="the paper's 250 ancestral steps",
        unit="times",
        goals={"cpu": 10.0},
    ),
    Row(
        key="quality.distance",
        what="FD(digits-classifier) by them, how many times greater",
        against="the paper's 250 ancestral steps",
        unit="times",
        goals={"cpu": 1.3},
        at_least=False,
    ),
    Row(
        key="quality.distance-ode",
        what="the same by 20 DPM-Solver++ steps: no noise is added, which costs this model more than few steps do",
        against="the paper's 250 ancestral steps",
        unit="times",
        goals={"cpu": None},
        at_least=False,
    ),
    Row(
        key="quality.likelihood",
        what="bits/dim of the digits at equal standard error, network evaluations fewer",
        against="all 1,000 terms of the bound",
        unit="times",
        goals={"cpu": 30.0},
    ),
    Row(
        key="evaluation.features",
        what="Inception features, fp32",
        against="torch-fidelity as shipped",
        unit="times",
        goals={"cpu": 1.6, "cuda": None},
    ),
    Row(
        key="evaluation.features-lite0",
        what="EfficientNet-Lite0 features of 64 images, a few at a time",
        against="the same network on all of them at once",
        unit="times",
        goals={"cpu": 1.3},
    ),
    Row(
        key="evaluation.distance",
        what="Frechet distance of 2,048 dimensions",
        against="pytorch-fid (scipy's sqrtm)",
        unit="times",
        goals={"cpu": 12.0},
    ),
    Row(
        key="evaluation.distance-eigvals",
        what="the same",
        against="torch-fidelity (numpy's eigvals)",
        unit="times",
        goals={"cpu": None},
    ),
    Row(
        key="checkpoints.stall",
        what="training waits for a checkpoint of CIFAR-10's network, share of the interval on an H100",
        against="10,000 updates of batch 128 at 35% MFU",
        unit="%",
        goals={"cpu": 1.0},
        at_least=False,
    ),
    Row(key="startup.help", what="iddpm --help", against="", unit="s", goals={"cpu": 0.5}, at_least=False),
    Row(
        key="startup.first-step",
        what="python -m training.launch.torchrun to the end of its first update, digits",
        against="",
        unit="s",
        goals={"cpu": None},
        at_least=False,
    ),
    Row(
        key="startup.services-fresh",
        what="S3 and MLflow up in an empty folder",
        against="",
        unit="s",
        goals={"cpu": 8.0},
        at_least=False,
    ),
    Row(
        key="startup.services-again",
        what="the same where their data exists",
        against="",
        unit="s",
        goals={"cpu": 8.0},
        at_least=False,
    ),
    Row(
        key="startup.services-running",
        what="the same where they run already",
        against="",
        unit="s",
        goals={"cpu": None},
        at_least=False,
    ),
    Row(key="startup.services-memory", what="S3 and MLflow, resident", against="", unit="MB", goals={"cpu": None}, at_least=False),
    Row(
        key="pipeline.step",
        what="a step of a local pipeline beyond its own work",
        against="the same functions called",
        unit="s a step",
        goals={"cpu": 1.0},
        at_least=False,
    ),
    Row(
        key="pipeline.run",
        what="a local pipeline of three empty steps, whole",
        against="the same functions called",
        unit="s",
        goals={"cpu": None},
        at_least=False,
    ),
    *_predicted_memory(),
    Row(
        key="memory.training-fp32",
        what="peak memory of training, CIFAR-10, batch 8, fp32, how many times as much",
        against="diffusers' UNet2DModel, the same step",
        unit="times",
        goals={"cpu": None, "cuda": None},
        at_least=False,
    ),
    Row(
        key="memory.training-bf16",
        what="the same, bf16",
        against="diffusers' UNet2DModel, fp32",
        unit="times",
        goals={"cpu": None, "cuda": None},
        at_least=False,
    ),
    Row(
        key="memory.moments",
        what="state of a Frechet distance of 50,000 images",
        against="their features, 410 MB",
        unit="MB",
        goals={"cpu": 40.0},
        at_least=False,
    ),
    Row(
        key="scoring.training",
        what="training step while a checkpoint is scored on another core",
        against="the same step alone",
        unit="%",
        goals={"cpu": 5.0},
        at_least=False,
    ),
    Row(
        key="scaling.machine",
        what="two processes that share nothing: what the machine gives two workers",
        against="one process",
        unit="of 2 workers",
        goals={"cpu": None},
    ),
    Row(
        key="scaling.prepare",
        what="prepare photographs by 2 Ray tasks",
        against="1 task",
        unit="of 2 workers",
        goals={"cpu": 0.9},
        reason=_TWO_WORKERS,
    ),
    Row(
        key="scaling.train",
        what="training step of CIFAR-10's network, batch 32, by 2 workers (gloo)",
        against="1 worker, the same batch",
        unit="of 2 workers",
        goals={"cpu": 0.9},
        reason=_TWO_WORKERS,
    ),
    Row(
        key="scaling.generate",
        what="draw images of digits by 2 Ray tasks",
        against="1 task",
        unit="of 2 workers",
        goals={"cpu": 0.95},
        reason=_TWO_WORKERS,
    ),
    *_growth(),
)

GROUPS: tuple[str, ...] = tuple(dict.fromkeys(row.group for row in ROWS))


def rows_of(groups: tuple[str, ...] | list[str], device: str) -> tuple[Row, ...]:
    """The rows of these groups that are measured on that type of device, in the table's order."""
    return tuple(row for row in ROWS if row.group in groups and device in row.goals)
