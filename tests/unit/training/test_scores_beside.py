"""Rank 0's hooks and the scores beside training, without MLflow."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from recorded_logs import lines_about_memory

from training import storage
from training.checkpoints import checkpoint
from training.config.experiment import Resources
from training.config.presets import preset
from training.launch.ray_train import _failure_message, scaling, scoring_obstacle
from training.launch.worker import set_up_device
from training.loop.interfaces import STOP_REQUESTED, Job, Outcome, Scorer
from training.loop.rank_zero_hooks import RankZeroHooks

EXPERIMENT = preset("digits-hybrid-cosine", ["optim.checkpoint_interval=10"])


class Scores:
    """A scorer that stops training after a number of scores."""

    def __init__(self, steps: Sequence[int], enough: int = 100) -> None:
        self.scores = [self.score(f"run/checkpoints/step={step:08d}") for step in steps]
        self.enough = enough
        self.seen: list[int] = []

    def score(self, checkpoint_uri: str) -> Mapping[str, Any]:
        return {"step": checkpoint.step_of(checkpoint_uri), "value": 1.0}

    def history(self, run_uri: str) -> Sequence[Mapping[str, Any]]:
        return self.scores

    def stop_reason(self, history: Sequence[Mapping[str, Any]]) -> str | None:
        self.seen = [score["step"] for score in history]
        return "enough" if len(history) >= self.enough else None

    def metrics(self, score: Mapping[str, Any]) -> Mapping[str, float]:
        return {"score/distance": score["value"]}

    def image(self, score: Mapping[str, Any]) -> Any:
        return None

    def keep(self, history: Sequence[Mapping[str, Any]]) -> set[int]:
        return {10}


class Pool:
    """Finishes a score when the test calls `finish`; those of the steps in `failing` fail at once."""

    def __init__(self, failing: Collection[int] = ()) -> None:
        self.submitted: dict[int, Future[Mapping[str, Any]]] = {}
        self.failing = failing
        self.attempts: list[int] = []

    def submit(self, scorer: Scorer, checkpoint_uri: str) -> Future[Mapping[str, Any]]:
        future: Future[Mapping[str, Any]] = Future()
        step = checkpoint.step_of(checkpoint_uri)
        self.submitted[step] = future
        self.attempts.append(step)
        if step in self.failing:
            future.set_exception(RuntimeError("out of memory"))
        return future

    def finish(self, step: int) -> None:
        self.submitted[step].set_result({"step": step, "value": 2.0})


def save(run_uri: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(str(run_uri), step, {"state.json": {"step": step}})


def hooks_of(run_uri: Path, scorer: Scores, pool: Pool, *, is_stop_requested: bool = False) -> RankZeroHooks:
    job = Job(experiment=EXPERIMENT, resources=Resources(), data_uri="", run_uri=str(run_uri), scorer=scorer)
    return RankZeroHooks(job, 1, submit_score=pool.submit, is_stop_requested=lambda: is_stop_requested)


def test_a_checkpoint_without_a_score_is_scored_by_the_next_attempt(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 23)
    scorer, pool = Scores([10], enough=2), Pool()
    side = hooks_of(tmp_path, scorer, pool)
    hooks = side.hooks()
    assert list(pool.submitted) == [20], "not that of step 23, which an undisturbed run does not have"
    assert hooks.should_stop(25) is None
    pool.finish(20)
    assert hooks.should_stop(30) == "enough"
    assert scorer.seen == [10, 20]
    side.close()


def test_a_damaged_checkpoint_that_is_written_again_has_one_score(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    Path(checkpoint.checkpoint_uri(str(tmp_path), 20), "state.json").unlink()
    scorer, pool = Scores([10, 20]), Pool()
    side = hooks_of(tmp_path, scorer, pool)
    hooks = side.hooks()
    assert checkpoint.steps(str(tmp_path)) == [10]
    hooks.save(20, {"state.json": {"step": 20}})
    side.finish_saving()
    hooks.should_stop(20)
    pool.finish(20)
    hooks.should_stop(30)
    assert scorer.seen == [10, 20]
    side.close()


def test_a_checkpoint_that_was_removed_before_an_outage_is_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 10, 20)
    Path(checkpoint.checkpoint_uri(str(tmp_path), 20), "state.json").unlink()
    clean, pool = checkpoint.clean, Pool()

    def broken_off(run_uri: str) -> list[int]:
        removed = clean(run_uri)
        if removed:
            raise storage.StorageError("no answer", transient=True)
        return removed

    monkeypatch.setattr("training.checkpoints.checkpoint.clean", broken_off)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    side = hooks_of(tmp_path, Scores([10, 20]), pool)
    save_by(side, 20)
    assert list(pool.submitted) == [20]
    side.close()


def test_the_start_removes_the_unfinished_snapshots_of_a_killed_process(tmp_path: Path) -> None:
    left = tmp_path / "averages/checkpoints/step=00000010/.power_ema_0.1.pt.x.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    hooks_of(tmp_path, Scores([]), Pool()).close()
    assert not left.exists()


def save_by(side: RankZeroHooks, *steps: int) -> None:
    """Save a checkpoint of each step as the loop does, and let the hooks look after it."""
    hooks = side.hooks()
    for step in steps:
        hooks.save(step, {"state.json": {"step": step}})
        side.finish_saving()
        hooks.should_stop(step)


def test_a_score_that_fails_ends_nothing_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 10)
    pool = Pool(failing={10})
    side = hooks_of(tmp_path, Scores([]), pool)
    assert side.finish(Outcome(step=10, stop_reason=None)).stop_reason is None
    side.close()
    assert pool.attempts == [10, 10], "the last chance is at the end"
    assert "the score of step 10 failed: out of memory" in capsys.readouterr().out


def test_a_score_that_ray_killed_for_memory_is_named_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 10)
    pool = Pool()
    side = hooks_of(tmp_path, Scores([]), pool)
    pool.submitted[10].set_exception(RuntimeError("\n".join(lines_about_memory())))
    side.hooks().should_stop(20)
    side.close()
    assert "the score of step 10 failed: memory ran out (3.94GB used, the limit is 4.00GB); if it happens again" in capsys.readouterr().out


def test_an_error_without_a_message_is_named_by_its_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 10)
    pool = Pool()
    side = hooks_of(tmp_path, Scores([]), pool)
    pool.submitted[10].set_exception(MemoryError())
    side.hooks().should_stop(20)
    side.close()
    assert "the score of step 10 failed: MemoryError" in capsys.readouterr().out
    job = Job(experiment=EXPERIMENT, resources=Resources(), data_uri="", run_uri="run")
    error = RuntimeError("failed")
    error.worker_failures = {0: MemoryError(), 1: ValueError("a\nthe cause")}  # type: ignore[attr-defined]
    assert "worker 0: MemoryError; worker 1: the cause. " in _failure_message(error, job, 0)


def test_a_checkpoint_whose_score_failed_is_kept_and_scored_again_once_the_next_one_comes(tmp_path: Path) -> None:
    scorer, pool = Scores([10]), Pool(failing={20})
    side = hooks_of(tmp_path, scorer, pool)
    save_by(side, 20)
    pool.failing = {30}
    save_by(side, 30)
    assert pool.attempts == [20, 20, 30]
    pool.finish(20)
    pool.failing = {30, 40, 50, 60}
    save_by(side, 40, 50, 60)
    assert scorer.seen == [10, 20]
    assert pool.attempts[3:] == [30, 40, 40, 50, 50, 60], "each of them twice"
    side.close()
    assert checkpoint.steps(str(tmp_path)) == [30, 40, 50, 60]
    later = Pool()
    hooks_of(tmp_path, scorer, later).close()
    assert later.attempts == [30, 40, 50, 60], "the next attempt scores them"


def test_a_training_whose_scores_all_fail_says_so_early_and_keeps_a_few_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = range(20, 120, 10)
    side = hooks_of(tmp_path, Scores([]), Pool(failing=steps))
    save_by(side, 20)
    assert "no checkpoint can be chosen" not in capsys.readouterr().out
    save_by(side, 30)
    assert "and the last 3 failed: without a score no checkpoint can be chosen at the end. Training goes on; to repair" in (
        capsys.readouterr().out
    )
    save_by(side, *steps[2:])
    side.close()
    assert checkpoint.steps(str(tmp_path)) == [70, 80, 90, 100, 110]
    printed = capsys.readouterr().out
    assert "the checkpoint of step 60 is not kept for its score any longer: only the latest 5 whose score failed are" in printed
    assert "no checkpoint can be chosen" not in printed


def test_a_score_has_memory_of_the_gpu_also_beside_a_microbatch_that_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fractions: list[float] = []
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda fraction, device: fractions.append(fraction))
    for scorer, microbatch_size in ((Scores([]), 0), (Scores([]), 8), (None, 8)):
        resources = Resources(num_gpus_per_worker=1, microbatch_size=microbatch_size)
        job = Job(experiment=EXPERIMENT, resources=resources, data_uri="", run_uri=str(tmp_path), scorer=scorer)
        set_up_device(job, scores_elsewhere=True)
        set_up_device(job, scores_elsewhere=False)  # the loop and its scores share what one process has
    assert fractions == [0.75, 0.75]


def test_the_wait_for_scores_ends_when_a_stop_is_requested(tmp_path: Path) -> None:
    save(tmp_path, 10)
    side = hooks_of(tmp_path, Scores([]), Pool(), is_stop_requested=True)
    assert side.hooks().interruption() == STOP_REQUESTED
    assert side.finish(Outcome(step=10, stop_reason=None)).stop_reason == STOP_REQUESTED
    side.close()


def test_the_wait_for_scores_that_find_no_processor_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.loop.rank_zero_hooks._SECONDS_TO_WAIT_FOR_ROOM", 0.0)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    assert scoring_obstacle(1) is None
    save(tmp_path, 10, 20)
    job = Job(experiment=EXPERIMENT, resources=Resources(), data_uri="", run_uri=str(tmp_path), scorer=Scores([]))
    side = RankZeroHooks(job, 2, submit_score=Pool().submit, is_stop_requested=lambda: False, scoring_obstacle=lambda: scoring_obstacle(2))
    reason = "no checkpoint can be scored beside training: the Ray cluster has 2 CPUs, and 2 workers take all of them; train with fewer "
    assert reason in capsys.readouterr().out, "it is said where training begins"
    failure = side.finish(Outcome(step=20, stop_reason=None)).failure
    side.close()
    assert failure is not None, "no result is stored, or the same command would find the training done"
    assert "2 checkpoint(s) have no score: the Ray cluster has 2 CPUs" in failure
    assert checkpoint.steps(str(tmp_path)) == [10, 20], "for another attempt"


def test_the_wait_for_a_score_whose_process_stands_still_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.loop.rank_zero_hooks._LONGEST_SCORE_SECONDS", 0.1)
    monkeypatch.setattr("training.loop.rank_zero_hooks._SECONDS_BETWEEN_CHECKS_AT_THE_END", 0.1)
    save(tmp_path, 10, 20)
    side = hooks_of(tmp_path, Scores([]), Pool())
    failure = side.finish(Outcome(step=20, stop_reason=None)).failure
    side.close()
    assert failure is not None, "no result is stored, or the same command would find the training done"
    assert "; kill that process. The same command" in failure
    assert failure.startswith("2 checkpoint(s) have no score: none has come for 0.1 s: a process (ray::_score) stands still")
    assert checkpoint.steps(str(tmp_path)) == [10, 20], "for another attempt"


def test_checkpoints_without_a_use_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30, 40)
    side = hooks_of(tmp_path, Scores([10, 20, 30, 40]), Pool())
    side.hooks().should_stop(50)
    side.close()
    assert checkpoint.steps(str(tmp_path)) == [10, 30, 40], "the scorer's choice and the latest two stay"


def test_a_checkpoint_that_a_rollback_removed_takes_no_place_among_the_latest(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30, 33)
    side = hooks_of(tmp_path, Scores([10, 20, 30]), Pool())
    checkpoint.remove(str(tmp_path), [33])
    side.go_back_to(30)
    side.hooks().should_stop(40)
    side.close()
    assert checkpoint.steps(str(tmp_path)) == [10, 20, 30]


@pytest.mark.parametrize("is_scored", [True, False])
def test_a_checkpoint_that_is_trained_again_after_a_rollback_is_scored_again(tmp_path: Path, is_scored: bool) -> None:
    """A stop saved that of step 20 while training diverged; the next attempt scored it, or began to."""
    save(tmp_path, 10, 20)
    pool = Pool()
    side = hooks_of(tmp_path, Scores([10, 20] if is_scored else [10]), pool)
    checkpoint.remove(str(tmp_path), [20])
    side.go_back_to(10)
    pool.submitted.clear()
    save_by(side, 20)
    assert list(pool.submitted) == [20]
    side.close()


def test_a_score_that_failed_is_not_tried_again_for_a_checkpoint_that_a_rollback_removed(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    pool = Pool(failing=[20])
    side = hooks_of(tmp_path, Scores([10]), pool)
    side.hooks().should_stop(25)
    checkpoint.remove(str(tmp_path), [20])
    side.go_back_to(10)
    side.finish(Outcome(step=10, stop_reason=None))
    assert pool.attempts == [20]
    side.close()


@pytest.mark.parametrize("has_scorer", [True, False])
def test_a_range_of_workers_is_one_for_each_gpu_of_a_node(has_scorer: bool) -> None:
    asked = scaling(Resources(num_workers=32, min_workers=1, num_gpus_per_worker=1), has_scorer=has_scorer)
    policy = ElasticScalingPolicy(asked)
    for gpus in range(1, 17):
        found = {"one": {"CPU": 64.0, "GPU": float(gpus)}, "other": {"CPU": 64.0, "GPU": 1.0}}
        assert policy._count_possible_workers(found) == gpus + 1
    assert asked.elastic_resize_monitor_interval_s == math.inf, "workers that train are not killed to start more of them"


def test_a_process_that_scores_lowers_its_priority_once() -> None:
    code = (
        "import os; from training.launch.ray_train import _score\n"
        "class Scorer:\n"
        "    def score(self, uri): return {'nice': os.nice(0)}\n"
        "before = os.nice(0)\n"
        "values = [_score._function(Scorer(), 'uri')['nice'] for _ in range(3)]\n"
        "assert values == 3 * [min(before + 10, 19)], values\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr
