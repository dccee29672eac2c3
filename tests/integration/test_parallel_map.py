"""Jobs on Ray: each is done once, and its exception is raised unchanged."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
import ray

from components.launch.repeat import may_pass
from training.checkpoints.checkpoint import CheckpointError, checkpoint_uri, step_of
from training.distributed.ray_session import StandstillError, parallel_map, parallel_tasks

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_job_is_done_once(num_workers: int) -> None:
    jobs = [checkpoint_uri("run", step) for step in range(8)]
    assert sorted(parallel_map(step_of, jobs, num_workers=num_workers)) == list(range(8))


def test_the_exception_of_a_job_is_raised() -> None:
    with pytest.raises(CheckpointError, match="elsewhere: is not a checkpoint's directory"):
        list(parallel_map(step_of, ["elsewhere", checkpoint_uri("run", 1)], num_workers=2))


def test_after_an_error_tasks_that_are_about_to_end_are_not_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends this process if it cancels a task while it takes in the task's result."""

    def work(job: str) -> None:
        if job == "wrong":
            while not (tmp_path / "began").exists():
                time.sleep(0.02)
            raise CheckpointError(job)
        (tmp_path / "began").touch()
        time.sleep(0.3)

    cancel = Mock()
    monkeypatch.setattr(ray, "cancel", cancel)
    with pytest.raises(CheckpointError, match="wrong"):
        list(parallel_map(work, ["wrong", "short"], num_workers=2))
    cancel.assert_not_called()


def test_an_error_of_a_task_and_a_lost_process_end_no_other_task() -> None:
    def work(job: str) -> str:
        if job == "lost":
            os._exit(1)
        if job == "wrong":
            raise CheckpointError("wrong")
        return job.upper()

    found = dict(parallel_tasks(work, ["a", "wrong", "lost", "b", "c"], num_workers=2))
    assert [found[job] for job in "abc"] == ["A", "B", "C"]
    assert isinstance(found["wrong"], CheckpointError)
    assert isinstance(found["lost"], ray.exceptions.WorkerCrashedError)


def test_a_task_that_is_given_up_has_time_to_end(tmp_path: Path) -> None:
    def work(job: str) -> str:
        if job == "quick":
            while not (tmp_path / "long").exists():
                time.sleep(0.05)
            return job
        (tmp_path / "long").write_text("began")
        try:
            while True:  # an interrupt ends no sleep
                time.sleep(0.05)
        except KeyboardInterrupt:
            (tmp_path / "long").write_text("ended")
            raise

    with contextlib.closing(parallel_tasks(work, ["quick", "long", "later"], num_workers=2, grace_seconds=60)) as tasks:
        assert next(tasks) == ("quick", "quick")
    assert (tmp_path / "long").read_text() == "ended"


def test_tasks_whose_processes_stand_still_are_killed_and_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.distributed.ray_session._LONGEST_TASK_SECONDS", 20.0)  # more than a process takes to start

    def work(job: str) -> str:
        if len(job) > 1:
            (tmp_path / job).write_text(str(os.getpid()))
            if job == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            os.read(os.pipe()[0], 1)  # nobody writes
        return job

    with pytest.raises(StandstillError) as caught:
        list(parallel_map(work, ["a", "stopped", "b", "in a system call", "c"], num_workers=3))
    assert str(caught.value).startswith("2 task(s) have no result: none has come for 20 s: a process (ray::work) stands still, or ")
    assert may_pass(caught.value)
    for job in ("stopped", "in a system call"):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(int((tmp_path / job).read_text())).wait(timeout=60)  # Ray kills a stopped one after 5 s


def test_a_module_of_the_working_directory_is_not_taken_for_ours(tmp_path: Path) -> None:
    for name in ("training", "evaluation"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a file of the working directory was imported')")
    code = (
        "from evaluation.records.run_directory import run_uri_of; from training.distributed.ray_session import parallel_map, ray_session\n"
    )
    code += "with ray_session(num_cpus=2):\n"
    code += "    print(*parallel_map(run_uri_of, ['run/checkpoints/step=00000007'] * 2, num_workers=2))"  # one worker is no Ray worker
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["run run"], done.stderr[-2000:]


def test_the_last_lines_of_all_workers_are_shown(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        "import time\n"
        "def work(number):\n"
        "    time.sleep(1.0)\n"  # by then Ray follows the worker's file
        "    print(f'the last line of {number}', flush=True)\n"
    )
    code = "import sys; sys.path.append('.'); import work; from training.distributed.ray_session import parallel_map, ray_session\n"
    code += "with ray_session(num_cpus=2):\n"
    code += "    list(parallel_map(work.work, [1, 2], num_workers=2))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    for number in (1, 2):
        assert f"the last line of {number}" in done.stdout + done.stderr


def test_a_task_that_ray_kills_for_its_nodes_memory_is_given_up_with_one_line() -> None:
    """Ray kills it as soon as a node uses 1% of its memory, and would start it again for ever."""
    code = (
        "import time; from components.launch.repeat import may_pass\n"
        "from training.distributed.ray_session import parallel_map, ray_session\n"
        "with ray_session(num_cpus=2):\n"
        "    try:\n"
        "        list(parallel_map(time.sleep, [600.0, 600.0], num_workers=2))\n"
        "    except Exception as error:\n"
        "        print(may_pass(error), type(error).__name__, error)"
    )
    settings = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100", "RAY_task_oom_retry_delay_base_ms": "10"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, check=False, timeout=300)
    assert "True MemoryShortageError memory ran out (" in done.stdout.splitlines()[-1], done.stdout[-2000:] + done.stderr[-2000:]
    assert 'the resources of its stage: {"memory": ...}' in done.stdout
    assert "Eviction Stats" not in done.stdout + done.stderr, "Ray's fifty lines about the node are left out"
