"""The score of a batch of images as lines, as a page, and as what MLflow keeps of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from evaluation.reports.study import Study, as_json
from evaluation.reports.table_page import table_page
from evaluation.studies.batch_score import BatchScore


def as_text(found: BatchScore) -> str:
    """A line a measure."""
    return "\n".join(f"{name:<18} {words}" for name, words in [*_rows(found), ("reference", found.reference)])


def as_page(found: BatchScore) -> str:
    """The measures and their card as one page."""
    card = found.protocol
    return table_page(
        f"{found.distance_name} of a batch",
        ["measure", "value"],
        [[name, words] for name, words in _rows(found)],
        lead=[f"{card['samples']} against {card['reference_file']}"],
        card=[
            ("Samples", f"{_count(found)}, {card['samples']}"),
            ("Reference", f"{card['reference_file']}: {found.reference}"),
            ("Features", f"{card['extractor']}, weights sha256 {card['extractor_sha256'][:12]}"),
            ("Standard error", "delete-a-group jackknife over ten blocks of samples; none of statistics without images"),
            ("Versions", ", ".join(f"{name} {version}" for name, version in card["versions"].items())),
            ("Device", card["device"]),
        ],
    )


def as_study(found: BatchScore) -> Study:
    """The files, and the numbers as MLflow keeps them."""
    points: dict[tuple[str, int], float | int | None] = {
        ("distance", 0): found.distance,
        ("distance_standard_error", 0): found.standard_error,
    }
    for name, item in found.metrics.items():
        points |= {(name, 0): item["value"], (f"{name}_standard_error", 0): item["standard_error"]}
    card: dict[str, Any] = found.protocol
    name = card["samples"].rstrip("/").rpartition("/")[2]
    return Study(
        kind="score-batch",
        title=f"{found.distance_name} of {name}",
        text=as_text(found),
        models={name: card["samples"]},
        protocol=card,
        points=points,
        files={"score.html": as_page(found).encode(), "score.json": as_json(dataclasses.asdict(found))},
    )


def _rows(found: BatchScore) -> list[tuple[str, str]]:
    rows = [(found.distance_name, f"{found.distance:.6g}{_error(found.standard_error)}  ({_count(found)})")]
    for name, item in found.metrics.items():
        rows.append((name.replace("_", " "), f"{item['value']:.6g}{_error(item['standard_error'])}  ({item['note']})"))
    return rows


def _error(error: float | None) -> str:
    return f" +- {error:.2g}" if error else ""


def _count(found: BatchScore) -> str:
    return f"{found.num_samples:,} samples" if found.num_samples else "statistics that do not say of how many samples"
