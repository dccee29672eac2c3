"""Runs a pipeline on this machine: the very pipeline that compiles for the cluster, through `kfp.local`.

The run is a child process in its own session (`pipelines.local.runner`). This side shows its progress lines, and
sees to it that when the run ends, in whatever way, nothing of it goes on: not a component, not a Ray process.
The embedded services are not part of a run and stay up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipelines.services import daemons

if TYPE_CHECKING:
    from pipelines.services.services import Services

_MARK = "IDDPM_LOCAL_RUN"
_GRACE_SECONDS = 20.0
"""How long a run that was told to stop may take to save what it must."""
_STRAGGLER_SECONDS = 3.0
"""How long what is left may take to notice that its run has ended."""


class PipelineError(RuntimeError):
    """A pipeline that did not finish: the message is one line; `log_path` is where everything else stands."""

    def __init__(self, message: str, log_path: Path | None = None) -> None:
        super().__init__(message)
        self.log_path = log_path


class PipelineInterruptedError(PipelineError):
    """The run was stopped from outside, and everything of it has stopped."""

    exit_status = 130


def run_pipeline(
    pipeline: Any,
    arguments: Mapping[str, Any],
    services: Services,
    *,
    show: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs a pipeline to its end.

    Args:
        pipeline: What `@dsl.pipeline` made.
        arguments: Its parameters by name; the others keep their defaults.
        services: What the components find in their environment; their state folder takes the logs, small artifacts and
            the lock that allows one run at a time.
        show: Is given each progress line, led by its stage.

    Returns:
        The pipeline's outputs by name; an artifact is its path.

    Raises:
        PipelineError: A component failed; the message says which and why, in one line.
        PipelineInterruptedError: Ctrl-C, or SIGTERM.
    """
    _check_arguments(pipeline, arguments)
    home = services.home.resolve()
    log_path = home / "logs" / f"{pipeline.name}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with _one_run_at_a_time(home), tempfile.TemporaryDirectory(prefix="iddpm-run-") as folder:
        if _stop_leftovers(home):
            show("stopped what an earlier run, which was killed, had left behind")
        job = _write_job(pipeline, arguments, home, log_path, Path(folder))
        status = _supervise(job, services, log_path, show)
        result_path = Path(folder) / "result.json"
        result = json.loads(result_path.read_text()) if result_path.exists() else {}
    if "outputs" in result:
        outputs: dict[str, Any] = result["outputs"]
        return outputs
    if "failures" in result:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result["failures"].items())
        raise PipelineError(f"{pipeline.name} failed in {reasons}", log_path)
    raise PipelineError(f"{pipeline.name} ended with exit status {status} and no result (was it killed, or out of memory?)", log_path)


def _check_arguments(pipeline: Any, arguments: Mapping[str, Any]) -> None:
    known = list(pipeline.component_spec.inputs or {})
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise PipelineError(f"pipeline {pipeline.name!r} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    for name, value in arguments.items():
        # kfp.local rewrites this word to the interpreter's path wherever it stands, without a word.
        if "python3" in json.dumps(value):
            raise PipelineError(f"{name}: kfp.local can't carry a value that contains 'python3'; rename it")


def _write_job(pipeline: Any, arguments: Mapping[str, Any], home: Path, log_path: Path, folder: Path) -> Path:
    import yaml

    from pipelines.compile import local_specification

    spec_path = folder / "pipeline.yaml"
    spec = local_specification(pipeline)
    spec_path.write_text(yaml.safe_dump(spec))
    job_path = folder / "job.json"
    job_path.write_text(
        json.dumps(
            {
                "spec_path": str(spec_path),
                "spec": {"root": spec["root"], "components": spec["components"]},
                "arguments": dict(arguments),
                "pipeline_root": str(home / "pipelines"),
                "log_path": str(log_path),
                "result_path": str(folder / "result.json"),
            }
        )
    )
    return job_path


def _supervise(job: Path, services: Services, log_path: Path, show: Callable[[str], None]) -> int:
    """Starts the run, shows its lines, and returns its exit status once nothing of it is left."""
    home = services.home.resolve()
    mark = {_MARK: f"{home}:{uuid.uuid4().hex}"}
    with _terminate_as_interrupt(), log_path.open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.local.runner", str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
            env={**os.environ, **services.env, **mark, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                show(line.rstrip("\n"))
            status = process.wait()
        except KeyboardInterrupt:
            show("stopping everything (Ctrl-C again to kill it at once) ...")
            _stop(process, home)
            raise PipelineInterruptedError("stopped; the same command goes on from the last checkpoint", log_path) from None
        finally:
            _stop_leftovers(home, session=process.pid)
            process.wait()
        return status


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM stops a run as cleanly as Ctrl-C does."""

    def interrupt(signum: int, frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: the owner of the process decides what its signals mean
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stop(process: subprocess.Popen[str], home: Path) -> None:
    """Asks the whole run to stop, as a terminal's Ctrl-C would, and waits; what remains is killed by the caller."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    deadline = time.monotonic() + _GRACE_SECONDS
    with contextlib.suppress(KeyboardInterrupt):
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        deadline = min(deadline, time.monotonic() + _STRAGGLER_SECONDS)
        while _processes_of(home, process.pid) and time.monotonic() < deadline:
            time.sleep(0.2)


def _stop_leftovers(home: Path, session: int | None = None) -> bool:
    """Kills every process that a run of this state folder started and that is still there.

    Only for the holder of the lock: then no such process has anybody who waits for it.
    """
    try:
        return bool(daemons.kill_all(lambda: _processes_of(home, session)))
    except RuntimeError as error:
        raise PipelineError(f"the run of {home} cannot be stopped: {error}") from error


def _processes_of(home: Path, session: int | None) -> list[psutil.Process]:
    """The processes of this state folder's runs: those that carry our mark, their descendants, and the session's.

    The mark alone would miss Ray's workers, which overwrite their environment when they set their title.
    """
    mark = f"{home}:"
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ours = process.environ().get(_MARK, "").startswith(mark)
            if not ours and session is not None:
                ours = os.getsid(process.pid) == session
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                for one in (process, *process.children(recursive=True)):
                    found[one.pid] = one
    found.pop(os.getpid(), None)
    return [process for process in found.values() if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@contextlib.contextmanager
def _one_run_at_a_time(home: Path) -> Iterator[None]:
    """Holds the state folder's lock, which the system gives back however this process ends."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "run.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise PipelineError(
                f"another run is under way (process {owner}); wait for it, or stop it with Ctrl-C or kill {owner}"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
