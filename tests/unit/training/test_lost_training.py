"""A training that Ray gave up or lost: with a new checkpoint it is started again, without one the error is raised, and each says why."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from training.checkpoints import checkpoint
from training.config.experiment import Resources
from training.config.presets import preset
from training.launch import ray_train, worker
from training.loop.interfaces import Job, Outcome, TrainingError

LOST = ray.exceptions.NodeDiedError("The node died.\nIt was ...")  # type: ignore[no-untyped-call]
# Ray's words on a cluster, in `tests/recordings/texts/out_of_memory.json.gz`.
NO_MEMORY = ray.exceptions.OutOfMemoryError(  # type: ignore[no-untyped-call]
    "4 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.244.0.211, ID: 3f5143) was 3.94GB used / "
    "4.00GB limit (0.984278)\nOOM kill reason: Memory usage 4126461952B exceeded threshold of 4080218880B"
)
WAYS = [NO_MEMORY, ray.train.ControllerError(NO_MEMORY), ray.train.WorkerGroupError(str(NO_MEMORY), {0: NO_MEMORY})]
SHORT = 'memory ran out (3.94GB used, the limit is 4.00GB); if it happens again, give it more (train_resources: {"memory": ...}'
END = Outcome(step=30, stop_reason=None)
_GROUP = "b" * 28 + "01000000"
"""Id of a placement group; its end is that of the job which made it."""


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the placement groups that are removed from Ray, which has one of this job and one of another."""
    groups = {"a" * 28 + "02000000": {"state": "CREATED"}, _GROUP: {"state": "CREATED"}}
    noted: list[str] = []
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: _GROUP[28:]))
    monkeypatch.setattr(ray_train, "placement_group_table", lambda: groups)
    monkeypatch.setattr(ray_train, "remove_placement_group", lambda group: noted.append(group.id.hex()))
    return noted


def _train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *fits: tuple[int, Any]) -> Outcome:
    """Train with a Ray whose `fit` saves a checkpoint of a step each time, and then gives an answer or raises an error."""
    run_uri, answers = str(tmp_path / "run"), iter(fits)

    def fit() -> Any:
        step, answer = next(answers)
        checkpoint.save(run_uri, step, {"state.json": {"step": step}})
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(return_value=answer)

    def trainer(*_: Any, run_config: Any, **__: Any) -> Any:
        assert run_config.failure_config.controller_failure_limit == 0, "Ray itself would start workers that die as they start for ever"
        return SimpleNamespace(fit=fit)

    monkeypatch.setattr(ray_train, "TorchTrainer", trainer)
    job = Job(run_uri=run_uri, data_uri=str(tmp_path / "data"), experiment=preset("digits-tiny-hybrid-cosine"), resources=Resources())
    return ray_train._fit(job, str(tmp_path))


def test_with_a_new_checkpoint_it_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, removed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(monkeypatch, tmp_path, (20, LOST), (30, END)) == END
    assert removed == [_GROUP], "a reservation of the lost training would keep the scores waiting"
    assert "there is a new checkpoint, from which it is started again: The node died\n" in capsys.readouterr().out


def test_without_a_new_checkpoint_it_is_started_again_a_few_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, removed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _train(monkeypatch, tmp_path, (20, END))
    assert _train(monkeypatch, tmp_path, *[(20, LOST)] * ray_train.MAX_WORKER_FAILURES, (30, END)) == END
    assert removed == [_GROUP] * ray_train.MAX_WORKER_FAILURES
    assert "The node died; starting the training again (1 of 3)\n" in capsys.readouterr().out
    with pytest.raises(TrainingError, match=r"^training stopped: The node died\. The same command resumes from step 30 of"):
        _train(monkeypatch, tmp_path, *[(30, LOST)] * (ray_train.MAX_WORKER_FAILURES + 1))


@pytest.mark.parametrize("error", WAYS)
def test_a_lack_of_memory_is_said_in_one_line_with_the_remedy(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, removed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(monkeypatch, tmp_path, (20, error), (30, END)) == END
    (line,) = capsys.readouterr().out.splitlines()
    assert f"started again: {SHORT}" in line
    with pytest.raises(TrainingError) as caught:
        _train(monkeypatch, tmp_path, (30, error))
    assert str(caught.value).startswith(f"training stopped: {SHORT}")
    assert len(str(caught.value).splitlines()) == 1
    assert removed == [_GROUP]


def test_another_error_of_what_leads_the_workers_is_said_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, removed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(monkeypatch, tmp_path, (20, ray.train.ControllerError(LOST)), (30, END)) == END
    assert capsys.readouterr().out.endswith("started again: The node died\n")


def test_the_loss_of_what_leads_the_workers_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, removed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(monkeypatch, tmp_path, (20, END)) == END
    assert _train(monkeypatch, tmp_path, (20, ray.exceptions.ActorDiedError()), (30, END)) == END
    assert "the process that leads the workers (Ray's TrainController) was killed or crashed; " in capsys.readouterr().out


def test_workers_that_die_as_they_start_are_started_again_a_few_times_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, removed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    dead = ray.train.ControllerError(WorkerGroupStartupFailedError("One failed:\nTraceback ...\nThe actor is dead."))
    assert _train(monkeypatch, tmp_path, (20, END)) == END
    assert _train(monkeypatch, tmp_path, *[(20, dead)] * ray_train.MAX_WORKER_FAILURES, (30, END)) == END
    assert "a worker died as it started: The actor is dead; starting the training again (1 of 3)\n" in capsys.readouterr().out
    with pytest.raises(TrainingError, match=r"^training stopped: a worker died as it started: The actor is dead\. The same command"):
        _train(monkeypatch, tmp_path, *[(30, dead)] * (ray_train.MAX_WORKER_FAILURES + 1))


def test_workers_that_find_no_room_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, removed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    full = ray.train.ControllerError(WorkerGroupStartupTimeoutError(num_workers=1))
    assert _train(monkeypatch, tmp_path, *[(20, full)] * 10, (30, END)) == END
    assert capsys.readouterr().out.count("no room for 1 worker(s) yet on the Ray cluster; waiting for it\n") == 10


def test_each_failure_after_which_ray_starts_the_workers_again_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    failures = ray_train._Failures()
    killed = WorkerHealthCheckFailedError("A worker health check failed.", ray.exceptions.ActorDiedError())
    late = ray.exceptions.ActorUnavailableError("The actor is unavailable", None)
    raised = UserExceptionWithTraceback(
        TrainingError("rank 1 stands still"), "Traceback ...\n  File ...\nTrainingError: rank 1 stands still"
    )
    failures.after_exception(None, {1: raised, 0: killed})
    failures.after_exception(None, {0: WorkerHealthCheckFailedError("A worker health check failed.", late)})
    failures.after_exception(None, {0: WorkerHealthCheckFailedError("A worker health check failed.", NO_MEMORY)})
    failures.after_exception(None, {0: killed})
    first, second, third = capsys.readouterr().out.splitlines()  # the driver tells of the last one, after which Ray gives up
    assert first == (
        "iddpm| worker 0: its process was killed or crashed; worker 1: TrainingError: rank 1 stands still; "
        "starting the workers again (1 of 3)"
    )
    assert second == "iddpm| worker 0: its process does not answer; starting the workers again (2 of 3)"
    assert third.startswith(f"iddpm| worker 0: {SHORT}")
    assert third.endswith("; starting the workers again (3 of 3)")


def test_a_worker_that_waits_long_for_the_others_says_so_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = "iddpm| worker 1 is ready and has waited 0 s for the others; they may still read their data\n"
    monkeypatch.setattr(worker, "_SLOW_START_SECONDS", 0.01)
    with worker._told_if_slow(1):
        seen = ""
        while line not in seen:
            time.sleep(0.01)
            seen += capsys.readouterr().out
    assert seen == line
    monkeypatch.setattr(worker, "_SLOW_START_SECONDS", 60.0)
    with worker._told_if_slow(1):
        pass
    assert not capsys.readouterr().out
