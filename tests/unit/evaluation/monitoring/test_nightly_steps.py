"""The nightly steps on disk: a model is scored night by night, damaged, found, and its new level accepted. MLflow is away."""

import dataclasses
import json
import re
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from components.steps.nightly import RegressionError, compare_with_history, score_model
from evaluation.monitoring.detector import NUM_REDRAWN, Rule
from evaluation.monitoring.nightly import History, accept, read_history, update_history
from training.checkpoints import checkpoint
from training.storage import StorageError


def test_a_damaged_model_is_drawn_again_found_and_stays_found_until_its_level_is_accepted(
    run_uri: str, digits_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    update_history(run_uri, lambda _: History())  # a run without one asks MLflow, which may have that of an earlier version
    uri = checkpoint.checkpoint_uri(run_uri, 100)
    page = tmp_path / "page.html"

    def check(name: str) -> str:
        scored = score_model(uri, "", digits_uri, 3, 0.0, str(tmp_path), f"nightly-{name}", {})
        return compare_with_history(scored, "no-run", 3, 0.0, str(tmp_path), str(page))

    def night(number: int = -1) -> list[float]:
        history = read_history(run_uri)
        assert history is not None
        return list(history.nights[number].redrawn)

    assert "the first score of the baseline" in check("1")
    assert check("1") == check("1"), "a step that is tried again finds its own night"
    assert "from the same noise" not in page.read_text(), "the first night has none to be compared with"
    second = check("2")
    assert "the baseline has 2 of 3 nights" in second
    assert re.search(r"80 samples from the noise of \S+ have exactly the distance of that night", second)
    assert "Healthy." in page.read_text()
    assert page.read_text().count("data:image/png;base64,") == 3, "samples of the night's own noise, and tonight's beside the first night's"
    assert night() == []

    state = checkpoint.load(uri, "ema_0.99.pt")
    files = {name: checkpoint.load_bytes(uri, name) for name in checkpoint.file_names(uri)}
    *_, last = state  # the bias of the output: noise that is not there is taken away, so that images are dark
    checkpoint.save(run_uri, 100, {**files, "ema_0.99.pt": {**state, last: state[last] + 1}})
    with pytest.raises(RegressionError, match=r"has regressed: \S+ against \S+ \(mean of 2 healthy scores\); worse by .* a jump"):
        check("3")
    assert len(night()) == NUM_REDRAWN
    text = page.read_text()
    assert text.count("<svg") == 2
    assert "Regression." in text
    assert re.search(r"have a distance that differs from that night(.*)s by \+\S+ \(.*\), better with probability 0.0%: worse", text)
    assert "iddpm nightly accept" in text
    assert re.search(r"False alarms: about 0\.[1-9]% of healthy models raise one within a year", text), "not 0%"
    assert accept(run_uri, reason="a test", by="Ada").direction == 1
    assert re.search(r"is healthy: \S+ against \S+ \(mean of 1 healthy score\)", check("4"))
    assert "Ada accepted the level of" in page.read_text()
    assert len(json.loads(Path(run_uri, "nightly/history.json").read_text())["nights"]) == 4


def test_whether_a_night_is_drawn_again_is_decided_by_the_rule_of_its_own_pipeline(
    run_uri: str, digits_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nights before had a larger difference, which someone has lowered since, as has the schedule of another checkpoint."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    update_history(run_uri, lambda _: History())
    scored = score_model(checkpoint.checkpoint_uri(run_uri, 100), "", digits_uri, 3, 0.0, str(tmp_path), "nightly-1", {})
    compare_with_history(scored, "no-run", 3, 0.0, str(tmp_path), str(tmp_path / "page.html"))
    (night,) = (read_history(run_uri) or History()).nights
    assert night.distance is not None
    assert night.protocol is not None
    earlier = [
        dataclasses.replace(
            night,
            id=str(day),
            at=night.at - timedelta(days=9 - day),
            distance=night.distance * (0.5 + day / 1000),
            rule=Rule(min_difference=1e9),
        )
        for day in range(6)
    ]
    other = dataclasses.replace(
        night, id="other", protocol={**night.protocol, "checkpoint": "step 50, ema_0.99"}, rule=Rule(min_difference=1e9)
    )
    update_history(run_uri, lambda _: History(nights=(*earlier, other)))
    with pytest.raises(RegressionError, match="worse by"):
        compare_with_history(
            score_model(checkpoint.checkpoint_uri(run_uri, 100), "", digits_uri, 3, 0.0, str(tmp_path), "nightly-2", {}),
            "no-run",
            3,
            0.0,
            str(tmp_path),
            str(tmp_path / "page.html"),
        )
    assert len((read_history(run_uri) or History()).nights[-1].redrawn) == NUM_REDRAWN


def test_a_score_that_is_tried_again_draws_only_what_the_killed_try_had_not_finished(
    run_uri: str, digits_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def score() -> tuple[str, int]:
        scored = score_model(checkpoint.checkpoint_uri(run_uri, 100), "", digits_uri, 3, 0.0, str(tmp_path), "nightly-1", {})
        return scored, capsys.readouterr().out.count("evaluating step 100")

    uri, num_drawn = score()
    assert num_drawn == 2, "the night's own noise, and the noise of all nights"
    before = Path(uri).read_bytes()
    Path(uri).with_name("nightly-1-common.json").unlink()
    assert score() == (uri, 1)
    assert Path(uri).read_bytes() == before


def test_a_damaged_history_is_refused_before_anything_is_drawn_with_what_to_do(
    run_uri: str, digits_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    update_history(run_uri, lambda _: History())
    Path(run_uri, "nightly/history.json").write_text('{"nights": [')
    message = r"history.json: Invalid JSON: [^;]* column 12; it is damaged .*; restore an earlier version of it, or move it away"
    with pytest.raises(StorageError, match=message):
        score_model(checkpoint.checkpoint_uri(run_uri, 100), "", digits_uri, 3, 0.0, str(tmp_path), "nightly-1", {})
    assert "evaluating step 100" not in capsys.readouterr().out
    with pytest.raises(StorageError, match="restore an earlier version"):
        update_history(run_uri, lambda stored: stored or History())


def test_a_night_without_a_finite_distance_is_a_regression_and_the_next_night_reads_the_history(
    run_uri: str, digits_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    update_history(run_uri, lambda _: History())
    uri = score_model(checkpoint.checkpoint_uri(run_uri, 100), "", digits_uri, 3, 0.0, str(tmp_path), "nightly-1", {})
    lost = json.dumps({**json.loads(Path(uri).read_text()), "distance": None, "distance_standard_error": None})
    for name in ("nightly-1", "nightly-1-again-1"):
        Path(uri).with_name(f"{name}.json").write_text(lost)
    page = tmp_path / "page.html"
    for _ in range(2):
        with pytest.raises(RegressionError, match="the distance is not finite"):
            compare_with_history(uri, "no-run", 3, 0.0, str(tmp_path), str(page))
    assert "Regression." in page.read_text()
    history = read_history(run_uri)
    assert history is not None
    assert (history.nights[-1].distance, history.nights[-1].redrawn) == (None, ())


def test_a_run_that_was_moved_keeps_its_nights_and_a_new_baseline_is_told_with_its_reason(
    run_uri: str, digits_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    update_history(run_uri, lambda _: History())

    def check(uri: str, name: str) -> str:
        scored = score_model(checkpoint.checkpoint_uri(uri, 100), "", digits_uri, 3, 0.0, str(tmp_path), f"nightly-{name}", {})
        return compare_with_history(scored, "no-run", 3, 0.0, str(tmp_path), str(tmp_path / "page.html"))

    check(run_uri, "1")
    moved = shutil.move(run_uri, tmp_path / "elsewhere")
    assert "have exactly the distance of that night" in check(str(moved), "2"), "the addresses in its results are of its first place"
    history = read_history(str(moved))
    assert history is not None
    first, last = history.nights
    assert last.protocol is not None
    earlier = dataclasses.replace(last, protocol={**last.protocol, "num_samples": 40})
    update_history(str(moved), lambda _: dataclasses.replace(history, nights=(first, earlier)))
    assert re.search(
        r"is healthy: \S+, the first score of the baseline; no change can be detected yet; "
        r"a new baseline began: the protocol changed on \S+: num_samples 40 -> 80$",
        check(str(moved), "3"),
    )
