"""Ray's logs in the run's directory."""

from __future__ import annotations

import io
import tarfile
import threading
from pathlib import Path

import pytest
from recorded_logs import lines_about_memory

from training import storage
from training.distributed.ray_logs import NoiseFilter, memory_shortage, store_logs
from training.distributed.ray_session import _start_local


def test_the_end_of_each_log_is_kept_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    logs = tmp_path / "logs"
    (logs / "old").mkdir(parents=True)
    (logs / "raylet.out").write_text("begins with very-secret-value\n" * 10_000 + "the end, very-secret-value")
    (logs / "old" / "gcs_server.out").write_text("started")
    uri = store_logs(logs, str(tmp_path / "run"))
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(uri))) as archive:
        kept = {member.name: archive.extractfile(member).read() for member in archive}
    assert kept.keys() == {"raylet.out", "old/gcs_server.out"}
    assert kept["raylet.out"].endswith(b"the end, ***")
    assert 200_000 > len(kept["raylet.out"]) > 100_000
    lines = set(kept["raylet.out"].splitlines())
    assert lines == {b"begins with ***", b"the end, ***"}, "the first line is not one that begins within a secret"


def test_storage_that_takes_no_logs_fails_no_run(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "run").write_text("a file, no directory")
    assert store_logs(tmp_path / "logs", str(tmp_path / "run")) == ""


def test_a_log_that_is_moved_or_can_not_be_read_costs_no_other_log_and_no_outcome(tmp_path, monkeypatch):
    logs, run_uri = tmp_path / "logs", str(tmp_path / "run")
    logs.mkdir()
    for name in ("moved.out", "refused.out", "stays.out"):
        (logs / name).write_text(name)
    opened = Path.open

    def open_or_fail(path, *arguments, **options):
        if path.name == "moved.out":
            path.unlink(missing_ok=True)
        if path.name == "refused.out":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_or_fail)
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(store_logs(logs, run_uri)))) as archive:
        assert archive.getnames() == ["stays.out"]
    assert store_logs(tmp_path / "nowhere", run_uri)


def test_a_warning_without_effect_is_left_out_with_its_traceback_and_the_next_lines_are_shown() -> None:
    """Ray Train 2.60 wrote these lines on a node whose cores were all busy."""
    lines = [
        "iddpm| step 50/1,017  loss 0.9",
        "Failed to send resource request for train-fbaee2. If this only happens transiently during network partition or CPU being ",
        "Traceback (most recent call last):",
        '  File "ray/train/v2/_internal/execution/scaling_policy/autoscaling_coordinator_client.py", line 58, in send_resource_request',
        "    ray.get(",
        "ray.exceptions.GetTimeoutError: Get timed out: some object(s) not ready.",
        "Traceback (most recent call last):",
        "RuntimeError: one of ours",
        "iddpm| step 97/1,017  loss 0.8",
    ]
    assert NoiseFilter().rest(lines) == [lines[0], *lines[-3:]]
    noise = NoiseFilter()
    assert [line for each in lines for line in noise.rest([each])] == [lines[0], *lines[-3:]], "in parts, as it comes while it is written"


def test_the_search_for_a_dashboard_beside_another_ray_of_this_machine_is_left_out() -> None:
    """Ray Train 2.60 wrote these lines while a second training ran on the machine."""
    lines = [
        "Failed to query Train Controller actor state. State API may be temporarily unavailable. Continuing to monitor.",
        "Traceback (most recent call last):",
        '  File "ray/_private/services.py", line 759, in canonicalize_bootstrap_address_or_die',
        "    raise ConnectionError(",
        "ConnectionError: Found multiple active Ray instances: {'192.0.2.2:36501', '192.0.2.2:34187'}. Please specify the one",
        "iddpm| step 97/1,017  loss 0.8",
    ]
    assert NoiseFilter().rest(lines) == lines[-1:]


@pytest.mark.parametrize("size", [1, 30, 1000])
def test_of_rays_words_about_a_nodes_memory_the_first_line_is_shown_in_whatever_parts_they_come(size: int) -> None:
    lines = lines_about_memory()
    assert len(lines) > 500
    noise = NoiseFilter()
    shown = [line for start in range(0, len(lines), size) for line in noise.rest(lines[start : start + size])]
    dump = ("OOM kill reason", "- objects", "- bytes", "(global lru)", "Selected to kill", "(Actor(", "Top 10 memory users", "381\t0.55")
    assert [line for line in shown if line.startswith(dump)] == []
    assert sum("running low on memory. Memory on the node" in line and "3.94GB used / 4.00GB limit" in line for line in shown) == 8
    assert shown[-1].startswith("4 worker(s) were killed"), "the lines after a dump are shown, such as the next error's"
    if size == 1000:
        assert len(shown) < 80
        assert "Traceback (most recent call last):" not in shown, "each one here ends in Ray's words about memory"


def test_our_own_line_is_shown_also_where_the_end_of_rays_words_is_missing() -> None:
    start = lines_about_memory()[:30]
    assert any("running low on memory" in line for line in start)
    ours = "iddpm| the score of step 40 failed: 1 worker(s) were killed due to the node running low on memory."
    assert NoiseFilter().rest([*start, ours, "after it"])[-2:] == [ours, "after it"]


def test_an_error_about_a_nodes_memory_becomes_one_line_with_the_remedy() -> None:
    said = memory_shortage(RuntimeError("\n".join(lines_about_memory())))
    assert said.startswith("memory ran out (3.94GB used, the limit is 4.00GB); ")
    assert 'train_resources: {"memory": ...}' in said
    assert "\n" not in said
    assert memory_shortage(RuntimeError("The worker died unexpectedly")) == ""


def test_a_ray_that_does_not_start_is_named_with_the_place_of_its_logs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under a low `ulimit -v` Ray 2.60 waits for itself for ever."""
    told = threading.Event()
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    monkeypatch.setattr("training.distributed.ray_session._SLOW_START_SECONDS", 0.01)
    monkeypatch.setattr("training.distributed.ray_session.say", lambda line: (print(line), told.set()))
    monkeypatch.setattr("ray.init", lambda **_: told.wait(30))
    _start_local(1)
    said = capsys.readouterr().out
    assert said.startswith("Ray has not started for 0.0 s; if it does not soon, stop this, see its logs in /")
    assert "/ray/session_latest/logs, and check memory, disk and the limits of `ulimit -a`" in said
