"""The experiment: one frozen, typed, validated object with everything that can change a result.

A preset's name plus overrides makes it (`training.config.presets`), JSON carries it, MLflow logs it, every checkpoint
contains it. `Resources`, which may change speed but not the result, is a separate object.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from training.config.errors import UserError
from training.config.overrides import apply_words
from training.config.sections import DataConfig as DataConfig
from training.config.sections import DiffusionConfig as DiffusionConfig
from training.config.sections import EvaluationConfig as EvaluationConfig
from training.config.sections import Extractor as Extractor
from training.config.sections import LikelihoodForm as LikelihoodForm
from training.config.sections import ModelConfig as ModelConfig
from training.config.sections import Objective as Objective
from training.config.sections import OptimConfig as OptimConfig
from training.config.sections import Precision as Precision
from training.config.sections import Prediction as Prediction
from training.config.sections import Resize as Resize
from training.config.sections import SamplingConfig as SamplingConfig
from training.config.sections import SamplingMethod as SamplingMethod
from training.config.sections import Schedule as Schedule
from training.config.sections import TimestepSampler as TimestepSampler
from training.config.sections import Variance as Variance
from training.config.spacing import parse_spacing
from training.config.validation import FORBID_UNKNOWN, require, require_at_least, validate


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """The settings of a training and its evaluation: everything that can change a result.

    Attributes:
        name: Name of the preset that it was made from, or the user's own; part of the run's directory.
        seed: Keys every random draw in training and evaluation, in [0, 2^32).
    """

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    name: str
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        # It becomes the name of the run's directory.
        require(bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name)), "name", f"{self.name!r} is not a name like 'my-experiment'")
        factor = 2 ** (len(self.model.channel_mult) - 1)
        require(
            self.data.image_size % factor == 0,
            "data.image_size",
            f"{self.data.image_size} is not divisible by {factor}, which the {len(self.model.channel_mult)} stages of model.channel_mult "
            f"need; write a multiple of {factor}, or fewer entries in model.channel_mult",
        )
        sizes = [self.data.image_size // 2**i for i in range(len(self.model.channel_mult))]
        missing = [size for size in self.model.attention_resolutions if size not in sizes]
        require(
            not missing,
            "model.attention_resolutions",
            f"{missing} is not among the stages of images of {self.data.image_size} pixels, which are {sizes}; write "
            f"model.attention_resolutions={','.join(str(size) for size in sizes if size in self.model.attention_resolutions) or sizes[-1]}"
            " beside data.image_size, or other sizes of these",
        )
        require(
            not self.model.class_conditional or self.data.num_classes > 0,
            "model.class_conditional",
            f"data set {self.data.name!r} has no labels (data.num_classes is 0)",
        )
        require(
            self.model.low_res_size is None or self.data.image_size % self.model.low_res_size == 0,
            "model.low_res_size",
            f"{self.model.low_res_size} does not divide data.image_size {self.data.image_size}",
        )
        require(0 <= self.seed < 2**32, "seed", f"must be in [0, 2^32), got {self.seed}")
        for path, sampling in (
            ("evaluation.sampling", self.evaluation.sampling),
            ("evaluation.scoring_sampling", self.evaluation.scoring_sampling),
        ):
            if sampling.spacing:
                try:
                    parse_spacing(sampling.spacing, self.diffusion.num_timesteps)
                except ValueError as error:
                    raise UserError(f"{path}.spacing: {error}") from error
        require(
            self.evaluation.likelihood_steps <= self.diffusion.num_timesteps,
            "evaluation.likelihood_steps",
            f"{self.evaluation.likelihood_steps} is more than diffusion.num_timesteps ({self.diffusion.num_timesteps})",
        )

    @property
    def out_channels(self) -> int:
        """The number of channels of the network's output: the prediction, and as many again for a learned variance."""
        return self.data.image_channels * (2 if self.diffusion.variance == "learned_range" else 1)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain nested dictionary, tuples as lists, as JSON carries it."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def to_json(self) -> str:
        """Return canonical JSON: fields in their declared order, two spaces, a newline at the end."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Experiment:
        """Read what `to_json` wrote.

        Raises:
            UserError: The text is not JSON, or a field is unknown, missing or out of its range.
        """
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"not an experiment's JSON: {error}") from error
        return cls.from_dict(value)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Experiment:
        """Build an experiment from nested dictionaries, with type conversion.

        Raises:
            UserError: A field is unknown, missing or out of its range.
        """
        experiment: Experiment = validate(cls, value)
        return experiment

    def override(self, overrides: Iterable[str]) -> Experiment:
        """Return a copy with fields replaced.

        Args:
            overrides: Each `section.field=value`, the value as JSON or a plain word: `diffusion.vlb_weight=0.01`,
                `model.channel_mult=1,2,2`, `optim.grad_clip_norm=null`, `seed=3`.

        Raises:
            UserError: An override is malformed, names no field, or gives a value that the field can't take.
        """
        plain = self.to_dict()
        apply_words(plain, overrides)
        return Experiment.from_dict(plain)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """The machines of a training; they change its speed, never its result beyond the rounding of floating point sums.

    Attributes:
        num_workers: Data-parallel training processes, 1 or more.
        min_workers: Processes, 0 to `num_workers`. With fewer machines available the run goes on with as few as this; 0 means
            that it takes `num_workers` and no fewer.
        num_gpus_per_worker: GPUs of each process: 1, or 0 to train on the CPU.
        microbatch_size: Images that a worker passes through the network at once; their gradients are added up. 0 takes all of a
            worker's part of the batch on a CPU, and on a GPU the largest part of it that fits into memory, found by trial.
        precision: Numbers inside the network: "fp32", or "bf16" for autocast (the weights stay float32).
        compile: Pass the network through torch.compile; the first step takes minutes longer, the others are faster.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more computation.
        num_threads: CPU threads of each worker; 0 divides the cores of the machine evenly.
        cache_dir: Local directory for the data that a node stages; empty is a directory of this user below the temporary one.
        resident_data: Keep the whole data set in each training device's memory, as bytes.
        collective_timeout_seconds: Seconds that workers wait for one that does not answer before the run fails, 1 or more.
    """

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    num_workers: int = 1
    min_workers: int = 0
    num_gpus_per_worker: int = 0
    microbatch_size: int = 0
    precision: Precision = "fp32"
    compile: bool = False
    gradient_checkpointing: bool = False
    num_threads: int = 0
    cache_dir: str = ""
    resident_data: bool = False
    collective_timeout_seconds: int = 600

    def __post_init__(self) -> None:
        require_at_least(1, self, "resources", "num_workers", "collective_timeout_seconds")
        require_at_least(0, self, "resources", "microbatch_size", "num_threads")
        require(self.num_gpus_per_worker in (0, 1), "resources.num_gpus_per_worker", f"must be 0 or 1, got {self.num_gpus_per_worker}")
        require(
            0 <= self.min_workers <= self.num_workers,
            "resources.min_workers",
            f"must be 0 to num_workers ({self.num_workers}), got {self.min_workers}",
        )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Resources:
        """Build resources from a dictionary, with type conversion.

        Raises:
            UserError: A field is unknown or out of its range.
        """
        resources: Resources = validate(cls, value)
        return resources
