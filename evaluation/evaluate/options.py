"""The options of an evaluation: what differs from the experiment's protocol, and how the work is done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from evaluation.sampling.generate import Labels
from training.config.errors import UserError
from training.config.experiment import Extractor, LikelihoodForm, Precision, SamplingConfig

RESULT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TAKEN = re.compile(r"(final|choice|report)|(step|choose|replay|ema-sweep|compare|ablation|nightly|work|last)[-=].*")
"""Names in a run's directory of what pipelines and studies keep there."""


def require_own_name(name: str) -> None:
    """Refuses a name for a person's own result under which something else is kept.

    Raises:
        UserError: It is taken.
    """
    if _TAKEN.fullmatch(name):
        raise UserError(f"results called {name!r} are kept by pipelines and studies, which would lose theirs; give another --name")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationOptions:
    """What may differ from the experiment's own protocol, and how the work is done.

    Attributes:
        num_samples: Images drawn; None takes the experiment's.
        sampling: Sampler; None takes the experiment's.
        labels: Labels of the samples; see `evaluation.sampling.generate.labels_for`.
        low_res_uri: For an upsampler: the first stage's images (`evaluation.sampling.sample_set`), at least as many. Empty
            gives it real training images, downsampled.
        metrics: Further measures; see `evaluation.distances.metrics`. None takes those that cost nothing more: agreement with the
            labels, where the extractor knows them.
        likelihood: Whether bits/dim is taken.
        likelihood_split: "train" or "test"; None takes the experiment's.
        likelihood_num_images: Images of the split; None takes the experiment's.
        likelihood_form: "full", "spaced" or "stratified"; None takes the experiment's.
        likelihood_steps: Network evaluations an image for the latter two; None takes the experiment's.
        purpose: Which draw: "report" for the reported number; another word gives independent noise.
        seed: Of all noise, so that models are compared on the same; None derives it from the experiment's seed and the purpose.
        extractor: Whose features; None takes the experiment's.
        extractor_weights: Path or `s3://` URI of the extractor's weights, where it needs some.
        batch_size: Images at a time; 0 takes what a network of this image size has room for.
        num_workers: 1 works in this process; more are Ray tasks.
        device: Where each of them works: "auto", "cpu", "cuda". With Ray tasks "auto" is what this process sees.
        precision: Of the network while sampling.
        keep_images: Leave the drawn images in the run's directory.
        result_name: Name of the result's file, without its ending.
    """

    num_samples: int | None = None
    sampling: SamplingConfig | None = None
    labels: Labels = "balanced"
    low_res_uri: str = ""
    metrics: tuple[str, ...] | None = None
    likelihood: bool = True
    likelihood_split: Literal["train", "test"] | None = None
    likelihood_num_images: int | None = None
    likelihood_form: LikelihoodForm | None = None
    likelihood_steps: int | None = None
    purpose: str = "report"
    seed: int | None = None
    extractor: Extractor | None = None
    extractor_weights: str | None = None
    batch_size: int = 0
    num_workers: int = 1
    device: str = "auto"
    precision: Precision = "fp32"
    keep_images: bool = False
    result_name: str = "final"
