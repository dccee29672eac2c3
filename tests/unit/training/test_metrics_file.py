"""The record of a run's metrics: the first value of a step stays, unless training went back before it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from training import storage
from training.tracking.metrics_file import METRICS, MetricsFile, last_time, read_metric


def survivors(run_uri: str) -> list[tuple[int, float]]:
    """Return the points that another process would send to MLflow."""
    file = MetricsFile(run_uri)
    file.save()
    return sorted((point.step, point.value) for point in file.unsent)


def test_after_a_rollback_the_later_values_count(tmp_path: Path) -> None:
    run_uri, file = str(tmp_path), MetricsFile(str(tmp_path))
    for step, loss in ((10, 3.0), (20, 2.0), (30, 9.0), (40, math.inf)):
        file.append({"loss": loss}, step, step)
    file.save()
    file.abandon_after(20, 41)
    file.append({"loss": 7.0}, 20, 42)  # of a step that stays
    file.append({"loss": 1.5}, 30, 43)
    file.save()
    expected = [(10, 3.0), (20, 2.0), (30, 1.5)]
    assert read_metric(run_uri, "loss") == survivors(run_uri) == expected, "step 40 is not reached again yet"
    assert [(point.step, point.replaces) for point in file.unsent[4:]] == [(30, True)]
    resumed = MetricsFile(run_uri)
    for step in (30, 40):
        resumed.append({"loss": 1.0}, step, step + 20)
    resumed.save()
    assert read_metric(run_uri, "loss") == survivors(run_uri) == [*expected, (40, 1.0)], "after a resume the first value stays"


@pytest.mark.parametrize("resumed", [False, True])
def test_a_value_that_replaces_another_is_newer_also_where_the_clock_was_set_back(tmp_path: Path, resumed: bool) -> None:
    file = MetricsFile(str(tmp_path))
    for step in (20, 30):
        file.append({"loss": 9.0, "seconds": 1.0}, step, 60_000 + step)
    file.append({"seconds": 1.0}, 35, 61_000)
    file.save()
    if resumed:  # by a machine whose clock is behind
        file = MetricsFile(str(tmp_path))
        file.save()
    file.unsent.clear()
    file.abandon_after(20, 100)
    for step, values in ((25, {"loss": 1.5}), (30, {"loss": 1.5, "seconds": 2.0}), (35, {"loss": 1.5})):
        file.append(values, step, 100 + step)
    file.save()
    assert [(point.key, point.step, point.milliseconds) for point in file.unsent] == [
        ("loss", 25, 125),
        ("loss", 30, 61_001),
        ("seconds", 30, 61_001),
        ("loss", 35, 135),
    ]
    again = MetricsFile(str(tmp_path))
    again.save()
    assert again.unsent[-4:] == file.unsent, "equal points are sent once"


def test_a_record_that_could_be_read_only_in_part_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MetricsFile(str(tmp_path))
    file.append({"loss": 3.0}, 10, 10)
    file.save()
    resumed, read_bytes = MetricsFile(str(tmp_path)), storage.read_bytes

    def fail_at_second_file(uri: str) -> bytes:
        if not uri.endswith(METRICS):
            raise storage.StorageError("no answer", transient=True)
        return read_bytes(uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", fail_at_second_file)
        with pytest.raises(storage.StorageError):
            resumed.save()
    resumed.save()
    assert resumed.unsent == file.unsent


def test_the_line_of_a_rollback_is_one_that_earlier_versions_read(tmp_path: Path) -> None:
    file = MetricsFile(str(tmp_path))
    file.append({"loss": 1.0}, 10, 1)
    file.abandon_after(10, 2)  # abandons nothing
    file.abandon_after(0, 3)
    file.save()
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert lines == [{"step": 10, "time": 1, "values": {"loss": 1.0}}, {"step": 0, "time": 3, "values": {}, "rollback": True}]
    assert last_time(str(tmp_path)) == 3
