"""Run a pipeline on this machine through `kfp.local`: the same pipeline that is compiled for the cluster.

The run is a child process in its own session (`pipelines.local.worker`). This side shows its progress lines and ensures
that, however the run ends, nothing of it goes on: no component, no Ray process. The embedded services stay up.
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
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipelines.services import daemons
from training.distributed.signals import termination_raised

if TYPE_CHECKING:
    from pipelines.services.services import Services

_MARK = "IDDPM_LOCAL_RUN"
_GRACE_SECONDS = 20.0
"""Time that an interrupted run has to save its state."""
_STRAGGLER_SECONDS = 3.0
"""Time that its other processes then have to end by themselves."""


class PipelineError(RuntimeError):
    """A pipeline, or a trial of an ablation, failed. The message is one line; `log_path` is the log of the run."""

    def __init__(self, message: str, log_path: Path | None = None) -> None:
        super().__init__(message)
        self.log_path = log_path


class PipelineInterruptedError(PipelineError):
    """The run was interrupted, and all of it has stopped."""

    exit_status = 130


def run_pipeline(
    pipeline: Any,
    arguments: Mapping[str, Any],
    services: Services,
    *,
    show: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run a pipeline to its end; return its outputs by name, where an artifact is its path.

    Args:
        pipeline: A function with `@dsl.pipeline`.
        arguments: Its parameters by name; the others keep their defaults.
        services: Their environment is the components'. Their directory holds logs, small artifacts, and the lock that
            allows one run at a time.
        show: Called with each progress line, which begins with its stage.

    Raises:
        PipelineError: A component failed; the message names it and its error.
        PipelineInterruptedError: Ctrl-C, SIGTERM, or a closed terminal.
    """
    _check_arguments(pipeline, arguments)
    home = services.home.resolve()
    log_path = home / "logs" / f"{pipeline.name}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(home), tempfile.TemporaryDirectory(prefix="iddpm-run-") as folder:
        if _kill_processes(home):
            show("stopped the processes that an earlier, killed run had left")
        result_path = Path(folder) / "result.json"
        # A step that is done again by force is begun anew at each command.
        again = "the same command" + (" (without --from, if that step had begun)" if arguments.get("force_from") else "")
        status = _supervise(_write_job(pipeline, arguments, home, log_path, Path(folder)), services, log_path, show, again)
        result = json.loads(result_path.read_text(encoding="utf-8")) if result_path.exists() else {}
    if "outputs" in result:
        outputs: dict[str, Any] = result["outputs"]
        return outputs
    if "failures" in result:
        errors = "; ".join(f"{name}: {error}" for name, error in result["failures"].items())
        raise PipelineError(f"{pipeline.name} failed in {errors}", log_path)
    raise PipelineError(f"{pipeline.name} ended with exit status {status} and no result (was it killed, or out of memory?)", log_path)


def _check_arguments(pipeline: Any, arguments: Mapping[str, Any]) -> None:
    known = list(pipeline.component_spec.inputs or {})
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise PipelineError(f"pipeline {pipeline.name!r} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    for name, value in arguments.items():
        # kfp.local silently replaces this word by the interpreter's path, wherever it stands.
        if "python3" in json.dumps(value):
            raise PipelineError(f"{name}: kfp.local cannot pass a value that contains 'python3'; rename it")


def _write_job(pipeline: Any, arguments: Mapping[str, Any], home: Path, log_path: Path, folder: Path) -> Path:
    import yaml

    from pipelines.compile import local_specification

    spec_path = folder / "pipeline.yaml"
    spec = local_specification(pipeline)
    spec_path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    job = {
        "spec_path": str(spec_path),
        "spec": {"root": spec["root"], "components": spec["components"]},
        "arguments": dict(arguments),
        "pipeline_root": str(home / "pipelines"),
        "log_path": str(log_path),
        "result_path": str(folder / "result.json"),
    }
    job_path = folder / "job.json"
    job_path.write_text(json.dumps(job), encoding="utf-8")
    return job_path


def _supervise(job: Path, services: Services, log_path: Path, show: Callable[[str], None], again: str) -> int:
    """Start the run, show its lines, and return its exit status when none of its processes is left.

    `again` are words for the command that continues an interrupted run.
    """
    home = services.home.resolve()
    mark = {_MARK: f"{home}:{uuid.uuid4().hex}"}
    with termination_raised(), log_path.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.local.worker", str(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
            # A `training.py` in the working directory is the user's, and not our package.
            env={**os.environ, **services.env, **mark, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"},
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                show(line.rstrip("\n"))
            status = process.wait()
        except (KeyboardInterrupt, SystemExit):
            show("stopping all processes (Ctrl-C again kills them at once) ...")
            _interrupt(process, home)
            raise PipelineInterruptedError(f"stopped; {again} goes on with what is left", log_path) from None
        finally:
            _kill_processes(home, session=process.pid)
            process.wait()
        return status


def _interrupt(process: subprocess.Popen[str], home: Path) -> None:
    """Interrupt the run as Ctrl-C in a terminal would, and give it time to end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    deadline = time.monotonic() + _GRACE_SECONDS
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        deadline = min(deadline, time.monotonic() + _STRAGGLER_SECONDS)
        while _find_processes(home, process.pid) and time.monotonic() < deadline:
            time.sleep(0.2)


def _kill_processes(home: Path, session: int | None = None) -> bool:
    """Kill all processes of this directory's runs. Only the holder of the lock may: then no other run is under way."""
    try:
        return bool(daemons.kill_all(lambda: _find_processes(home, session)))
    except RuntimeError as error:
        raise PipelineError(f"the run of {home} cannot be stopped: {error}") from error


def _find_processes(home: Path, session: int | None) -> list[psutil.Process]:
    """Return the processes of this directory's runs: those with our mark, their descendants, and the session's.

    Ray's workers do not have the mark: they overwrite their environment when they set their title.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_marked = process.environ().get(_MARK, "").startswith(f"{home}:")
            if (is_marked or (session is not None and os.getsid(process.pid) == session)) and process.status() != psutil.STATUS_ZOMBIE:
                found.update((each.pid, each) for each in (process, *process.children(recursive=True)))
    found.pop(os.getpid(), None)
    return [process for process in found.values() if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@contextlib.contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Lock the directory for one run. The system releases the lock however this process ends."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "run.lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise PipelineError(
                f"another run is under way (process {owner}); wait for it, stop it with Ctrl-C or kill {owner}, "
                "or set IDDPM_HOME to another directory"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
