"""Every stored JSON file, with each of its values in turn removed or of another type: the reader takes it, or names the file."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.ablations.close import ablation_numbers
from components.ablations.directory import read_plan
from components.launch.lease import Lease, read_lease
from components.retention.collect import SEEN, _note_seen
from components.steps.compare import tell_comparison
from components.steps.run_messages import training_numbers
from components.steps.runs import data_of, last_progress, require_not_deleting
from components.steps.webhook import URL_VARIABLE, send_once
from components.tuning.report import make_report
from evaluation.ablations.definitions.request import AblationRequest
from evaluation.ablations.page.gallery import findings_as_markdown
from evaluation.ablations.trials import record as ablation_record
from evaluation.monitoring import nightly
from evaluation.monitoring.checkpoint_scorer import read_history
from evaluation.monitoring.early_stopping import best_checkpoints
from evaluation.records.protocol_card import card_rows
from evaluation.records.result import EvaluationResult
from evaluation.records.score_card import as_markdown
from evaluation.reports.report import write_report
from evaluation.selection.resolve import chosen_weights
from evaluation.tuning.record import read_records, smallest_scores
from evaluation.tuning.request import TuneRequest
from pipelines.cli.paper.reproduce import beside_the_paper
from training.checkpoints import checkpoint
from training.checkpoints.experiment_file import read_experiment
from training.config.errors import UserError
from training.config.presets import preset
from training.data.format.manifest import Manifest, Shard, manifest_digest, read_manifest
from training.storage import StorageError
from training.tracking.metrics_file import last_time, read_metric

OTHERS: tuple[Any, ...] = (None, True, -3, 0.5, "text", [], ["text"], {}, {"text": "text"})
EXPERIMENT = preset("digits-tiny-hybrid-cosine")
LEASE = Lease(owner="p-1", host="a-host", pid=5, began="7", id="a")
RESULT = {
    "checkpoint_uri": "runs/x/checkpoints/step=00000200",
    "weights": "ema_0.99",
    "step": 200,
    "distance_name": "FID",
    "distance": 1.25,
    "distance_standard_error": 0.25,
    "distance_without_blocks": [1.25, 1.5],
    "distance_of_halves": [[1.0, 2.0]],
    "held_out": {"num_images": 80, "real": 3.5, "generated": 4.5},
    "likelihood": {"bits_per_dim": 4.5, "standard_error": 0.25, "num_images": 300, "timesteps": [0, 1], "per_t": [1.0, 0.5]},
    "metrics": {"recall": {"value": 0.5, "standard_error": 0.25, "interval": [0.25, 0.75], "bias": 0.0, "method": "m", "note": "n"}},
    "grid_uri": "",
    "images_uri": "",
    "protocol": {
        "model": "a model",
        "distance": {
            "num_samples": 80,
            "sampler": "DDIM",
            "labels": "balanced",
            "low_res": None,
            "quantization": "truncated",
            "seed": 3,
            "purpose": "report",
            "precision": "fp32",
            "reference": {
                "num_images": 10,
                "split": "train",
                "data_name": "digits",
                "image_size": 8,
                "resize": "none",
                "data_digest": "abc",
                "extractor": "inception",
                "extractor_sha256": "abc",
            },
        },
        "likelihood": {"num_images": 300, "num_timesteps": 40, "split": "test", "form": "full", "seed": 1, "decoder": "tanh"},
        "memorisation": {"max_images": 9, "space": "pixels", "false_alarm_rate": 0.01},
        "versions": {"python": "3.11"},
        "device": "cpu",
    },
    "experiment": EXPERIMENT.to_dict(),
    "created_at": "2026-11-24T15:42:00+00:00",
    "seconds": 12.0,
}
SCORE = {
    "step": 200,
    "scores": {"ema_0.99": 1.5, "ema_0.995": None},
    "standard_errors": {"ema_0.99": 0.1, "ema_0.995": None},
    "without_blocks": {"ema_0.99": [1.0, 2.0]},
    "distance_name": "FID",
    "protocol": {"num_samples": 60, "sampler": "DDIM"},
}
DIFFERENCE = {"value": 0.5, "standard_error": 0.125, "interval": [0.25, 0.75], "verdict": "worse"}
RESCORED = [
    {"candidate": {"step": 200, "weights": "ema_0.99", "score": 1.5}, "distance": 1.5, "standard_error": 0.25, "difference": each}
    for each in (None, DIFFERENCE)
]
CHOICE = {"checkpoint_uri": "runs/x/checkpoints/step=00000200", "step": 200, "weights": "ema_0.99", "candidates": RESCORED, "reason": "it"}
TRAINED = {
    "best_checkpoint_uri": "runs/x/checkpoints/step=00000200",
    "best_weights": "ema_0.99",
    "data_uri": "data",
    "tracking_run_id": "r",
    "step": 200,
}
NIGHT = {
    "id": "nightly-1",
    "at": "2026-11-24T15:42:00Z",
    "distance": 1.5,
    "standard_error": 0.25,
    "redrawn": [1.5],
    "protocol": {"seed": 1},
    "versions": {"python": "3.11"},
    "evaluation_uri": "",
}
HISTORY = {"nights": [NIGHT], "accepted": [{"first_night": "nightly-1", "at": "2026-11-24T15:42:00Z", "by": "me", "reason": "so"}]}
TRIAL = {
    "number": 0,
    "params": {"optim.learning_rate": 0.5},
    "state": "complete",
    "score": 1.5,
    "best_step": 10,
    "scores": [[10, 1.5]],
    "rungs": {"0": 1.5},
    "reason": "",
    "run_uri": "runs/x",
}
TUNING = {
    "request": TuneRequest(preset="digits-tiny-hybrid-cosine", search=("optim.learning_rate=[0.001,0.002]",), trials=1).to_dict(),
    "tracking_url": "",
}
GRID = AblationRequest(name="own", scale="tiny", preset="digits-tiny-hybrid-cosine", grid={"diffusion.vlb_weight": [0.001, 0.01]})
ABLATION = {
    "request": GRID.to_dict(),
    "items": [{"label": "a"}],
    "parent_run_id": "r",
    "parent_url": "",
    "tracking": "iddpm",
    "values": {"a": {"vlb_weight": 0.001}},
}
ABLATED = {
    "label": "a",
    "values": {"vlb_weight": 0.001},
    "own": ["diffusion.vlb_weight=0.001"],
    "step": 200,
    "seed": 1,
    "measures": {"final": RESULT, "history": {"points": []}},
}
FINDING = {"claim": "cosine is better", "verdict": "reproduced", "evidence": "1 and 2"}
SUMMARY = {"name": "own", "title": "Own", "changes": ["seed=1"], "order": 1, "findings": [FINDING], "failed": ["a"]}
TABLE = {"rows": [{"trial": "a", "distance": 1.5, "distance_paper": None, "bits_per_dim": 3.5, "bits_per_dim_paper": 3.0}]}
MODELS = [{"name": each, "result": {"distance_name": "FID", "distance": 1.5, "distance_standard_error": 0.25}} for each in "ab"]
MESSAGE = {"id": "msg_1", "at": "2026-11-24T15:42:00Z", "delivered": True, "message": {"event": "failed", "text": "it failed", "links": {}}}


def _manifest() -> dict[str, Any]:
    shard = Shard(file="shard-00000.arrow", num_rows=2, num_bytes=9, sha256="a", rows_sha256="b")
    fields = {"name": "x", "split": "train", "image_size": 8, "image_channels": 1, "num_images": 2, "num_classes": 1, "class_names": ("c",)}
    more = {"class_counts": (2,), "resize": "none", "reduced_decode": False, "num_upscaled": 0, "shuffle_seed": 0, "split_seed": None}
    made = Manifest(schema_version=1, **fields, **more, plan_sha256="p", content_digest="", shards=(shard,), errors=())
    plain: dict[str, Any] = json.loads(made.to_json())
    return {**plain, "content_digest": manifest_digest(made)}


def _report(run: str) -> None:
    write_report(run)
    chosen_weights(run)


def _result(run: str) -> None:
    result = EvaluationResult.read(f"{run}/evaluations/final.json")
    as_markdown(result.score_card(), "")
    result.flat_metrics()
    card_rows(result.protocol, result.likelihood)
    training_numbers(run)


def _scores(run: str) -> None:
    history = read_history(run)
    smallest_scores(history)
    best_checkpoints(history, 2)
    write_report(run)


def _history(run: str) -> None:
    history = nightly.read_history(run)
    if history is not None and history.nights:
        nightly.judge(history)


def _trained(run: str) -> None:
    chosen_weights(run)
    data_of(run)


def _metrics(run: str) -> None:
    read_metric(run, "loss")
    last_time(run)


CASES: dict[str, tuple[dict[str, Any], Callable[[str], Any]]] = {
    "evaluations/final.json": (RESULT, _result),
    "evaluations/choice.json": (CHOICE, _report),
    "evaluations/step=00000200.json": (SCORE, _scores),
    "result.json": (TRAINED, _trained),
    "attempt.json": ({"time": 5, "data_uri": "data"}, lambda run: (last_progress(run), data_of(run))),
    "lease/00000001.json": (dataclasses.asdict(LEASE), lambda run: read_lease(f"{run}/lease")),
    "deleting.json": ({"since": 5.0}, require_not_deleting),
    "experiment.json": (EXPERIMENT.to_dict(), lambda run: read_experiment(f"{run}/experiment.json")),
    "metrics.jsonl": ({"step": 1, "time": 5, "values": {"loss": 0.5, "other": "NaN"}}, _metrics),
    "manifest.json": (_manifest(), read_manifest),
    "checkpoints/step=00000200/complete.json": (
        {"step": 200, "files": {"model.pt": {"num_bytes": 1, "sha256": "a"}}},
        lambda run: checkpoint.load(f"{run}/checkpoints/step=00000200", "model.pt"),
    ),
    "nightly/history.json": (HISTORY, _history),
    "trials/0000.json": (TRIAL, read_records),
    "tune/plan.json": (TUNING, lambda run: make_report(f"{run}/tune")),
    "plan.json": (ABLATION, read_plan),
    "trials/a.json": (ABLATED, lambda run: ablation_record.AblationTrial.read(f"{run}/trials/a.json")),
    "summary.json": (SUMMARY, lambda run: (ablation_numbers(run), findings_as_markdown(Path(run).parent))),
    "table.json": (TABLE, lambda run: beside_the_paper(Path(run))),
    "comparison.json": ({"models": MODELS}, lambda run: tell_comparison(f"{run}/page.html", "p-1", run)),
    "told.json": (MESSAGE, lambda run: send_once({"event": "failed", "text": "it failed"}, f"{run}/told.json")),
    SEEN: ({"runs/x": 5.0}, lambda run: _note_seen(run, (), 6.0)),
}


def _damaged(value: Any) -> Iterator[Any]:
    """Yield copies of a value with each value inside it, in turn, removed or of another type."""
    for path in _paths(value):
        for other in OTHERS:
            changed = copy.deepcopy(value)
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            is_number = isinstance(holder[path[-1]], float) and type(other) is int
            if type(other) is not type(holder[path[-1]]) and not is_number:
                holder[path[-1]] = other
                yield changed
        removed = copy.deepcopy(value)
        holder = removed
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]
        yield removed


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from _paths(child, (*path, key))


PAGES = ("evaluations/choice.json", "evaluations/step=00000200.json")
"""Read by making the report, which takes its time."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in PAGES else name for name in CASES])
def test_a_damaged_file_is_taken_or_named_and_never_a_traceback(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setattr("components.steps.webhook._post_in_time", lambda record: None)
    value, read = CASES[name]
    run = str(tmp_path / "x")
    for file, other in (("checkpoints/step=00000200/complete.json", {"step": 200, "files": {}}), ("evaluations/final.json", RESULT)):
        if file != name:
            _write(Path(run, file), other)
    found: dict[str, str] = {}
    _write(Path(run, name), value)
    if not name.endswith("complete.json"):  # the checkpoint has no other file
        read(run)
    for changed in _damaged(value):
        _write(Path(run, name), changed)
        try:
            read(run)
        except (UserError, StorageError) as error:
            if Path(name).name not in str(error) and "step=00000200" not in str(error):
                found.setdefault(f"not named: {error}", json.dumps(changed)[:2000])
        except Exception as error:
            found.setdefault(f"{type(error).__name__}: {str(error).splitlines()[0]}", json.dumps(changed)[:2000])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", [name for name in CASES if name not in PAGES])
def test_a_file_of_a_hundred_thousand_brackets_is_taken_or_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.steps.webhook._post_in_time", lambda record: None)
    file = tmp_path / "x" / name
    file.parent.mkdir(parents=True)
    file.write_text("[" * 100_000)
    said = file.name
    try:
        CASES[name][1](str(tmp_path / "x"))
    except (UserError, StorageError) as error:
        said = str(error)
    assert file.name in said or "step=00000200" in said


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
