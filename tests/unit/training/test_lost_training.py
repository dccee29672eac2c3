"""A training whose controller Ray has lost: with a new checkpoint it is started again, without one the error is raised."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from training.config.experiment import Resources
from training.config.presets import preset
from training.launch import ray_train
from training.loop.interfaces import Job, Outcome

LOST = ray.exceptions.OutOfMemoryError(  # type: ignore[no-untyped-call]
    "2 worker(s) were killed due to the node running low on memory.\nMemory on the node ..."
)
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
    assert "training was lost, but there is a new checkpoint: it is started again (2 worker(s) were killed" in capsys.readouterr().out


def test_without_a_new_checkpoint_the_error_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls: list[str]) -> None:
    with pytest.raises(ray.exceptions.OutOfMemoryError):
        _train(monkeypatch, tmp_path, [LOST], [20, 20])
    assert calls == []
