"""A replay of early stopping as a page, and as what MLflow keeps of it."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.records.protocol_card import card_rows
from evaluation.reports import figures
from evaluation.reports.study import Study, as_json
from evaluation.reports.table_page import table_page
from evaluation.studies.stopping_replay import Replay, as_text, chosen_by, distance_words, verdict


def as_page(found: Replay) -> str:
    """The verdict, the table and both curves as one page."""
    name, cheap, full = found.protocol["distance"]["name"], found.scoring_protocol, found.protocol["distance"]
    curves: dict[str, dict[tuple[int, str], tuple[float, float | None]]] = {
        f"Beside training: {cheap['num_samples']:,} samples, {cheap['sampler']}.": {
            (step, weights): (score, None) for step, weights, score, _, _ in found.table
        },
        f"At full protocol: {full['num_samples']:,} samples, {full['sampler']}; bands are one standard error.": {
            (step, weights): (distance, error) for step, weights, _, distance, error in found.table
        },
    }
    return table_page(
        "Early stopping replayed",
        ["step, weights", "beside training", f"{name} at full protocol", "chosen by"],
        [
            [f"{step:,} {weights}", f"{score:.4g}", distance_words(distance, error), chosen_by(found, step, weights)]
            for step, weights, score, distance, error in found.table
        ],
        card=[(what, said) for what, said in card_rows(found.protocol) if what != "Model"],
        lead=[found.run_uri, *(f"{line[0].upper()}{line[1:]}." for line in verdict(found))],
        pictures={caption: _figure(found, curve).encode() for caption, curve in curves.items()},
    )


def _figure(found: Replay, curve: Mapping[tuple[int, str], tuple[float, float | None]]) -> str:
    """A distance by step, with what early stopping picked."""
    history = [
        {
            "step": step,
            "scores": {weights: value for (at, weights), (value, _) in curve.items() if at == step},
            "standard_errors": {weights: error for (at, weights), (_, error) in curve.items() if at == step},
        }
        for step in sorted({step for step, _ in curve})
    ]
    return figures.distance_by_step(
        history,
        distance_name=found.protocol["distance"]["name"],
        chosen_step=found.rescored.step,
        chosen_weights=found.rescored.weights,
    )


def as_study(found: Replay) -> Study:
    """The files, and the numbers as MLflow draws them: each decay's two curves by step, and the verdict at step 0."""
    name = found.run_uri.rstrip("/").rpartition("/")[2]
    points: dict[tuple[str, int], float | int | None] = {
        ("same_checkpoint", 0): int(found.same_checkpoint),
        ("score_ratio", 0): found.score_ratio,
        ("total_ratio", 0): found.total_ratio,
        ("behind", 0): found.behind,
        ("behind_standard_error", 0): found.behind_standard_error,
        ("stop_step", 0): found.stop_step,
    }
    for word, pick in (("cheap", found.cheap), ("rescored", found.rescored), ("full", found.full)):
        points |= {(f"picked_step/{word}", 0): pick.step, (f"picked_distance/{word}", 0): pick.distance}
    for step, weights, score, distance, error in found.table:
        points |= {
            (f"beside_training/{weights}", step): score,
            (f"full_protocol/{weights}", step): distance,
            (f"full_protocol_standard_error/{weights}", step): error,
        }
    return Study(
        kind="replay-stopping",
        title=f"Early stopping replayed: {name}",
        text=as_text(found),
        models={name: found.run_uri},
        protocol=found.protocol,
        points=points,
        files={
            "replay.html": as_page(found).encode(),
            "replay.json": as_json(found.to_dict()),
            "replay.txt": f"{as_text(found)}\n".encode(),
        },
    )
