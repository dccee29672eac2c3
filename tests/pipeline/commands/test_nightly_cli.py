"""iddpm nightly: the history of a model on disk is shown, and a level accepted."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.monitoring.detector import Rule
from evaluation.monitoring.nightly import History, Night, read_history, update_history
from training.checkpoints import checkpoint
from training.config.presets import preset

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    """A run with a checkpoint and six nights, the last one a regression."""
    _save(tmp_path, 100)
    update_history(str(tmp_path), lambda _: History(nights=_nights([3.0, 3.1, 2.9, 3.1, 2.9, 4.0])))
    return str(tmp_path)


def _save(run: Path, step: int) -> str:
    experiment = preset("digits-tiny-hybrid-cosine", ["optim.ema_decays=0.9"])
    return checkpoint.save(str(run), step, {"experiment.json": experiment.to_dict(), "ema_0.9.pt": {"x": torch.zeros(1)}})


def _nights(distances: Sequence[float], *, name: str = "n", protocol: dict[str, str] | None = None) -> tuple[Night, ...]:
    first = datetime(2026, 1, 1, 2, tzinfo=UTC)
    known: dict[str, Any] = {"standard_error": 0.05, "rule": Rule(baseline_nights=5), "protocol": protocol}
    return tuple(
        Night(id=f"{name}{day}", at=first + timedelta(days=day), distance=distance, **known) for day, distance in enumerate(distances)
    )


def test_show_prints_the_nights_and_the_judgement(run_iddpm: Command, run_uri: str) -> None:
    status, out, _ = run_iddpm("nightly", "show", run_uri)
    assert status == 0
    assert "2026-01-06 02:00  4      3.2          0             a jump: worse" in out
    assert out.splitlines()[-1].startswith("4 against 3 (mean of 5 healthy scores); worse by 1 ± 0.3 (95%)")
    told = json.loads(run_iddpm("nightly", "show", run_uri, "--json")[1])
    assert told["direction"] == 1
    assert told["rule"]["baseline_nights"] == 5
    assert [night["distance"] for night in told["nights"]][-1] == 4.0


def test_accept_writes_reason_and_name_into_the_history(run_iddpm: Command, run_uri: str) -> None:
    status, out, _ = run_iddpm("nightly", "accept", run_uri, "--reason", "a new sampler", "--by", "Ada")
    assert status == 0
    assert out.startswith("accepted: the baseline begins anew with the night 2026-01-06 02:00\nuntil now: 4 against 3")
    history = read_history(run_uri)
    assert history is not None
    assert [(each.first_night, each.by, each.reason) for each in history.accepted] == [("n5", "Ada", "a new sampler")]


def test_show_and_accept_take_the_nights_of_the_checkpoint_that_is_named(run_iddpm: Command, tmp_path: Path) -> None:
    """Two checkpoints of one run are checked each night, one after the other."""
    first, second, third = (_save(tmp_path, step) for step in (100, 200, 300))
    ours = _nights([3.0, 3.1, 2.9, 3.1, 2.9, 4.0], name="a", protocol={"checkpoint": "step 100, ema_0.9"})
    theirs = _nights([7.0, 7.1, 6.9, 7.1, 6.9, 7.0], name="b", protocol={"checkpoint": "step 200, ema_0.9"})
    update_history(str(tmp_path), lambda _: History(nights=tuple(night for pair in zip(ours, theirs, strict=True) for night in pair)))
    assert "4 against 3 (mean of 5 healthy scores); worse by 1" in run_iddpm("nightly", "show", first)[1]
    assert "7 against 7 (mean of 5 healthy scores)" in run_iddpm("nightly", "show", second)[1]
    assert run_iddpm("nightly", "accept", first, "--reason", "why", "--by", "Ada")[0] == 0
    assert [each.first_night for each in (read_history(str(tmp_path)) or History()).accepted] == ["a5"]
    error = run_iddpm("nightly", "show", third)[2]
    assert "no nightly score yet (its run has nights of step 100, ema_0.9; step 200, ema_0.9)" in error


@pytest.mark.parametrize("words", [("--reason", "why"), ("--by", "Ada"), ("--reason", " ", "--by", "Ada")])
def test_accept_without_a_reason_or_a_name_is_refused(run_iddpm: Command, run_uri: str, words: tuple[str, ...]) -> None:
    assert run_iddpm("nightly", "accept", run_uri, *words)[0] != 0
    assert (read_history(run_uri) or History()).accepted == ()


def test_a_model_without_a_night_is_one_line(run_iddpm: Command, tmp_path: Path) -> None:
    _save(tmp_path, 100)
    assert "error: the model has no nightly score yet" in run_iddpm("nightly", "show", str(tmp_path))[2]
