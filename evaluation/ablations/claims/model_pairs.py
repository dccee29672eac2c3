"""The paper's claims on two models beside each other or together: terms of the bound, ensemble, common noise, two stages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evaluation.ablations.claims.claim import Finding, bits, bound_ratio, distance, role, smaller, unit_of, verdict
from evaluation.ablations.trials.measures import paired_correlation, read_images
from evaluation.ablations.trials.record import TrialRecord

_SECTION_4 = "supplement section 4"


def vlb_ratio(records: Sequence[TrialRecord]) -> list[Finding | None]:
    """Supplement section 4, figure 3: which of two models has the smaller terms of the bound, and where."""
    hybrid, vlb = role(records, "hybrid"), role(records, "vlb")
    if hybrid is None or vlb is None:
        return []
    ratio = bound_ratio(hybrid, vlb)
    width = max(1, len(ratio) // 40)
    found: list[Finding | None] = []
    for claim, words, part, above in (
        ("theta_vlb is better at the start of the diffusion process.", f"the first {width} timesteps", ratio[:width], True),
        ("theta_hybrid is better throughout the middle.", "the timesteps between", ratio[width:-width], False),
        ("theta_vlb is better at the end of the diffusion process.", f"the last {width} timesteps", ratio[-width:], True),
    ):
        log_mean = sum(math.log(value) for value in part) / len(part)
        share = sum(value < 1 for value in part) / len(part)
        found.append(
            Finding(
                claim=claim,
                source="supplement section 4, figure 3",
                verdict=verdict(-log_mean if above else log_mean),
                evidence=f"Over {words} the ratio of theta_hybrid's terms to theta_vlb's is {math.exp(log_mean):.3g} "
                f"(geometric mean); theta_hybrid is the better one at {share:.0%} of them.",
            )
        )
    return found


def ensemble(records: Sequence[TrialRecord]) -> list[Finding | None]:
    """Supplement section 4: the better ends of one model and the better middle of another."""
    both, hybrid, vlb = (role(records, name) for name in ("ensemble", "hybrid", "vlb"))
    parts = [estimate for estimate in (bits(hybrid), bits(vlb)) if estimate is not None]
    unit = unit_of(records)
    return [
        smaller(
            "The ensemble has a better likelihood than both of its parts.",
            _SECTION_4,
            ("ensemble", bits(both)),
            ("the better part", min(parts, default=None)),
            "bits/dim",
        ),
        smaller(
            "The ensemble's samples are slightly worse than theta_hybrid's.",
            _SECTION_4,
            ("theta_hybrid", distance(hybrid)),
            ("ensemble", distance(both)),
            unit,
        ),
        smaller(
            "The ensemble's samples are better than theta_vlb's.",
            _SECTION_4,
            ("ensemble", distance(both)),
            ("theta_vlb", distance(vlb)),
            unit,
        ),
    ]


def same_noise(records: Sequence[TrialRecord]) -> list[Finding | None]:
    """Supplement section 8: images of two models from the same noise."""
    found: list[Finding | None] = []
    for data in dict.fromkeys(str(record.values["data"]) for record in records):
        rows = [record for record in records if record.values["data"] == data and record.measures.get("samples")]
        if len(rows) < 2:
            continue
        first, second = (read_images(record.measures["samples"]["images_uri"]) for record in rows[:2])
        paired, unpaired = paired_correlation(first, second)
        found.append(
            Finding(
                claim=f"From the same noise L_hybrid and L_vlb draw related images ({data}).",
                source="supplement section 8, figures 20 and 21: shown there, not said",
                verdict=verdict(unpaired - paired, 1 / math.sqrt(len(first))),
                evidence=f"Pixels of {len(first)} pairs of images from the same noise correlate by {paired:.2f}, "
                f"of pairs from different noise by {unpaired:.2f}.",
            )
        )
    return found


def two_stage(records: Sequence[TrialRecord]) -> list[Finding | None]:
    """Supplement section 3, table 2: a small model and one that enlarges, against a single one."""
    return [
        smaller(
            "Two stages are better than a single one.",
            "supplement section 3, table 2",
            ("two stages", distance(role(records, "two-stage"))),
            ("a single stage", distance(role(records, "single-stage"))),
            unit_of(records),
        )
    ]
