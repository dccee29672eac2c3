"""The protocol card: everything that a number depends on, stored with the number.

Distances of one model differ by whole units between protocols (counts, resize, sampler, weights), so a number without
its card can't be compared.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from training.config.experiment import SamplingConfig
from training.config.spacing import count_timesteps
from training.diffusion.samplers.sampler import make_sampler

ERROR_ROW = (
    "Standard error",
    "jackknife over ten blocks of samples, corrected (Efron and Stein 1981): the spread over draws, not the bias of few samples",
)
"""The row of a card about the error of a reported distance (`evaluation.records.intervals.distance_error`)."""
TEST_DIGEST = "test_data_digest"
"""The key of a card's digest of the test images, of an evaluation that compares with them; None where there are none."""
_PACKAGES = ("iddpm-pipelines", "torch", "numpy", "torch-fidelity")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def num_sampling_steps(sampling: SamplingConfig, num_timesteps: int) -> int:
    """Return the paper's K: steps per image."""
    return count_timesteps(sampling.spacing, num_timesteps)


def describe_sampling(sampling: SamplingConfig, num_timesteps: int) -> str:
    """Describe the sampler in words: "ancestral, 250 of 4,000 steps"."""
    clip = "" if sampling.clip_denoised else ", x_0 not clipped"
    if sampling.dynamic_threshold:
        clip = f", x_0 clipped at its {sampling.dynamic_threshold:g} quantile"
    if sampling.guidance_scale != 1.0:
        by = f"the checkpoint of step {sampling.guidance_step:,}" if sampling.guidance_step else "no label"
        clip += f", guidance {sampling.guidance_scale:g} by {by}"
    return f"{make_sampler(sampling).description}, {num_sampling_steps(sampling, num_timesteps):,} of {num_timesteps:,} steps{clip}"


def derived_seed(seed: int, purpose: str) -> int:
    """Return a different seed for each purpose, so that a checkpoint chosen on one draw is not reported on the same draw.

    Args:
        purpose: "score" (the same noise at every checkpoint and decay), "choose", "report", "nightly-2026-11-24".
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:6])


def same_protocol(stored: Mapping[str, Any], card: Mapping[str, Any]) -> bool:
    """Return True if a result with the stored card answers an evaluation with this card.

    What only one of the two says of the test images does not count: cards of earlier versions have no digest of them, and no other
    card has one where nothing is computed on them.
    """
    return _without_unknown(stored, card) == _without_unknown(card, stored)


def _without_unknown(card: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card without what the other one does not know."""
    known = {name: value for name, value in card.items() if name != TEST_DIGEST or name in other}
    if known.get("likelihood"):
        likelihood, others = known["likelihood"], other.get("likelihood") or {}
        left_out = {"data_digest"} - others.keys()
        if likelihood.get("form") == "full":
            left_out.add("num_steps")  # the full bound has none; earlier versions stored the experiment's
        known["likelihood"] = {name: value for name, value in likelihood.items() if name not in left_out}
    return known


def card_rows(card: Mapping[str, Any], likelihood_summary: Mapping[str, Any] | None = None, *, model: bool = True) -> list[tuple[str, str]]:
    """Describe a card of `evaluation.evaluate.preflight` in words: rows of a name and its value.

    `likelihood_summary` is `EvaluationResult.likelihood`, for the number of network evaluations; None if not computed. Without
    `model`, the model has no row: the card is that of several.
    """
    distance, likelihood = card["distance"], card["likelihood"]
    reference = distance["reference"]
    rows = [
        *([("Model", card["model"])] if model else []),
        ("Samples", f"{distance['num_samples']:,}, {distance['quantization']}"),
        ("Sampler", distance["sampler"]),
        ("Labels", f"{distance['labels']}" if distance["labels"] else "none, the model is unconditional"),
        *([("Enlarged", distance["low_res"])] if distance.get("low_res") else []),
        ("Seed", f"{distance['seed']} (purpose: {distance['purpose']})"),
        ("Arithmetic", distance.get("arithmetic", distance["precision"])),
        (
            "Reference",
            f"{reference['num_images']:,} {reference['split']} images of {reference['data_name']}, "
            f"{reference['image_size']}x{reference['image_size']}, resize: {reference['resize']}, "
            f"digest {reference['data_digest'][:12]}",
        ),
        features_row(reference),
        ERROR_ROW,
    ]
    if likelihood is not None:
        rows += [
            (
                "Likelihood",
                f"{likelihood['num_images']:,} {likelihood['split']} images, {likelihood['form']} over "
                f"{likelihood['num_timesteps']:,} timesteps, {(likelihood_summary or {}).get('num_evaluations_per_image', '?')} "
                f"network evaluations an image, seed {likelihood['seed']}",
            ),
            ("Decoder", likelihood["decoder"]),
        ]
    if searched := card.get("memorisation"):
        rows.append(
            (
                "Copies",
                f"up to {searched['max_images']:,} samples against all training images, in {searched['space']}; the share is corrected for "
                f"{searched['false_alarm_rate']:.0%} false alarms among held-out images",
            )
        )
    rows.append(versions_row(card))
    rows.append(("Device", card["device"]))
    return rows


def features_row(card: Mapping[str, Any]) -> tuple[str, str]:
    """Return the row of a card about the extractor and its weights."""
    return "Features", f"{card['extractor']}, weights sha256 {card['extractor_sha256'][:12]}"


def versions_row(card: Mapping[str, Any]) -> tuple[str, str]:
    """Return the row of a card about the versions of the packages."""
    return "Versions", ", ".join(f"{name} {version}" for name, version in card["versions"].items())
