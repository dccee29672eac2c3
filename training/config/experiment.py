"""The experiment: one frozen, typed, validated object that says everything that can change a result.

A preset's name plus overrides makes it (`training.config.presets`), JSON carries it, MLflow logs it, every checkpoint
contains it. What may change speed but not the result is `Resources`, which is kept apart.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from training.config.errors import UserError
from training.config.overrides import unknown, validate, word_for
from training.config.sections import FORBID_UNKNOWN, require
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """Everything that can change a result.

    Attributes:
        name: The preset that it was made from.
        seed: Every random draw in training and evaluation is keyed by it.
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
            f"{self.data.image_size} is not divisible by {factor}, "
            f"which the {len(self.model.channel_mult)} stages of model.channel_mult need",
        )
        stage_sizes = [self.data.image_size // 2**i for i in range(len(self.model.channel_mult))]
        unknown = [r for r in self.model.attention_resolutions if r not in stage_sizes]
        require(not unknown, "model.attention_resolutions", f"{unknown} is not among the sizes of the stages, which are {stage_sizes}")
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
        """Channels of the network's output: the prediction, and as many again for a learned variance."""
        return self.data.image_channels * (2 if self.diffusion.variance == "learned_range" else 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, tuples as lists, as JSON carries it."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def to_json(self) -> str:
        """Canonical JSON: fields in their declared order, two spaces, a newline at the end."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Experiment:
        """Reads what `to_json` wrote.

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
        """Builds an experiment from nested dictionaries, with type conversion.

        Raises:
            UserError: A field is unknown, missing or out of its range.
        """
        experiment: Experiment = validate(cls, value)
        return experiment

    def override(self, overrides: Iterable[str]) -> Experiment:
        """A copy with fields replaced by words from outside.

        Args:
            overrides: Each `section.field=value`, the value as JSON or a plain word: `diffusion.vlb_weight=0.01`,
                `model.channel_mult=1,2,2`, `optim.grad_clip_norm=null`, `seed=3`.

        Raises:
            UserError: An override is malformed, names no field, or gives a value that the field can't take.
        """
        require(not isinstance(overrides, str), str(overrides), "overrides are a list, each section.field=value")
        plain = self.to_dict()
        for item in overrides:
            require(isinstance(item, str), str(item), "an override is text and reads section.field=value")
            path, separator, word = item.partition("=")
            path = path.strip()
            require(bool(separator) and bool(path), item, "an override reads section.field=value")
            require(path != "name", path, "is the preset's, and says what the overrides were made to")
            *parents, leaf = path.split(".")
            node = plain
            for depth, parent in enumerate(parents):
                require(parent in node, path, unknown(parent, node, ".".join(parents[:depth])))
                require(isinstance(node[parent], dict), path, f"{'.'.join(parents[: depth + 1])} is a field and has none below it")
                node = node[parent]
            require(leaf in node, path, unknown(leaf, node, ".".join(parents)))
            if isinstance(node[leaf], dict):
                raise UserError(f"{path}: is a section; name one of its fields: {', '.join(node[leaf])}")
            node[leaf] = word_for(node[leaf], word.strip(), path)
        return Experiment.from_dict(plain)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What may change speed, never the result beyond stated rounding.

    Attributes:
        num_workers: Data-parallel training processes.
        min_workers: With fewer machines at hand, go on with as few as this; 0 insists on `num_workers`.
        num_gpus_per_worker: GPUs of each (0 trains on the CPU).
        microbatch_size: Images a worker passes through the network at once; 0 takes its whole share, or on a GPU the
            largest part of it that fits, found by trial.
        precision: "fp32", or "bf16" for autocast around the network.
        compile: Pass the network through torch.compile.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory.
        num_threads: CPU threads of each worker; 0 shares the cores evenly.
        cache_dir: Where data is staged on a node's disk; empty is a directory of this user's under the temporary one.
        resident_data: Keep the whole data set in each training device's memory.
        collective_timeout_seconds: How long workers wait for one that does not answer before they give it up.
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
        require(self.num_workers >= 1, "resources.num_workers", f"must be at least 1, got {self.num_workers}")
        require(self.num_gpus_per_worker in (0, 1), "resources.num_gpus_per_worker", f"must be 0 or 1, got {self.num_gpus_per_worker}")
        for name in ("microbatch_size", "num_threads"):
            require(getattr(self, name) >= 0, f"resources.{name}", f"must be 0 or more, got {getattr(self, name)}")
        require(
            0 <= self.min_workers <= self.num_workers,
            "resources.min_workers",
            f"must be 0 to num_workers ({self.num_workers}), got {self.min_workers}",
        )
        require(
            self.collective_timeout_seconds >= 1,
            "resources.collective_timeout_seconds",
            f"must be at least 1, got {self.collective_timeout_seconds}",
        )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Resources:
        """Builds resources from a dictionary, with type conversion.

        Raises:
            UserError: A field is unknown or out of its range.
        """
        resources: Resources = validate(cls, value)
        return resources


def run_key(experiment: Experiment, data_digest: str) -> str:
    """Name of the run's directory and of its MLflow run: the same experiment on the same data has the same key.

    Args:
        experiment: The experiment; its seed and every override are part of the key.
        data_digest: Content digest of the data set, from its manifest.

    Returns:
        The preset's name and ten hexadecimal digits.
    """
    identity = json.dumps([experiment.to_dict(), data_digest], sort_keys=True)
    return f"{experiment.name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"
