"""iddpm nightly: the history of a model on disk is shown, and a level accepted."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evaluation.monitoring.detector import Rule
from evaluation.monitoring.nightly import History, Night, read_history, write_history
from training.checkpoints import checkpoint

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    """A run with a checkpoint and six nights, the last one a regression."""
    checkpoint.save(str(tmp_path), 100, {"experiment.json": {}})
    first = datetime(2026, 1, 1, 2, tzinfo=UTC)
    nights = (
        Night(id=f"n{day}", at=first + timedelta(days=day), distance=distance, standard_error=0.1, rule=Rule(baseline_nights=5))
        for day, distance in enumerate([3.0, 3.1, 2.9, 3.1, 2.9, 4.0])
    )
    write_history(str(tmp_path), History(nights=tuple(nights)))
    return str(tmp_path)


def test_show_prints_the_nights_and_the_judgement(run_iddpm: Command, run_uri: str) -> None:
    status, out, _ = run_iddpm("nightly", "show", run_uri)
    assert status == 0
    assert "2026-01-06 02:00  4      3.2          0             a jump: worse" in out
    assert out.splitlines()[-1].startswith("4 against 3 (mean of 5 healthy scores); worse by 1 ± 0.21 (95%)")
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


@pytest.mark.parametrize("words", [("--reason", "why"), ("--by", "Ada"), ("--reason", " ", "--by", "Ada")])
def test_accept_without_a_reason_or_a_name_is_refused(run_iddpm: Command, run_uri: str, words: tuple[str, ...]) -> None:
    assert run_iddpm("nightly", "accept", run_uri, *words)[0] != 0
    assert (read_history(run_uri) or History()).accepted == ()


def test_a_model_without_a_night_is_one_line(run_iddpm: Command, tmp_path: Path) -> None:
    checkpoint.save(str(tmp_path), 100, {"experiment.json": {}})
    assert "error: the model has no nightly score yet" in run_iddpm("nightly", "show", str(tmp_path))[2]
