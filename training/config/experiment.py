"""The experiment: one frozen, typed, validated object with everything that can change a result.

It is made from a preset and overrides (`training.config.presets`) and consists of typed, frozen sections. MLflow logs it, and every
checkpoint contains it as JSON. `Resources`, which may change speed but not the result, is a separate object.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from training.config.errors import UserError
from training.config.overrides import apply_overrides
from training.config.plain import LATER, PlainRecord, as_plain_fields
from training.config.spacing import count_timesteps, learned_count, parse_spacing
from training.config.validation import KnownFieldsOnly, list_paths, parse_json, require, require_at_least

Schedule = Literal["linear", "cosine"]
Objective = Literal["simple", "vlb", "hybrid"]
Variance = Literal["learned_range", "fixed_large", "fixed_small"]
Prediction = Literal["eps", "x_0"]
TimestepSampler = Literal["uniform", "loss_second_moment"]
SamplingMethod = Literal["ancestral", "ddim", "dpm_solver_pp", "sde_dpm_solver_pp", "unipc", "deis"]
MultistepOrder = Literal[1, 2, 3]
UniPCVariant = Literal["B1", "B2"]
TimeEmbedding = Literal["cos_sin", "sin_cos"]
DownsamplePadding = Literal["symmetric", "right_bottom"]
ReverseVariance = Literal["model", "analytic", "optimal"]
LikelihoodForm = Literal["full", "spaced", "stratified", "learned"]
Resize = Literal["none", "area", "adm", "box-squash", "lanczos"]
Extractor = Literal[
    "inception", "digits-classifier", "vgg16", "clip-vit-b-32", "clip-vit-l-14-336px", "dinov2-vit-l-14", "efficientnet-lite0"
]
MetricName = Literal[
    "kid", "cmmd", "mind", "fd_infinity", "precision_recall", "density_coverage", "inception_score", "sfid", "label_agreement"
]
Precision = Literal["fp32", "bf16"]
_LONGEST_NAME = 200  # a directory's name, which gets up to 55 more characters, has at most 255
MAX_SEED = 2**32 - 1
"""The largest seed of an experiment, and of images that a person asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(KnownFieldsOnly):
    """The data set: its images, their size and their preparation.

    Attributes:
        name: The data set, as its manifest names it ("digits", "cifar10", "imagenet64-official", ...).
        image_size: Height and width in pixels; images are square.
        image_channels: Colour channels of an image (1 grey, 3 RGB).
        num_classes: Number of labels; 0 for an unlabelled data set.
        resize: How a larger image becomes `image_size`: "area" (supplement section 1: centre crop and area
            downsample), "adm" (the released code's box halvings and bicubic), "box-squash", "lanczos", "none".
        random_flip: Mirror half of the training images. The paper's released code does not.
        disk_budget_bytes: A data set larger than this is streamed rather than staged on each node, in an order that is a
            shuffle within blocks; 0 stages any size and shuffles the whole. A setting of the experiment, because it changes the order.
    """

    name: str
    image_size: int
    image_channels: int = 3
    num_classes: int = 0
    resize: Resize = "none"
    random_flip: bool = False
    disk_budget_bytes: int = 0

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name)), "data.name", f"{self.name!r} is not a name like 'cifar10'")
        require(len(self.name) <= _LONGEST_NAME, "data.name", f"must have at most {_LONGEST_NAME} characters, got {len(self.name)}")
        require_at_least(1, self, "data", "image_size")
        require(self.image_channels in (1, 3), "data.image_channels", f"must be 1 or 3, got {self.image_channels}")
        require_at_least(0, self, "data", "num_classes", "disk_budget_bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(KnownFieldsOnly):
    """The UNet of supplement section 1 and its variants.

    Attributes:
        model_channels: The paper's C, the width of the first stage. Even, and a multiple of `norm_groups`.
        channel_mult: Width of each stage in units of C, from highest to lowest resolution.
        num_res_blocks: Residual blocks per downsampling stage (the upsampling stages have one more).
        attention_resolutions: Sizes in pixels at which attention follows each residual block.
        num_heads: Attention heads, the same number at every width.
        use_scale_shift_norm: Inject the time embedding as GroupNorm(h)(w + 1) + b rather than GroupNorm(h + v).
        dropout: Probability of dropping an activation inside a residual block.
        class_conditional: Add an embedding of the label to the time embedding.
        low_res_size: For an upsampler, height and width of the small input image in pixels; None for a base model.
        label_dropout: Probability with which training replaces a label by "none", so that the model can guide itself in sampling.
        norm_groups: Groups of every GroupNorm; the paper has 32 at C = 128 and more. With as many groups as channels a network can't tell
            how bright its input is, since each channel is normalised to mean 0: take 8 at C = 32.
        norm_eps: Added to the variance in every GroupNorm; Ho et al.'s code has 1e-6.
        time_embedding: "cos_sin" (cosines of t first, at the frequencies 10000^(-i/h), h = C/2) or "sin_cos" (Ho et al.'s code: sines
            first, at 10000^(-i/(h-1))).
        downsample_padding: Zeros around the input of a downsampling convolution: "symmetric" (a pixel on each side) or "right_bottom" (a
            pixel on these two sides, TensorFlow's "SAME" in Ho et al.'s code).
    """

    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    num_heads: int = 4
    use_scale_shift_norm: bool = True
    dropout: float = 0.0
    class_conditional: bool = False
    low_res_size: int | None = None
    label_dropout: float = field(default=0.0, metadata=LATER)
    norm_groups: int = field(default=32, metadata=LATER)
    norm_eps: float = field(default=1e-5, metadata=LATER)
    time_embedding: TimeEmbedding = field(default="cos_sin", metadata=LATER)
    downsample_padding: DownsamplePadding = field(default="symmetric", metadata=LATER)

    def __post_init__(self) -> None:
        require_at_least(1, self, "model", "norm_groups")
        require(
            self.model_channels >= 2 and self.model_channels % self.norm_groups == 0 and self.model_channels % 2 == 0,
            "model.model_channels",
            f"must be even and a multiple of {self.norm_groups} (model.norm_groups), got {self.model_channels}",
        )
        require(0 < self.norm_eps < math.inf, "model.norm_eps", f"must be a finite number above 0, got {self.norm_eps}")
        require(
            self.time_embedding == "cos_sin" or self.model_channels >= 4,
            "model.time_embedding",
            f"'sin_cos' needs two frequencies, so model.model_channels must be at least 4, got {self.model_channels}",
        )
        require(
            len(self.channel_mult) >= 1 and all(m >= 1 for m in self.channel_mult),
            "model.channel_mult",
            f"must be one or more positive integers, got {self.channel_mult}",
        )
        require_at_least(1, self, "model", "num_res_blocks", "num_heads", "low_res_size")
        require(0.0 <= self.dropout < 1.0, "model.dropout", f"must be in [0, 1), got {self.dropout}")
        require(0.0 <= self.label_dropout < 1.0, "model.label_dropout", f"must be in [0, 1), got {self.label_dropout}")
        require(self.class_conditional or self.label_dropout == 0.0, "model.label_dropout", "needs model.class_conditional=true")
        for mult in self.channel_mult:
            require(
                (self.model_channels * mult) % self.num_heads == 0,
                "model.num_heads",
                f"{self.num_heads} heads do not divide the stage width {self.model_channels * mult}",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig(KnownFieldsOnly):
    """The noising process and the objective.

    Attributes:
        num_timesteps: The paper's T, 2 to 1,000,000.
        schedule: "linear" (Ho et al., scaled by 1000/T) or "cosine".
        objective: "simple" (L_simple), "vlb" (L_vlb) or "hybrid" (L_simple + vlb_weight * L_vlb).
        variance: "learned_range" (interpolated in log space between beta_tilde and beta), "fixed_large" (beta)
            or "fixed_small" (beta_tilde). L_simple has no gradient for a variance.
        prediction: The meaning of the network's first channels: "eps" (the paper) or "x_0".
        vlb_weight: The paper's lambda, in front of the whole L_vlb in bits/dim, for any T.
        stop_gradient: In L_hybrid, the gradient of L_vlb reaches the variance only, not the mean.
        timestep_sampler: The distribution of t in training; "loss_second_moment" is the paper's importance sampler.
        rescale_timesteps: Feed the network t * 1000/T rather than t. Some released checkpoints were trained without it.
    """

    num_timesteps: int = 4000
    schedule: Schedule = "cosine"
    objective: Objective = "hybrid"
    variance: Variance = "learned_range"
    prediction: Prediction = "eps"
    vlb_weight: float = 0.001
    stop_gradient: bool = True
    timestep_sampler: TimestepSampler = "uniform"
    rescale_timesteps: bool = True

    def __post_init__(self) -> None:
        require_at_least(2, self, "diffusion", "num_timesteps")
        # Schedules and spacings are tables of T numbers, which the check of an experiment makes too.
        most = 1_000_000
        require(self.num_timesteps <= most, "diffusion.num_timesteps", f"must be at most {most:,}, got {self.num_timesteps:,}")
        require_at_least(0, self, "diffusion", "vlb_weight")
        require(
            self.schedule != "linear" or self.num_timesteps > 20,
            "diffusion.num_timesteps",
            f"the linear schedule, scaled by 1000/T, needs more than 20 timesteps (beta would reach 1), got {self.num_timesteps}",
        )
        require(
            self.objective != "simple" or self.variance != "learned_range",
            "diffusion.variance",
            "L_simple has no gradient for a learned variance; use 'fixed_large' or 'fixed_small', or objective 'hybrid'",
        )
        require(
            self.objective != "hybrid" or self.variance == "learned_range",
            "diffusion.variance",
            f"L_hybrid exists to learn the variance; use 'learned_range', or objective 'simple' with {self.variance!r}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig(KnownFieldsOnly):
    """Adam, its schedule, and the averages of the weights.

    Attributes:
        global_batch_size: Images per update, over all workers and microbatches.
        num_steps: Updates after which training stops, at most 99,999,999.
        lr_anneal_steps: Anneal the learning rate linearly to 0 over this many updates, `num_steps` or more; 0 keeps it constant.
        adam_betas: Adam's decay rates of the first and second moment.
        weight_decay: Decoupled weight decay (AdamW); 0 is Adam.
        grad_clip_norm: Clip the gradient's global norm to this value; None (the paper) does not clip.
        ema_decays: Decays of the exponential moving averages, all kept at once. Without any, the trained weights are scored and chosen.
        ema_snapshot_stds: Relative standard deviations of the power-function averages stored with each checkpoint,
            from which other decays are rebuilt after training; empty stores none.
        checkpoint_interval: Updates between checkpoints; each one is scored.
    """

    global_batch_size: int = 128
    learning_rate: float = 1e-4
    num_steps: int = 500_000
    lr_anneal_steps: int = 0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip_norm: float | None = None
    ema_decays: tuple[float, ...] = (0.9999,)
    ema_snapshot_stds: tuple[float, ...] = ()
    checkpoint_interval: int = 10_000

    def __post_init__(self) -> None:
        require_at_least(1, self, "optim", "global_batch_size", "num_steps", "checkpoint_interval")
        # A checkpoint's directory has its step in eight digits.
        require(self.num_steps < 10**8, "optim.num_steps", f"must be at most 99,999,999, got {self.num_steps:,}")
        require_at_least(0, self, "optim", "lr_anneal_steps", "weight_decay")
        for name in ("learning_rate", "adam_eps", "grad_clip_norm"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, f"optim.{name}", f"must be a finite number above 0, got {value}")
        require(all(0 <= b < 1 for b in self.adam_betas), "optim.adam_betas", f"must be in [0, 1), got {self.adam_betas}")
        require(
            all(0 < d < 1 for d in self.ema_decays) and len(set(self.ema_decays)) == len(self.ema_decays),
            "optim.ema_decays",
            f"must be different numbers between 0 and 1, got {self.ema_decays}",
        )
        require(
            all(0 < s < 12**-0.5 for s in self.ema_snapshot_stds) and len(set(self.ema_snapshot_stds)) == len(self.ema_snapshot_stds),
            "optim.ema_snapshot_stds",
            f"must be different numbers between 0 and 0.2886, got {self.ema_snapshot_stds}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig(KnownFieldsOnly):
    """The sampler that draws images from a model.

    Attributes:
        method: "ancestral" (the paper's), "ddim", "dpm_solver_pp" (DPM-Solver++), "sde_dpm_solver_pp" (its stochastic form), "unipc" or
            "deis"; each is a module of `training.diffusion.samplers`.
        spacing: The timesteps that are visited: "250" (uniform), "ddim50", "10,10,5" (section counts),
            "nll:100" (supplement section 5), "t:0,5,10" (an explicit list) or "learned:10" (ten that are chosen for the checkpoint;
            not for scores in training). Empty visits all of them.
        eta: Noise of a step of "ddim" or "dpm_solver_pp", in [0, 1]; 0 is deterministic. "sde_dpm_solver_pp" is "dpm_solver_pp" with 1.
        clip_denoised: Clamp the predicted x_0 to [-1, 1] at every step.
        order: Order of the multistep methods ("dpm_solver_pp", "sde_dpm_solver_pp", "unipc" and "deis"): 1 to 3.
        unipc_variant: UniPC's function B(h): "B1" is h, "B2" is 1 - e^-h. It matters where a step has one difference to go by.
        dynamic_threshold: Clamp the predicted x_0 at this quantile of its absolute values, if that is above 1, and divide by it, in
            [0, 1]; 0 clamps at 1. Imagen has 0.995.
        variance: Variance of an "ancestral" or "ddim" step. "model" is the model's own (DDIM: eta's). "analytic" and "optimal" are one
            number for each timestep that `iddpm learn-variance` has estimated for the checkpoint: from the norm of eps (Analytic-DPM),
            or from the error of x_0 on real images. They are estimated with x_0 clipped and without guidance, also where the samples
            are drawn otherwise. Not for scores in training.
        guidance_scale: w of g + w (p - g), where p is the model's prediction and g a worse one; 1 takes p alone. Another value
            doubles the network evaluations.
        guidance_step: Training step of an earlier checkpoint of the same run that predicts g (autoguidance); 0 takes the model
            without the label (classifier-free guidance), which needs model.label_dropout. The guide of the reported samples is kept,
            and training does not stop before it. Not for scores in training.
    """

    method: SamplingMethod = "ancestral"
    spacing: str = ""
    eta: float = 0.0
    clip_denoised: bool = True
    order: MultistepOrder = field(default=2, metadata=LATER)
    unipc_variant: UniPCVariant = field(default="B2", metadata=LATER)
    dynamic_threshold: float = field(default=0.0, metadata=LATER)
    variance: ReverseVariance = field(default="model", metadata=LATER)
    guidance_scale: float = field(default=1.0, metadata=LATER)
    guidance_step: int = field(default=0, metadata=LATER)

    def __post_init__(self) -> None:
        require(0.0 <= self.eta <= 1.0, "eta", f"must be in [0, 1], got {self.eta}")
        require(
            self.method in ("ddim", "dpm_solver_pp") or self.eta == 0.0,
            "eta",
            f"only 'ddim' and 'dpm_solver_pp' have an eta; method is {self.method!r}",
        )
        require(
            self.method not in ("ancestral", "ddim") or self.order == 2,
            "order",
            f"{self.method!r} is no multistep method; leave the order out",
        )
        require(
            self.method == "unipc" or self.unipc_variant == "B2", "unipc_variant", f"only 'unipc' has variants; method is {self.method!r}"
        )
        require(
            self.method in ("ancestral", "ddim") or self.variance == "model", "variance", f"is not used by {self.method!r}; leave it out"
        )
        require(0.0 <= self.dynamic_threshold <= 1.0, "dynamic_threshold", f"must be in [0, 1], got {self.dynamic_threshold}")
        require(
            self.clip_denoised or self.dynamic_threshold == 0.0,
            "dynamic_threshold",
            "is a way to clip x_0, and clip_denoised is false; set it to 0",
        )
        require(0 <= self.guidance_scale < math.inf, "guidance_scale", f"must be a finite number of at least 0, got {self.guidance_scale}")
        require(self.guidance_step >= 0, "guidance_step", f"must be 0 or more, got {self.guidance_step}")
        require(self.guidance_scale != 1.0 or self.guidance_step == 0, "guidance_step", "needs a guidance_scale other than 1")

    def with_method(self, method: SamplingMethod) -> SamplingConfig:
        """Return the settings with that method. If it is another one, settings that not every method has get their default values."""
        if method == self.method:
            return self
        return dataclasses.replace(self, method=method, eta=0.0, order=2, unipc_variant="B2", variance="model")

    @property
    def evaluations_per_step(self) -> int:
        """Network evaluations of a step: two with guidance."""
        return 1 if self.guidance_scale == 1.0 else 2


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig(KnownFieldsOnly):
    """The scores of a model, and the rule by which training stops.

    Attributes:
        extractor: The network in whose features the Frechet distance is computed. Only "inception" makes it an FID.
        num_samples: Images drawn for the reported distance, 2 or more (supplement section 1: 50K; 10K for unconditional
            ImageNet-64).
        num_reference_images: Training images behind the reference statistics, 2 or more; None is the whole training set.
        sampling: Sampler of the reported distance.
        scoring_num_samples: Images drawn to score one checkpoint beside training, 2 or more.
        scoring_sampling: Sampler of that score: few steps, common noise.
        patience: Checkpoints without a gain after which training stops; 0 never stops early.
        min_gain: Relative improvement of the score that counts as a gain.
        min_steps: Updates before which training never stops early.
        rescore_best: How many of the best checkpoints are scored again, at full protocol and with fresh seeds.
        likelihood_split: Split whose bits/dim is reported.
        likelihood_num_images: Images of the split that are used; None is all of them.
        likelihood_form: "full" (every timestep), "spaced" (supplement section 5), "stratified" (unbiased for the full bound from few
            evaluations) or "learned" (the K timesteps and variances with the least bound, see `iddpm learn-variance`).
        likelihood_steps: Network evaluations per image: the K of the spacing, or of the stratified estimate.
        memorisation: Search the training set for copies among the samples of the reported evaluation.
        metrics: Further metrics of the reported evaluation; `iddpm metrics` lists them. None takes what costs nothing more:
            agreement with the labels, if the extractor is a classifier of them.
    """

    extractor: Extractor = "inception"
    num_samples: int = 50_000
    num_reference_images: int | None = None
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(spacing="250"))
    scoring_num_samples: int = 10_000
    scoring_sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(method="dpm_solver_pp", spacing="20"))
    patience: int = 5
    min_gain: float = 0.01
    min_steps: int = 0
    rescore_best: int = 3
    likelihood_split: Literal["train", "test"] = "test"
    likelihood_num_images: int | None = None
    likelihood_form: LikelihoodForm = "stratified"
    likelihood_steps: int = 100
    memorisation: bool = field(default=True, metadata=LATER)
    metrics: tuple[MetricName, ...] | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        require_at_least(2, self, "evaluation", "num_samples", "scoring_num_samples", "num_reference_images")  # a covariance needs two
        require_at_least(1, self, "evaluation", "rescore_best", "likelihood_steps", "likelihood_num_images")
        require_at_least(0, self, "evaluation", "patience", "min_steps")
        require(
            self.likelihood_form not in ("stratified", "learned") or self.likelihood_steps >= 2,
            "evaluation.likelihood_steps",
            f"a {self.likelihood_form} likelihood takes at least 2, got {self.likelihood_steps}",
        )
        require(0 <= self.min_gain < 1, "evaluation.min_gain", f"must be in [0, 1), got {self.min_gain}")


def require_seed(seed: int) -> None:
    """Refuse a seed that no experiment can have. Noise takes a seed modulo 2^64, so two of them could draw the same images.

    Raises:
        UserError: It is not in 0..`MAX_SEED`.
    """
    require(0 <= seed <= MAX_SEED, "seed", f"must be in [0, 2^32), got {seed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment(KnownFieldsOnly, PlainRecord):
    """The settings of a training and its evaluation: everything that can change a result.

    Attributes:
        name: Name of the preset that it was made from, or the user's own; part of the run's directory.
        seed: Keys every random draw in training and evaluation, in [0, 2^32).
    """

    name: str
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        # The name becomes part of the name of the run's directory.
        require(bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name)), "name", f"{self.name!r} is not a name like 'my-experiment'")
        require(len(self.name) <= _LONGEST_NAME, "name", f"must have at most {_LONGEST_NAME} characters, got {len(self.name)}")
        self._require_model_fits_data()
        require_seed(self.seed)
        self._require_sampling_fits_model()
        require(
            self.evaluation.likelihood_steps <= self.diffusion.num_timesteps,
            "evaluation.likelihood_steps",
            f"{self.evaluation.likelihood_steps} is more than diffusion.num_timesteps ({self.diffusion.num_timesteps})",
        )

    def _require_model_fits_data(self) -> None:
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

    def _require_sampling_fits_model(self) -> None:
        reason = "the model was trained with every label" if self.model.class_conditional else "the model has no labels"
        ways = ["train one with model.label_dropout=0.1"] if self.model.class_conditional else []
        for path, sampling, read, remedies in (
            ("evaluation.sampling", self.evaluation.sampling, count_timesteps, [*ways, "give a guidance_step"]),
            ("evaluation.scoring_sampling", self.evaluation.scoring_sampling, parse_spacing, [*ways, "leave it out"]),
        ):
            require(
                sampling.guidance_scale == 1.0 or sampling.guidance_step > 0 or self.model.label_dropout > 0,
                f"{path}.guidance_scale",
                f"{reason}; {', or '.join(remedies)}",
            )
            if sampling.spacing:
                try:
                    read(sampling.spacing, self.diffusion.num_timesteps)
                except ValueError as error:
                    raise UserError(f"{path}.spacing: {error}") from error
        require(
            self.model.low_res_size is None or learned_count(self.evaluation.sampling.spacing) is None,
            "evaluation.sampling.spacing",
            "no timesteps can be learned for an upsampler; give a number, or the timesteps, like t:0,200,999",
        )
        require(
            self.evaluation.scoring_sampling.variance == "model",
            "evaluation.scoring_sampling.variance",
            "is estimated for a finished checkpoint; leave it out of the scores in training",
        )
        require(
            self.evaluation.scoring_sampling.guidance_step == 0,
            "evaluation.scoring_sampling.guidance_step",
            "the first scores in training have no earlier checkpoint; leave it out",
        )

    def require_guide(self) -> None:
        """Raise UserError unless training will store the checkpoint that guides the final evaluation, before its last one.

        A training is checked each time it starts. An evaluation isn't: the run may have been interrupted, and the checkpoints of other
        steps that it then has can guide too.
        """
        guide, interval = self.evaluation.sampling.guidance_step, self.optim.checkpoint_interval
        require(
            guide % interval == 0 and guide < self.optim.num_steps,
            "evaluation.sampling.guidance_step",
            f"training stores no checkpoint of step {guide} before its last one; take a multiple of optim.checkpoint_interval "
            f"({interval}) below optim.num_steps ({self.optim.num_steps})",
        )

    def require_annealing(self) -> None:
        """Raise UserError if the learning rate would be 0 before the last update.

        Only a new training is checked: an earlier run with these settings can still be read.
        """
        steps, annealed = self.optim.num_steps, self.optim.lr_anneal_steps
        require(
            annealed == 0 or annealed >= steps,
            "optim.lr_anneal_steps",
            f"the learning rate is 0 from update {annealed} on, and training goes to optim.num_steps ({steps}); "
            f"set optim.lr_anneal_steps to {steps} too, or to 0 for a constant rate",
        )

    def require_used(self) -> None:
        """Raise UserError if lambda or the stop-gradient is set for an objective that has neither, or a stage gets attention twice.

        Only a new training is checked: an earlier run with these settings can still be read.
        """
        defaults, objective = DiffusionConfig(), self.diffusion.objective
        for name in ("vlb_weight", "stop_gradient"):
            default = getattr(defaults, name)
            require(
                objective == "hybrid" or getattr(self.diffusion, name) == default,
                f"diffusion.{name}",
                f"only objective 'hybrid' uses it, and diffusion.objective is {objective!r}; leave it at {json.dumps(default)}",
            )
        sizes = list(self.model.attention_resolutions)
        once = list(dict.fromkeys(sizes))
        require(sizes == once, "model.attention_resolutions", f"{sizes} names a size twice, which changes no network; write {once}")

    @property
    def num_label_embeddings(self) -> int:
        """Number of labels that the network knows: with label dropout one more than the data's, "none"; 0 for a model without labels."""
        return self.data.num_classes + (self.model.label_dropout > 0) if self.model.class_conditional else 0

    @property
    def out_channels(self) -> int:
        """Number of output channels of the network: one per image channel, twice as many where the variance is learned."""
        return self.data.image_channels * (2 if self.diffusion.variance == "learned_range" else 1)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain nested dictionary, tuples as lists, as JSON carries it; fields of later releases only where they are set."""
        plain: dict[str, Any] = json.loads(json.dumps(as_plain_fields(self)))
        return plain

    def every_field(self) -> dict[str, Any]:
        """Return `to_dict` with all fields."""
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
            value = parse_json(text)
        except ValueError as error:  # also of bytes that are no text
            raise UserError(f"not an experiment's JSON: {error}") from error
        return cls.from_dict(value)

    def override(self, overrides: Iterable[str]) -> Experiment:
        """Return a copy with fields replaced.

        Args:
            overrides: Each `section.field=value`, the value as JSON or a plain word: `diffusion.vlb_weight=0.01`,
                `model.channel_mult=1,2,2`, `optim.grad_clip_norm=null`, `seed=3`.

        Raises:
            UserError: An override is malformed, names no field, or gives a value that the field can't take.
        """
        plain = self.every_field()
        apply_overrides(plain, overrides, list_paths(type(self)))
        return Experiment.from_dict(plain)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources(KnownFieldsOnly, PlainRecord):
    """The machines of a training; they change its speed, never its result beyond the rounding of floating point sums.

    Attributes:
        num_workers: Training processes (data-parallel), 1 or more.
        min_workers: 0 to `num_workers`. Where fewer machines are available, the run goes on with as few processes as this, and takes more
            only when its workers start again; 0 always needs `num_workers`.
        num_gpus_per_worker: GPUs of each process: 1, or 0 to train on the CPU.
        microbatch_size: Images that a worker passes through the network at once; their gradients are added up. 0 takes all of a
            worker's part of the batch on a CPU, and on a GPU the largest part of it that fits into memory, found by trial.
        precision: Numbers inside the network: "fp32", or "bf16" for autocast (the weights stay float32). No training begins in bf16 on a
            processor that is clearly slower in it.
        compile: Pass the network through torch.compile; the first step takes minutes longer, the others are faster.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more computation.
        num_threads: CPU threads of each worker; 0 divides the cores of the machine, or of the container, evenly.
        cache_dir: Local directory for the data that a node stages; empty is a directory of this user below the temporary one.
        resident_data: Keep the whole data set in each training device's memory, as bytes.
        collective_timeout_seconds: Seconds that workers wait for one that does not answer before the run fails, 1 or more.
    """

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
