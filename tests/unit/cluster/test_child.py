"""A step in a process of its own: its result, its errors, and what is done when the process is killed."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.compare_models import compare_models
from components.evaluate import evaluate
from components.launch import driver, repeat
from components.launch.call import call_of
from components.launch.repeat import LostError, repeat_lost
from components.launch.run import run_step
from components.measure_trial import measure_trial
from components.preprocess import preprocess
from components.score_model import score_model
from components.steps.registry import PREPROCESS
from training import storage
from training.config.errors import UserError
from training.storage.errors import StorageError


@pytest.fixture(autouse=True)
def in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "train-x-system-container-impl-1")
    monkeypatch.setattr(repeat, "PAUSE_SECONDS", 0.1)


def _arguments(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    from training.config.presets import preset

    experiment = preset("digits-hybrid-cosine").to_json()
    given = {"data_uri": str(tmp_path / "data"), "storage_root_uri": str(tmp_path), "source": "", "experiment": experiment}
    given |= {"source_options": {}, "options": {}, "other_sizes": []}
    return given | changes


def _kill_child_once(killed: list[int]) -> None:
    deadline = time.monotonic() + 60
    while not killed and time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*"):
            try:
                is_child = f"PPid:\t{os.getpid()}\n" in (path / "status").read_text()
                if is_child and b"components.launch.driver" in (path / "cmdline").read_bytes():
                    os.kill(int(path.name), signal.SIGKILL)
                    killed.append(int(path.name))
                    return
            except OSError:
                continue
        time.sleep(0.01)


def test_a_step_whose_process_is_killed_is_done_again_and_the_log_names_the_memory(tmp_path, capfd):
    killed: list[int] = []
    thread = threading.Thread(target=_kill_child_once, args=(killed,))
    thread.start()
    prepared = run_step(PREPROCESS, _arguments(tmp_path), "laptop")
    thread.join()
    assert killed
    assert prepared
    printed = capfd.readouterr().out
    assert "the pod's memory of 4Gi ran out" in printed
    assert "lost 1 of 3 times" in printed


@pytest.mark.parametrize("code", [0, 1, -6])
def test_a_step_whose_process_ends_without_an_answer_is_done_again(tmp_path, monkeypatch, capfd, code):
    """Ray ends a driver, with exit code 1, when a process of its own is lost."""
    ends, start = [f"import os; os._exit({code})" if code >= 0 else "import os; os.abort()"], subprocess.Popen

    def end_first(command: list[str], **given: Any) -> Any:
        return start([sys.executable, "-c", ends.pop()] if ends and "components.launch.driver" in command else command, **given)

    monkeypatch.setattr(subprocess, "Popen", end_first)
    assert run_step(PREPROCESS, _arguments(tmp_path), "laptop")
    assert f"the process of step preprocess ended with {code} and no error; its last lines say why; going on" in capfd.readouterr().out


def test_what_the_user_did_wrong_is_not_tried_again(tmp_path, capfd):
    with pytest.raises(UserError, match="nowhere"):
        run_step(PREPROCESS, _arguments(tmp_path, source="nowhere"), "laptop")
    assert "going on" not in capfd.readouterr().out


@pytest.mark.parametrize(("steps", "tries"), [([0, 0, 0, 0], 3), ([0, 100, 100, 200, 200, 200], 5)], ids=["no progress", "progress"])
def test_work_that_is_lost_three_times_without_progress_is_given_up(steps, tries):
    left, done = iter(steps), []

    def work() -> None:
        done.append(1)
        raise LostError("gone")

    with pytest.raises(LostError, match="gone"):
        repeat_lost(work, lambda: next(left))
    assert len(done) == tries


def test_an_outage_of_the_storage_is_waited_for_in_one_try_of_a_step_that_has_no_checkpoints(tmp_path, monkeypatch):
    """Three tries with half a minute between them would be spent on an outage of two minutes."""
    away, tries, exists = [True] * 2, [], storage.exists

    def ask(uri: str) -> bool:
        if away:
            away.pop()
            raise StorageError(f"{uri}: no answer", transient=True)
        return exists(uri)

    def work() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise StorageError("s3://x: no answer", transient=True)
        return "done"

    monkeypatch.setattr(storage, "exists", ask)
    call = call_of(PREPROCESS, _arguments(tmp_path))
    assert repeat_lost(work, call.progress, sleep=lambda seconds: None) == "done"
    assert away == [], "it was asked until it answered"


def test_a_driver_waits_for_the_file_with_its_call(tmp_path, monkeypatch):
    away, read = [True], storage.read_json

    def ask(uri: str, *rest: object) -> object:
        if away:
            away.pop()
            raise StorageError(f"{uri}: no answer", transient=True)
        return read(uri, *rest)

    call = call_of(PREPROCESS, _arguments(tmp_path, source="nowhere"))
    call.write(ray_address="local")
    monkeypatch.setattr(storage, "read_json", ask)
    assert driver.main([call.uri]) == 1, "it came to the step, which refuses its source"
    assert away == []


def test_what_a_run_computes_on_a_standing_cluster_is_not_another_runs(tmp_path):
    """A run that begins removes its own earlier answer, not the one that another run has yet to read."""
    first, second = (call_of(PREPROCESS, _arguments(tmp_path), scope=run) for run in ("run-1", "run-2"))
    assert first.result_uri != second.result_uri


@pytest.mark.parametrize(("transient", "tries"), [(True, 3), (False, 1)])
def test_storage_that_is_away_is_asked_again_and_a_wrong_name_is_not(transient, tries):
    done = []

    def work() -> None:
        done.append(1)
        raise StorageError("s3://x: no answer", transient=transient)

    with pytest.raises(StorageError):
        repeat_lost(work)
    assert len(done) == tries


@pytest.mark.parametrize(
    ("component", "reader"),
    [
        (evaluate, "components.steps.evaluate.log_result"),
        (score_model, "components.steps.evaluate.log_result"),
        (measure_trial, "components.ablations.steps.log_record"),
        (preprocess, "components.steps.preprocess.write_manifests"),
        (compare_models, "training.storage.download"),
        (compare_models, "components.steps.compare.tell_comparison"),
    ],
)
def test_a_storage_that_is_away_when_the_work_is_done_is_waited_for(
    component: Any, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another try of the step would be one of KFP's four, and on a laptop there is none."""
    calls: list[object] = []

    def read(*_: object) -> str:
        calls.append(1)
        if len(calls) == 1:
            raise StorageError("no answer", transient=True)
        return "read"

    for name in ("training.storage.download", "components.steps.compare.tell_comparison"):
        monkeypatch.setattr(name, lambda *_: None)
    monkeypatch.setattr(reader, read)
    monkeypatch.setattr("components.launch.run.run_step", lambda *_: "done")
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda _: None))
    given = dict.fromkeys(inspect.signature(component.python_func).parameters, "")
    artifact = SimpleNamespace(path="", log_metric=None)
    given |= {name: artifact for name in ("metrics", "manifest", "page") if name in given}
    given |= {"storage_root_uri": str(tmp_path)} if "storage_root_uri" in given else {}
    component.python_func(**given)
    assert len(calls) == 2
