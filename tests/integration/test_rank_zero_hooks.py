"""Rank 0's hooks of a resumed run, with a real MLflow: what a worker that was killed did not log is logged now."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import storage
from training.config.experiment import Resources
from training.config.presets import preset
from training.loop.interfaces import Job
from training.loop.rank_zero_hooks import RankZeroHooks
from training.tracking import runs as tracking

pytestmark = pytest.mark.slow


class Scores:
    """A scorer whose scores are all there."""

    def __init__(self, scores: Mapping[int, float]) -> None:
        self.scores = [{"step": step, "value": value} for step, value in scores.items()]

    def score(self, checkpoint_uri: str) -> Mapping[str, Any]:
        raise AssertionError(f"{checkpoint_uri} is scored already")

    def history(self, run_uri: str) -> Sequence[Mapping[str, Any]]:
        return self.scores

    def stop_reason(self, history: Sequence[Mapping[str, Any]]) -> str | None:
        return None

    def metrics(self, score: Mapping[str, Any]) -> Mapping[str, float]:
        return {"score/distance": score["value"]}

    def image(self, score: Mapping[str, Any]) -> Any:
        return np.full((4, 4, 3), score["step"], np.uint8)

    def keep(self, history: Sequence[Mapping[str, Any]]) -> set[int]:
        return set()


@pytest.fixture
def tracked(services: Any) -> tracking.TrackedRun:
    return tracking.open_run(run_key=uuid.uuid4().hex, experiment_name="hooks", run_name="a run", tags={}, params={})


def opened(run_uri: str, tracking_run_id: str = "", scores: Mapping[int, float] | None = None) -> RankZeroHooks:
    """The hooks of a run with those scores."""
    job = Job(
        experiment=preset("digits-hybrid-cosine"),
        resources=Resources(),
        data_uri="",
        run_uri=run_uri,
        tracking_run_id=tracking_run_id,
        scorer=Scores(scores or {}),
    )
    return RankZeroHooks(job, 1, submit_score=lambda scorer, uri: pytest.fail(f"{uri} is scored already"), is_stop_requested=lambda: False)


def resume(run_uri: str, tracking_run_id: str, scores: Mapping[int, float]) -> None:
    """Resume the run in a process that ends at once."""
    opened(run_uri, tracking_run_id, scores).close()


def logged(tracked: tracking.TrackedRun) -> tuple[list[tuple[int, float]], list[str]]:
    """The scores that MLflow has, and its pictures."""
    client = tracking.connect()
    pictures = [str(file.path) for file in client.list_artifacts(tracked.run_id, "images")]
    return tracked.metric_history("score/distance"), sorted(name for name in pictures if "compressed" not in name)


def test_mlflow_has_the_number_of_workers_that_train_and_not_of_those_that_were_asked_for(
    tracked: tracking.TrackedRun, tmp_path: Path
) -> None:
    tracked.set_tags({tracking.NUM_WORKERS_TAG: "8"})
    tracked.flush()
    resume(storage.join(f"file://{tmp_path}", "run"), tracked.run_id, {})
    assert tracking.tags_of(tracked.run_id)[tracking.NUM_WORKERS_TAG] == "1"


def test_a_resumed_run_logs_to_mlflow_the_scores_that_are_missing_there_and_none_twice(
    tracked: tracking.TrackedRun, tmp_path: Path
) -> None:
    run_uri = storage.join(f"file://{tmp_path}", "run")
    resume(run_uri, tracked.run_id, {})
    assert logged(tracked) == ([], [])
    resume(run_uri, tracked.run_id, {10: 3.0, 20: 2.0})  # as if a worker had been killed before it could log them
    first = logged(tracked)
    assert first[0] == [(10, 3.0), (20, 2.0)]
    assert ["+step+20+" in name for name in first[1]] == [True], "the latest picture"
    resume(run_uri, tracked.run_id, {10: 3.0, 20: 2.0, 30: 1.0})
    scores, pictures = logged(tracked)
    assert scores == [(10, 3.0), (20, 2.0), (30, 1.0)]
    assert len(pictures) == 2
    resume(run_uri, tracked.run_id, {10: 3.0, 20: 2.0, 30: 1.0})
    assert logged(tracked) == (scores, pictures)


def test_the_rest_is_sent_to_mlflow_also_where_the_last_checkpoint_could_not_be_written(
    tracked: tracking.TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise storage.StorageError("the disk is full")

    def failing(step: int) -> RankZeroHooks:
        hooks = opened(f"file://{tmp_path}/run", tracked.run_id, {step: 3.0})
        monkeypatch.setattr(hooks._writer, "close", fail)
        return hooks

    def diverge(hooks: RankZeroHooks) -> None:
        try:
            raise RuntimeError("diverged")
        finally:
            hooks.close()

    with pytest.raises(storage.StorageError, match="the disk is full"):
        failing(10).close()
    with pytest.raises(RuntimeError, match="diverged"):
        diverge(failing(20))
    assert logged(tracked)[0] == [(10, 3.0), (20, 3.0)]
    assert capsys.readouterr().out.count("the last checkpoint is not stored: the disk is full\n") == 1, "it would hide the other error"


def test_a_score_that_can_not_be_logged_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hooks = opened(f"file://{tmp_path}/run")
    monkeypatch.setattr(Scores, "metrics", lambda scorer, score: {}["score/distance"])
    score: Future[Mapping[str, Any]] = Future()
    score.set_result({"step": 10, "value": 3.0})
    hooks._pending[10] = score
    hooks._collect_scores()
    hooks.close()
    assert hooks._scores.keys() == {10}
    assert not hooks._failures
    assert "the score of step 10 is stored, but was not logged: 'score/distance'\n" in capsys.readouterr().out
