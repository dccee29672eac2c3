"""A training that Ray gave up or lost: with a new checkpoint it is started again, without one the error is raised, and each says why."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from training.config.experiment import Resources
from training.config.presets import preset
from training.launch import ray_train
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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ray's answers to `fit`, which a test fills in; what is asked of Ray between two is noted in place of them."""
    noted: list[str] = []
    monkeypatch.setattr(ray_train, "_free_reservations", lambda: noted.append("freed"))
    return noted


def _train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fits: list[Any], steps: list[int]) -> Outcome:
    def fit() -> Any:
        answer = fits.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(return_value=answer)

    monkeypatch.setattr(ray_train, "TorchTrainer", lambda *_, **__: SimpleNamespace(fit=fit))
    monkeypatch.setattr(ray_train, "_saved_step", lambda _: steps.pop(0))
    job = Job(
        run_uri=str(tmp_path / "run"),
        data_uri=str(tmp_path / "data"),
        experiment=preset("digits-tiny-hybrid-cosine"),
        resources=Resources(),
    )
    return ray_train._fit(job, str(tmp_path))


def test_with_a_new_checkpoint_it_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(monkeypatch, tmp_path, [LOST, END], [0, 20, 20]) == END
    assert calls == ["freed"], "a reservation of the lost training would keep the scores waiting"
    assert "there is a new checkpoint, from which it is started again: The node died.\n" in capsys.readouterr().out


def test_without_a_new_checkpoint_the_error_is_rays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls: list[str]) -> None:
    with pytest.raises(ray.exceptions.NodeDiedError):
        _train(monkeypatch, tmp_path, [LOST], [20, 20])
    assert calls == []


@pytest.mark.parametrize("error", WAYS)
def test_a_lack_of_memory_is_said_in_one_line_with_the_remedy(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(monkeypatch, tmp_path, [error, END], [0, 20, 20]) == END
    (line,) = capsys.readouterr().out.splitlines()
    assert f"started again: {SHORT}" in line
    with pytest.raises(TrainingError) as caught:
        _train(monkeypatch, tmp_path, [error], [20, 20])
    assert str(caught.value).startswith(f"training stopped: {SHORT}")
    assert len(str(caught.value).splitlines()) == 1
    assert calls == ["freed"]


def test_another_error_of_what_leads_the_workers_is_said_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(monkeypatch, tmp_path, [ray.train.ControllerError(LOST), END], [0, 20, 20]) == END
    assert capsys.readouterr().out.endswith("started again: The node died.\n")
