"""Breaks the mathematics in ways that the field has got wrong, one at a time, and shows which test notices.

Each mutation replaces one piece of source in a temporary copy of the tree and runs the tests of that module there,
to the first failure. `make mutations` prints the table and writes it to tests/MUTATIONS.md; the exit status is not 0
if a mutation survives, no longer applies, or breaks more than the mathematics (an import, a syntax).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = (
    *("training", "evaluation", "pyproject.toml"),
    *(f"tests/{name}" for name in ("unit/diffusion", "unit/models", "unit/evaluation", "golden", "support", "conftest.py")),
)
DIFFUSION, MODELS = "training/diffusion", "training/models"


@dataclass(frozen=True)
class Mutation:
    """A change that breaks the code, its file, and the tests that should notice."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _in(file: str, tests: str, *mutations: tuple[str, str, str]) -> list[Mutation]:
    return [Mutation(what, file, old, new, tuple(tests.split())) for what, old, new in mutations]


def _diffusion(module: str, *mutations: tuple[str, str, str], tests: str = "") -> list[Mutation]:
    names = tests or module
    elsewhere = {
        "spacing": "training/config/spacing.py",
        **{
            name: f"{DIFFUSION}/samplers/{name}.py"
            for name in ("sampler", "ancestral", "ddim", "dpm_solver_pp", "multistep", "unipc", "deis")
        },
    }
    return _in(
        elsewhere.get(module, f"{DIFFUSION}/{module}.py"),
        " ".join(f"tests/unit/diffusion/test_{name}.py" for name in names.split()),
        *mutations,
    )


def _models(module: str, *mutations: tuple[str, str, str]) -> list[Mutation]:
    return _in(f"{MODELS}/{module}.py", "tests/unit/models/test_unet.py", *mutations)


SCHEDULES = _diffusion(
    "schedules",
    ("cosine schedule in float32", "return torch.tensor(betas, dtype=torch.float64)", "return (1 - (1 - torch.tensor(betas))).double()"),
    ("largest beta 0.9999", "MAX_BETA = 0.999", "MAX_BETA = 0.9999"),
    ("cosine offset s = 0.001", "COSINE_OFFSET = 0.008", "COSINE_OFFSET = 0.001"),
    ("cosine not squared", "math.pi / 2.0) ** 2", "math.pi / 2.0)"),
    ("cosine offset not normalised", "/ (1.0 + COSINE_OFFSET)", ""),
    ("linear schedule not scaled by 1000/T", "scale = 1000.0 / num_timesteps", "scale = 1.0"),
    ("linear schedule ends at 0.01", "scale * 0.02", "scale * 0.01"),
)

PROCESS = _diffusion(
    "process",
    ("v in [0, 1]", "fraction = (v + 1.0) / 2.0", "fraction = v"),
    ("v through a sigmoid", "fraction = (v + 1.0) / 2.0", "fraction = v.sigmoid()"),
    (
        "ends of the learned range swapped",
        'fraction * self.at("log_betas", t, x_t) + (1.0 - fraction) * self.at("posterior_log_variance_clipped", t, x_t)',
        '(1.0 - fraction) * self.at("log_betas", t, x_t) + fraction * self.at("posterior_log_variance_clipped", t, x_t)',
    ),
    (
        "variance interpolated linearly",
        'return fraction * self.at("log_betas", t, x_t) + (1.0 - fraction) * self.at("posterior_log_variance_clipped", t, x_t)',
        'return (fraction * self.at("betas", t, x_t) + (1.0 - fraction) * self.at("posterior_log_variance_clipped", t, x_t).exp())'
        ".clamp(min=1e-20).log()",
    ),
    (
        "log-variance at t = 0 clipped to log 1e-20",
        "torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()",
        "self.posterior_variance.clamp(min=1e-20).log()",
    ),
    (
        "fixed large variance is beta at t = 0 too",
        "torch.cat([self.posterior_log_variance_clipped[:1], self.log_betas[1:]])",
        "self.log_betas",
    ),
    ("fixed large and small swapped", 'if self.config.variance == "fixed_large"', 'if self.config.variance == "fixed_small"'),
    (
        "betas of a respaced chain are the original ones",
        "return 1.0 - self.alpha_bars / self.alpha_bars_prev",
        "return (1.0 - self.schedule_alpha_bars / torch.cat([torch.ones(1), self.schedule_alpha_bars[:-1]]))[list(self.timesteps)]",
    ),
    (
        "betas of a respaced chain clipped to 0.999",
        "return 1.0 - self.alpha_bars / self.alpha_bars_prev",
        "return (1.0 - self.alpha_bars / self.alpha_bars_prev).clamp(max=0.999)",
    ),
    ("the network is told the kept index", "torch.tensor(self.timesteps, device=t.device)", "torch.arange(self.num_timesteps)"),
    (
        "timesteps scaled by 1000/K",
        "original * (1000.0 / self.config.num_timesteps)",
        "original * (1000.0 / self.num_timesteps)",
    ),
    (
        "timesteps truncated to integers",
        "return original * (1000.0 / self.config.num_timesteps)",
        "return (original * (1000.0 / self.config.num_timesteps)).floor()",
    ),
    ("timesteps rescaled always", " if self.config.rescale_timesteps else original", ""),
    (
        "posterior variance is beta",
        "return self.betas * (1.0 - self.alpha_bars_prev) / (1.0 - self.alpha_bars)",
        "return self.betas.clone()",
    ),
    (
        "posterior mean weighs x_0 by alpha_bar_t",
        "self.betas * self.alpha_bars_prev.sqrt() /",
        "self.betas * self.alpha_bars.sqrt() /",
    ),
    ("posterior mean weighs x_t by alpha", "(1.0 - self.betas).sqrt() / (1.0", "(1.0 - self.betas) / (1.0"),
    ("noise of variance sqrt(1 - alpha_bar)", "return (1.0 - self.alpha_bars).sqrt()", "return (1.0 - self.alpha_bars).sqrt().sqrt()"),
    ("x_0 from eps with the wrong sign", ' * x_t - self.at("sqrt_recipm1', ' * x_t + self.at("sqrt_recipm1'),
    ("x_0 never clipped", "x_0 = clip(x_0, dynamic_threshold)", "pass"),
    ("eps not rederived from the clipped x_0", "            eps = self.predict_eps_from_x_0(x_t, t, x_0)\n", ""),
    (
        "network's output read in half precision",
        "output = output.to(torch.promote_types(x_t.dtype, torch.float32))",
        "output = output.half()",
    ),
    ("prior in nats", "(nats / math.log(2.0))", "nats"),
    ("prior without its variance", "- a - math.log1p(-a)", ""),
)

LOSSES = _diffusion(
    "losses",
    (
        "erf instead of the tanh approximation",
        "return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))",
        "return torch.special.ndtr(x)",
    ),
    ("bin of 1/256", "HALF_BIN = 1.0 / 255.0", "HALF_BIN = 1.0 / 256.0"),
    ("bin of 1/127.5", "HALF_BIN = 1.0 / 255.0", "HALF_BIN = 1.0 / 127.5"),
    (
        "levels 0 and 255 have bins like the others",
        "torch.where(x_0 < LOWEST, upper, torch.where(x_0 > HIGHEST, 1.0 - lower, upper - lower))",
        "upper - lower",
    ),
    ("level 255's bin closed", "torch.where(x_0 > HIGHEST, 1.0 - lower, upper - lower)", "upper - lower"),
    ("likelihood of the variance for the deviation", "0.5 * p.log_variance))", "p.log_variance))"),
    ("x_0 clipped in training", "clip_denoised=False", "clip_denoised=True"),
    ("stop-gradient missing", "prediction.detach()", "prediction"),
    ("stop-gradient always on", "and config.stop_gradient and v is not None", "and v is not None"),
    ("stop-gradient under L_vlb too", 'if config.objective == "hybrid" and config.stop_gradient', "if config.stop_gradient"),
    ("stop-gradient on v as well", "torch.cat([prediction.detach(), v], dim=1)", "output.detach()"),
    ("bound in nats", "torch.where(t == 0, nll, kl) / math.log(2.0)", "torch.where(t == 0, nll, kl)"),
    ("decoder term at t = 1", "torch.where(t == 0, nll, kl)", "torch.where(t == 1, nll, kl)"),
    ("no decoder term", "torch.where(t == 0, nll, kl)", "kl"),
    (
        "KL the wrong way round",
        "normal_kl(q.mean, q.log_variance, p.mean, p.log_variance)",
        "normal_kl(p.mean, p.log_variance, q.mean, q.log_variance)",
    ),
    ("KL without its -1", "        - 1.0\n", ""),
    ("KL against the mean x_0", "normal_kl(q.mean, q.log_variance", "normal_kl(x_0, q.log_variance"),
    ("L_vlb not multiplied by T", "process.num_timesteps * vlb_term", "vlb_term"),
    ("L_vlb multiplied by the original T", "process.num_timesteps * vlb_term", "process.config.num_timesteps * vlb_term"),
    ("lambda divided by T", "config.vlb_weight * l_vlb", "config.vlb_weight / process.num_timesteps * l_vlb"),
    ("lambda ignored", "config.vlb_weight * l_vlb", "0.001 * l_vlb"),
    ("L_vlb without weight is L_hybrid", 'l_vlb if config.objective == "vlb" else', "l_vlb if False else"),
    ("target of an x_0 network is eps", 'eps if config.prediction == "eps" else x_0', "eps"),
    ("sum over dimensions, not mean", "x.flatten(1).mean(1)", "x.flatten(1).sum(1)"),
    ("conditions not passed on", ", **(conditioning or {}))", ")"),
)

TIMESTEPS = _diffusion(
    "timesteps",
    ("importance weights missing", "(1.0 / (self.num_timesteps * p))", "torch.ones_like(p)"),
    ("importance weights not normalised", "(1.0 / (self.num_timesteps * p))", "(1.0 / p)"),
    ("p proportional to E[L^2] without the root", ".square().mean(1).sqrt()", ".square().mean(1)"),
    ("p proportional to E[L]", "self._history.square().mean(1).sqrt()", "self._history.mean(1)"),
    ("no uniform share", "UNIFORM_SHARE = 0.001", "UNIFORM_SHARE = 0.0"),
    ("history of 9", "HISTORY_LENGTH = 10", "HISTORY_LENGTH = 9"),
    ("warm when any t is", "(self._counts >= HISTORY_LENGTH).all()", "(self._counts >= HISTORY_LENGTH).any()"),
    (
        "the oldest losses stay",
        "history[torch.where(stays, row, spare), slot] =",
        "history[torch.where(stays & (counts[row] + position < HISTORY_LENGTH), row, spare), slot] =",
    ),
    ("losses of zero divide by zero", " & (total != 0), learned", ", learned"),
    ("losses that are not finite enter the history", "torch.where(losses.isfinite(), t, spare)", "t"),
    ("search one t too far", "u, right=True).clamp", "u, right=True).add(1).clamp"),
    ("the saved history is not a copy", "self._history.clone()", "self._history"),
    ("the counts are not restored", '        self._counts.copy_(state["counts"])\n', ""),
    ("the same t at every step", "counter=step)\n        return (u", "counter=0)\n        return (u"),
)

NOISE = _diffusion(
    "noise",
    ("9 rounds", "_NUM_ROUNDS = 10", "_NUM_ROUNDS = 9"),
    ("key not advanced", "(k_0 + _WEYL_INCREMENTS[0]) & _WORD", "k_0"),
    ("second key word not advanced by its own increment", "(k_1 + _WEYL_INCREMENTS[1])", "(k_1 + _WEYL_INCREMENTS[0])"),
    (
        "indices beyond 32 bits collide",
        "(indices.unsqueeze(1) >> 32) | (stream << 16)",
        "torch.zeros_like(indices).unsqueeze(1) | (stream << 16)",
    ),
    ("purposes share their noise", "| (stream << 16)", "| 0"),
    ("seeds beyond 32 bits collide", "(seed >> 32) & _WORD", "0"),
    ("counter ignored", "torch.full_like(low, counter)", "torch.full_like(low, 0)"),
    ("noise keyed by the position in the batch", "indices.unsqueeze(1) & _WORD", "torch.arange(len(indices)).unsqueeze(1)"),
    ("sine twice", "angle.cos()", "angle.sin()"),
    ("radius without its root", ".mul_(-2.0).sqrt_()", ".mul_(-2.0)"),
    ("half a turn", "2.0 * math.pi * 2.0**-32", "math.pi * 2.0**-32"),
    ("uniforms of 32 bits", "((w_0 << 21) ^ (w_1 >> 11)).double() * 2.0**-53", "w_0.double() * 2.0**-32"),
)

SPACING = _diffusion(
    "spacing",
    ("halves rounded up", "round(position)", "int(position + 0.5)"),
    ("stride size / count", "(length - 1) / (count - 1) if count > 1", "length / count if count > 1"),
    ("ddim spacing from 1", "return tuple(range(0, num_timesteps, stride))", "return tuple(range(1, num_timesteps, stride))"),
    ("likelihood spacing without the small timesteps", " | set(range(num_timesteps // num_steps))", ""),
    ("likelihood spacing one short", "set(range(num_timesteps // num_steps))", "set(range(num_timesteps // num_steps - 1))"),
)

NETWORK = [
    *_models(
        "layers",
        ("scale without +1", "(scale + 1.0)", "scale"),
        ("shift before scale", "scale, shift = injected", "shift, scale = injected"),
        ("sines first", "parts = [angles.cos(), angles.sin()]", "parts = [angles.sin(), angles.cos()]"),
        ("frequencies over half - 1", "-math.log(10_000.0) / last", "-math.log(10_000.0) / (half - 1)"),
        ("sines first, frequencies over half", "else half - 1", "else half"),
        ("cosines first, frequencies over half - 1", 'if variant == "cos_sin" else parts[::-1]', 'if variant == "cos_sin" else parts'),
        ("padded at the left and the top", "(0, 1, 0, 1)", "(1, 0, 1, 0)"),
        ("integer timesteps", "timesteps.float().unsqueeze(1)", "timesteps.long().float().unsqueeze(1)"),
        (
            "q, k, v before heads",
            "self.num_heads, 3, channels // self.num_heads).permute(3, 0, 2, 1, 4)",
            "3, self.num_heads, channels // self.num_heads).permute(2, 0, 3, 1, 4)",
        ),
        (
            "attention scaled by the full width",
            "scaled_dot_product_attention(q, k, v)",
            "scaled_dot_product_attention(q, k, v, scale=channels**-0.5)",
        ),
        ("attention without residual", "return x + h.transpose(1, 2)", "return h.transpose(1, 2)"),
        ("GroupNorm eps 1e-6", "eps=eps", "eps=1e-6"),
        (
            "downsampling padded on two sides only",
            "self.op(x)",
            "nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1)), self.op.weight, self.op.bias, stride=2)",
        ),
        ("bilinear upsampling", 'mode="nearest"', 'mode="bilinear"'),
        ("embedding added after the norm", "h = norm(h + injected.to(h.dtype))", "h = norm(h) + injected.to(h.dtype)"),
        ("last convolutions not zero at the start", "    nn.init.zeros_(module.weight)\n", ""),
    ),
    *_models(
        "unet",
        ("skip before h", "torch.cat([h, skips.pop()], dim=1)", "torch.cat([skips.pop(), h], dim=1)"),
        ("skips scaled by 1/sqrt 2", "torch.cat([h, skips.pop()], dim=1)", "torch.cat([h, skips.pop() * 0.5**0.5], dim=1)"),
        ("label dropped", "emb = emb + self.label_emb(y)", "emb = emb + 0.0 * self.label_emb(y)"),
        (
            "no attention in the middle",
            "self._run(self.middle_block, h",
            "self._run(TimestepEmbedSequential(self.middle_block[0], self.middle_block[2]), h",
        ),
        ("recomputation with other dropout masks", "preserve_rng_state=True", "preserve_rng_state=False"),
    ),
    *_models(
        "layers",
        ("small image enlarged by repetition", 'mode="bilinear", align_corners=False', 'mode="nearest"'),
        ("small image enlarged bicubically", 'mode="bilinear", align_corners=False', 'mode="bicubic", align_corners=False'),
        ("small image enlarged with aligned corners", "align_corners=False)", "align_corners=True)"),
        (
            "small image before x_t",
            '[x_t, nn.functional.interpolate(low_res, size=x_t.shape[-2:], mode="bilinear", align_corners=False)]',
            '[nn.functional.interpolate(low_res, size=x_t.shape[-2:], mode="bilinear", align_corners=False), x_t]',
        ),
        ("small image by subsampling", 'mode="area"', 'mode="nearest"'),
    ),
]

SAMPLERS = [
    *_diffusion(
        "ancestral",
        ("noise in the last step", "p_sample(prediction, noise) if k > 0 else prediction.mean", "p_sample(prediction, noise)"),
        ("variance for deviation in an ancestral step", "torch.exp(0.5 * p.log_variance)", "torch.exp(p.log_variance)"),
        tests="sampling",
    ),
    *_diffusion(
        "ddim",
        ("eta not squared", "eta**2 *", "eta *"),
        ("sigma not taken from eps's share", "max(1 - alpha_bar_prev - variance, 0.0)", "max(1 - alpha_bar_prev, 0.0)"),
        ("DDIM towards the step it is at", "process.alpha_bars_prev[k]", "process.alpha_bars[k]"),
        tests="sampling",
    ),
    *_diffusion(
        "sampler",
        ("step noise keyed by the kept timestep", "counter=timesteps[k])", "counter=k)"),
        ("step noise from the start's stream", "Stream.SAMPLE_STEP", "Stream.SAMPLE_START"),
        (
            "one noise for all images",
            "keyed_normal(seed, Stream.SAMPLE_START, indices, shape)",
            "keyed_normal(seed, Stream.SAMPLE_START, 0 * indices, shape)",
        ),
        ("seed not used", "keyed_normal(seed, Stream.SAMPLE_START", "keyed_normal(0, Stream.SAMPLE_START"),
        tests="sampling",
    ),
    *_diffusion("pixels", ("levels rounded", "(x + 1) * 127.5)", "(x + 1) * 127.5).round()"), tests="sampling"),
    *_diffusion(
        "process",
        ("conditions not passed to the network", ", **self.conditioning)", ")"),
        ("x_0 clipped although it should not be", "clip_denoised=self.clip_denoised", "clip_denoised=True"),
        tests="sampling process",
    ),
    *_diffusion(
        "dpm_solver_pp",
        ("first order only", "self.num_visits = order - 1", "self.num_visits = 0"),
        ("the prediction before taken for the one at hand", "alpha_bars[2:], strict", "alpha_bars[1:], strict"),
        ("extrapolation not halved", "0.5 * min(h / h_before, 1.0)", "1.0 * min(h / h_before, 1.0)"),
        ("extrapolation not limited", "min(h / h_before, 1.0)", "h / h_before"),
        ("extrapolation whatever the step", "min(h / h_before, 1.0)", "1.0"),
        ("long steps of order 3", "if then - at <= LONGEST_EXTRAPOLATION", "if then - at <= 100 * LONGEST_EXTRAPOLATION"),
        ("no step to x_0 at the end", "return prediction.x_0\n", "return x_t\n"),
        ("noise not scaled by what a step loses", "math.sqrt(-math.expm1(-2 * self.eta**2 * h)) * noise", "self.eta * noise"),
        ("parabola of the ODE under noise", "polynomial_weights((1 + eta**2) * h", "polynomial_weights(h"),
        tests="dpm_solver multistep",
    ),
    *_diffusion(
        "multistep",
        ("drift of the ODE under noise", "math.expm1(-(1 + eta**2) * h)", "math.expm1(-h)"),
        ("nothing forgotten under noise", "* math.exp(-(eta**2) * h)", ""),
        ("log signal-to-noise ratio not halved", "0.5 * (math.log(alpha_bar)", "1.0 * (math.log(alpha_bar)"),
        ("moments of short steps", "(m + 1 + j)", "(m + 2 + j)"),
        ("moments of long steps", "1.0 - degree / h", "1.0 + degree / h"),
    ),
    *_diffusion(
        "unipc",
        ("no corrector", "if not visits:", "if True:"),
        ("the order of the wrong step corrected", "self._order(k + 1, len(visits) - 1)", "self._order(k, len(visits))"),
        ("weight not halved", "0.5 * b", "1.0 * b"),
        ("variants exchanged", '== "B1"', '== "B2"'),
        tests="multistep",
    ),
    *_diffusion(
        "deis",
        ("history not used", "self.num_visits = order - 1", "self.num_visits = 0"),
        ("integral over the whole history", "u[first:], rho[first:]", "u, rho"),
        tests="multistep",
    ),
    *_diffusion(
        "ensemble",
        ("routing by the network's own timesteps", "timesteps.double() * self._timesteps_per_unit", "timesteps.double()"),
        (
            "first range one too long",
            "((ends, range(width)), (middle, range(width, num",
            "((ends, range(width + 1)), (middle, range(width + 1, num",
        ),
        ("members exchanged", "((ends, range(width)), (middle,", "((middle, range(width)), (ends,"),
        ("labels not taken apart", "{name: value[rows] for", "{name: value[: len(rows)] for"),
    ),
    *_diffusion(
        "losses",
        ("bound's noise keyed by the kept timestep", "counter=original)", "counter=t)"),
        tests="bound",
    ),
]

LIKELIHOOD = [
    *_in(
        "evaluation/likelihood/estimate.py",
        "tests/unit/evaluation/test_likelihood.py",
        ("no prior", "per_image=(prior + total).cpu()", "per_image=total.cpu()"),
        (
            "decoder counted twice",
            "total = decoder = term(torch.zeros_like(indices))\n    sums",
            "decoder = term(torch.zeros_like(indices))\n    total = 2 * decoder\n    sums",
        ),
        ("strata not weighted by their width", "total = total + (stop - start) * term(t)", "total = total + term(t)"),
        ("one timestep of a stratum for all images", "Stream.LIKELIHOOD_TIMESTEP, indices,", "Stream.LIKELIHOOD_TIMESTEP, 0 * indices,"),
        ("last timestep of a stratum never drawn", "(u * (stop - start)).long()", "(u * (stop - start - 1)).long()"),
        ("terms of float images", "if batch[1].dtype != torch.uint8:", "if False:"),
    ),
    *_in(
        "evaluation/likelihood/bits_per_dim.py",
        "tests/unit/evaluation/test_likelihood.py",
        ("an image counted twice", "if len(twice):", "if False:"),
        ("standard error without the root", "math.sqrt(self.num_images)", "self.num_images"),
        ("images in the parts' order", "order = indices.argsort()", "order = torch.arange(len(indices))"),
    ),
    *_in(
        "evaluation/records/devices.py",
        "tests/unit/evaluation/test_likelihood.py",
        ("autocast left on", "enabled=False", "enabled=True"),
        ("TF32 left on", 'backend.fp32_precision = "ieee"', "pass"),
    ),
    *_in(
        "evaluation/likelihood/estimate.py",
        "tests/unit/evaluation/test_likelihood.py",
        ("every timestep of equal mass", "mass = 1 / (t + 1) +", "mass = 1 + 0 * t +"),
    ),
]

GROUPS = {
    "Schedules": SCHEDULES,
    "Process": PROCESS,
    "Objectives": LOSSES,
    "Samplers of t": TIMESTEPS,
    "Keyed noise": NOISE,
    "Spacing": SPACING,
    "Samplers and ensembles": SAMPLERS,
    "Likelihood": LIKELIHOOD,
    "Network": NETWORK,
}


def outcome(mutation: Mutation | None, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Runs tests on a copy of the tree with the mutation in it.

    Returns:
        Whether it is as it should be (a test fails; without a mutation, none does), and the first test that failed or
        what is wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source, target = ROOT / name, copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, target)
        if mutation is not None:
            path = copy / mutation.file
            text = path.read_text()
            if text.count(mutation.old) != 1:
                return False, f"does not apply: its source is there {text.count(mutation.old)} times"
            path.write_text(text.replace(mutation.old, mutation.new))
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", *tests]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    failed = re.search(r"^FAILED (\S+\.py)::(.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return mutation is not None, f"{Path(failed[1]).stem}::{failed[2]}"
    if done.returncode == 0:
        return mutation is None, "SURVIVED"
    return False, f"BROKEN: {done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-200:]}"


def main() -> int:
    """Runs every mutation whose description or group contains the words given (all, if none) and prints the table."""
    words = " ".join(sys.argv[1:]).lower()
    chosen = [(g, m) for g, ms in GROUPS.items() for m in ms if words in f"{g} {m.what}".lower()]
    intact, reason = outcome(None, tuple(sorted({test for _, m in chosen for test in m.tests})))
    if not intact:
        print(f"the tests fail without any mutation: {reason}")
        return 1
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = list(pool.map(lambda pair: outcome(pair[1], pair[1].tests), chosen))
    lines = ["# Mutations", ""]
    lines += ["Each mistake below was made in a copy of the source; the test beside it is the first that failed.", ""]
    lines += [f"{len(results)} mutations, {sum(caught for caught, _ in results)} caught. Written by `make mutations`."]
    group = ""
    for (name, mutation), (_, test) in zip(chosen, results, strict=True):
        if name != group:
            group = name
            lines += ["", f"## {group}", "", "| mutation | file | test that fails |", "|---|---|---|"]
        lines.append(f"| {mutation.what} | {mutation.file} | `{test.replace('|', '/')}` |")
    table = "\n".join(lines) + "\n"
    print(table)
    if not words:
        (ROOT / "tests" / "MUTATIONS.md").write_text(table)
    return 0 if all(caught for caught, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
