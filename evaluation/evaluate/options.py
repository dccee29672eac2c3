"""The options of an evaluation: what differs from the experiment's protocol, and the resources that it may use."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from evaluation.records.devices import choose_device
from evaluation.sampling.generate import Labels
from training.config.errors import UserError
from training.config.experiment import Extractor, LikelihoodForm, Precision, SamplingConfig
from training.config.plain import LATER
from training.config.validation import validate

_MAX_NAME = 200  # a file name may have 255 bytes, and it gets an ending
_RESULT_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{,{_MAX_NAME - 1}}}")
_RESERVED_NAMES = re.compile(
    r"(final|choice|report|ensemble|two-stage)|"
    r"(step|choose|replay|ema-sweep|guidance|compare|ablation|nightly|work|last|ancestral|ddim|images)[-=].*"
)
"""Names in a run's directory that pipelines, studies and ablations use."""

_AtLeastOne = Annotated[int, Field(ge=1)]
_AtLeastTwo = Annotated[int, Field(ge=2)]
_AtLeastZero = Annotated[int, Field(ge=0)]
_Seed = Annotated[int, Field(ge=0, lt=2**48)]
"""Those that `derived_seed` makes have 48 bits. Of larger ones, which noise takes modulo 2^64, two could draw the same images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationOptions:
    """Deviations from the experiment's protocol, and resources. None takes the experiment's own value.

    Attributes:
        labels: Labels of the samples; see `evaluation.sampling.generate.labels_for`.
        low_res_uri: For an upsampler: the first stage's images (`evaluation.sampling.sample_set`), at least as many. Empty
            gives it real training images, downsampled.
        metrics: Further metrics; see `evaluation.distances.metrics`.
        memorisation: Search the training set for copies among the samples (`evaluation.memorisation`).
        num_reference_images: Real images behind the reference statistics, 2 or more; all of them in a data set with fewer.
        likelihood_steps: K: network evaluations per image for "stratified" and "learned", strided timesteps for "spaced". `evaluate`
            refuses it for "full".
        purpose: Name of the draw: "report" for the reported number; another word gives independent noise.
        seed: Seed of all noise, to compare models on the same; None derives it from the experiment's seed and the purpose.
        extractor_weights: See `evaluation.features.extractors.load_extractor`.
        batch_size: Images per batch; 0 takes what suits the device.
        num_workers: 1 works in this process; more are Ray tasks.
        device: The device of each worker: "auto", "cpu", "cuda". With Ray tasks "auto" is what this process sees.
        keep_images: Leave the drawn images in the run's directory.
        held_out: Compute `EvaluationResult.held_out` too, which takes a pass over the test images; only a report shows it.
        result_name: Name of the result's file, without its ending.
    """

    num_samples: _AtLeastOne | None = None
    sampling: SamplingConfig | None = None
    labels: Labels = "balanced"
    low_res_uri: str = ""
    metrics: tuple[str, ...] | None = None
    memorisation: bool = False
    likelihood: bool = True
    likelihood_split: Literal["train", "test"] | None = None
    likelihood_num_images: _AtLeastOne | None = None
    likelihood_form: LikelihoodForm | None = None
    likelihood_steps: _AtLeastOne | None = None
    purpose: str = "report"
    seed: _Seed | None = None
    extractor: Extractor | None = None
    extractor_weights: str | None = None
    batch_size: _AtLeastZero = 0
    num_workers: _AtLeastOne = 1
    device: str = "auto"
    precision: Precision = "fp32"
    keep_images: bool = False
    held_out: bool = True
    result_name: str = "final"
    num_reference_images: _AtLeastTwo | None = field(default=None, metadata=LATER)

    @property
    def own_device(self) -> str:
        """The device of this process."""
        return choose_device(self.device if self.num_workers <= 1 else "auto")

    @property
    def worker_device(self) -> str:
        """The device of each worker."""
        return self.own_device if self.num_workers <= 1 or self.device == "auto" else self.device

    def validated(self) -> EvaluationOptions:
        """Return the options, or refuse a value that is of another type or out of its range."""
        if not _RESULT_NAME.fullmatch(self.result_name):
            raise UserError(
                f"result_name: {self.result_name!r} is no file name; use at most {_MAX_NAME} letters, digits, dots, dashes and underscores"
            )
        options: EvaluationOptions = validate(
            EvaluationOptions, {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        )
        return options


def require_own_name(name: str) -> None:
    """Refuse a name of a person's result that pipelines and studies use."""
    if _RESERVED_NAMES.fullmatch(name):
        raise UserError(f"the name {name!r} is reserved for results of pipelines and studies, which it would replace; give another --name")
