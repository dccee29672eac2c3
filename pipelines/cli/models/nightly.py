"""nightly show, accept: the history of a model's nightly scores, in S3 or on disk."""

from __future__ import annotations

import dataclasses
import json

import typer

from pipelines.cli.options import JSON, MODEL, out, print_table
from pipelines.cli.services import connect


def show(model: str = MODEL, as_json: bool = JSON) -> None:
    """Show the nights since the baseline began, and the judgement of the last one."""
    from evaluation.monitoring.nightly import History, judge, read_history

    run_uri, checkpoint = _resolve(model)
    judgement = judge(read_history(run_uri) or History(), checkpoint)
    if as_json:
        facts = {
            "direction": judgement.direction,
            "text": judgement.text,
            "since": judgement.since and judgement.since.isoformat(),
            "baseline_reason": judgement.baseline_reason,
            "num_missing": judgement.num_missing,
            "rule": dataclasses.asdict(judgement.night.rule),
            "nights": [{"at": night.at.isoformat(), "id": night.id, "distance": night.distance} for night in judgement.nights],
        }
        out(json.dumps(facts, indent=2))
        return
    trace = judgement.trace
    rows: list[tuple[str | None, ...]] = [("night", "score", "sum (worse)", "sum (better)", "")]
    for index, night in enumerate(judgement.nights):
        jump = {1: "a jump: worse", 0: "", -1: "a jump: better"}[int(trace.jump[index])]
        slow = {1: "worse", 0: "", -1: "better"}[int(trace.slow[index])]
        rows.append(
            (f"{night.at:%Y-%m-%d %H:%M}", f"{trace.value[index]:.4g}", f"{trace.up[index]:.2g}", f"{trace.down[index]:.2g}", jump or slow)
        )
    print_table(rows)
    if judgement.baseline_reason:
        out(f"a new baseline began: {judgement.baseline_reason}")
    out(judgement.text)


def accept(
    model: str = MODEL,
    reason: str = typer.Option(..., help="Reason why the new level is right; it is stored in the history."),
    by: str = typer.Option(..., help="Your name; it is stored in the history."),
) -> None:
    """Accept the level of the last night: a new baseline begins with it."""
    from evaluation.monitoring.nightly import accept as accept_level

    run_uri, checkpoint = _resolve(model)
    overruled = accept_level(run_uri, reason=reason, by=by, checkpoint=checkpoint)
    out(f"accepted: the baseline begins anew with the night {overruled.night.at:%Y-%m-%d %H:%M}")
    out(f"until now: {overruled.text}")


def _resolve(model: str) -> tuple[str, str]:
    """Return the directory of the model's run, and the name of the model's checkpoint among the run's nights."""
    from evaluation.monitoring.nightly import checkpoint_name
    from evaluation.records.run_directory import run_uri_of
    from evaluation.selection.resolve import resolve_model
    from training.checkpoints import checkpoint

    connect()
    found = resolve_model(model)
    uri = found.checkpoint_uri
    return run_uri_of(uri), checkpoint_name(checkpoint.step_of(uri), found.weights or checkpoint.choose_weights(uri))
