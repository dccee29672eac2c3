"""The process in which `kfp.local` runs one compiled pipeline: `python -m pipelines.local.runner JOB.json`.

It stands apart from the process that started it (`pipelines.local.run`) because kfp.local keeps process-wide state,
patches `print`, deletes its workspace and does not stop on Ctrl-C. Everything that kfp and the components print goes
into the log file; to standard output go only the progress lines (`training.console.say`), led by the stage that
each belongs to. It dies with its parent, whichever way that ends.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from training.console import format_duration, heard

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_EXECUTING = re.compile(r"Executing task '([^']+)'")
_FINISHED = re.compile(r"Task '([^']+)' finished with status (SUCCESS|FAILURE)")
_ERROR = re.compile(r"^\s*((?:\w+\.)*)(\w*(?:Error|Exception|Interrupt|Exit|Invalid|Failed|Refused|Timeout))(?:: (.*))?$")
_ITERATION = re.compile(r"/for-loop-\d+-iteration-(\d+)/")  # in the paths that kfp's executor is given
_INTERRUPTED = 130
_OURS = ("training", "evaluation", "components", "pipelines")


@dataclasses.dataclass
class _Task:
    """One running component: where its lines belong, and what it said last."""

    name: str
    started: float
    iteration: str = ""
    last_lines: collections.deque[str] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=400))


class StageLog(io.TextIOBase):
    """Stands in for standard output: everything into the log, progress lines shown with their stage.

    kfp.local runs every task in one thread from its "Executing task" line to its end, and prints the component's
    lines from that thread. So the thread says which task a line belongs to, also when two tasks run at once.

    Args:
        shown: Where progress lines go.
        log: Where everything goes.
        stages: Component name -> (position from 1, display name), in the order in which they can run.
    """

    def __init__(self, shown: TextIO, log: TextIO, stages: dict[str, tuple[int, str]]) -> None:
        self._shown = shown
        self._log = log
        self._stages = stages
        self._total = max((position for position, _ in stages.values()), default=1)
        self._lock = threading.Lock()
        self._partial: dict[int, str] = {}
        self._running: dict[int, _Task] = {}
        self.failures: dict[str, str] = {}
        self.stopping = False

    def write(self, text: str) -> int:
        """Takes any piece of text; acts on whole lines."""
        with self._lock:
            thread = threading.get_ident()
            *lines, self._partial[thread] = (self._partial.get(thread, "") + text).split("\n")
            for line in lines:
                self._take(thread, line)
        return len(text)

    def flush(self) -> None:
        """The log is written line by line, so there is nothing to do."""

    def _take(self, thread: int, line: str) -> None:
        plain = _ANSI.sub("", line)
        task = self._running.get(thread)
        label = task.name if task else "kfp"
        self._log.write(f"{time.strftime('%H:%M:%S')} {label:<16} {plain}\n")
        if executing := _EXECUTING.search(plain):
            if self.stopping:
                os._exit(_INTERRUPTED)
            self._running[thread] = _Task(executing[1], time.monotonic())
        elif finished := _FINISHED.search(plain):
            self._finish(thread, finished[1], failed=finished[2] == "FAILURE")
        elif task:
            task.last_lines.append(plain)
            if not task.iteration and (in_loop := _ITERATION.search(plain)):
                task.iteration = f" {int(in_loop[1]) + 1}"
            if (message := heard(plain)) is not None:
                self._show(task, message)

    def _finish(self, thread: int, name: str, *, failed: bool) -> None:
        task = self._running.pop(thread, None)
        if task is None:
            return
        if failed:
            self.failures[name] = last_error(task.last_lines)
        elif not self.stopping:
            self._show(task, f"done in {format_duration(time.monotonic() - task.started)}")

    def _show(self, task: _Task, message: str) -> None:
        position, display = self._stages.get(task.name, (0, task.name))
        self._shown.write(f"[{position}/{self._total} {display}{task.iteration}] {message}\n")
        self._shown.flush()


def last_error(lines: collections.deque[str]) -> str:
    """The error that ended a component, from the last lines that it printed.

    Returns:
        The message of the last exception printed, in one line. Its class leads where the message alone would not say
        enough.
    """
    printed = [line.strip() for line in lines]
    for index in reversed(range(len(printed))):
        match = _ERROR.match(printed[index])
        if match:
            module, kind, first = match.groups()
            rest = itertools.takewhile(bool, printed[index + 1 : index + 6])  # a message of several lines
            message = " ".join([first or "", *rest]).strip()
            if not message:
                return kind
            # What our modules raise says what to do; anything else needs its class to be understood.
            return message if module.split(".")[0] in _OURS else f"{kind}: {message}"
    return "it ended without an error message (was it killed, or out of memory?)"


def stages_of(spec: dict[str, Any]) -> dict[str, tuple[int, str]]:
    """Every step that a pipeline can run, in the order of its dependencies.

    Args:
        spec: A compiled pipeline, as its YAML reads.

    Returns:
        Component name (without kfp's "comp-") -> (position from 1, the name shown).
    """
    ordered: list[tuple[str, str]] = []

    def walk(dag: dict[str, Any]) -> None:
        tasks = dag["tasks"]
        done: set[str] = set()
        while len(done) < len(tasks):
            ready = [name for name, task in tasks.items() if name not in done and set(task.get("dependentTasks", ())) <= done]
            for name in ready:
                task = tasks[name]
                component = spec["components"][task["componentRef"]["name"]]
                if "dag" in component:
                    walk(component["dag"])
                else:
                    ordered.append((task["componentRef"]["name"].removeprefix("comp-"), task["taskInfo"]["name"]))
            done.update(ready)

    walk(spec["root"]["dag"])
    return {component: (position, display) for position, (component, display) in enumerate(ordered, start=1)}


def _plain(value: Any) -> Any:
    """Outputs as JSON carries them: an artifact is its URI."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.uri if hasattr(value, "uri") else value


def _stop_with_parent() -> None:
    """Waits for the parent's end of the pipe to close without the word that all is well; then stops the whole group."""
    sys.stdin.read()
    os.killpg(os.getpgrp(), signal.SIGINT)
    time.sleep(20)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> int:
    """Runs the job and writes its result; the exit status is 0, 1 (a task failed) or 130 (interrupted)."""
    from kfp import components, local

    job = json.loads(Path(sys.argv[1]).read_text())
    spec_text = Path(job["spec_path"]).read_text()
    shown = sys.stdout
    with Path(job["log_path"]).open("a", buffering=1, encoding="utf-8", errors="replace") as log:
        stage_log = StageLog(shown, log, stages_of(job["spec"]))

        def stop(*_: object) -> None:
            stage_log.stopping = True

        signal.signal(signal.SIGINT, stop)
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        sys.stdout = stage_log
        logging.captureWarnings(True)
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=job["pipeline_root"],
            workspace_root=str(Path(job["pipeline_root"]) / "workspace"),
        )
        result: dict[str, Any]
        try:
            task = components.load_component_from_text(spec_text)(**job["arguments"])
            result = {"outputs": {name: _plain(value) for name, value in task.outputs.items()}}
        except Exception as error:
            result = {"failures": stage_log.failures or {"kfp": _ANSI.sub("", f"{type(error).__name__}: {error}")}}
        finally:
            sys.stdout = shown
        if stage_log.stopping:
            return _INTERRUPTED
        Path(job["result_path"]).write_text(json.dumps(result))
    return 1 if "failures" in result else 0


if __name__ == "__main__":
    # Threads that wait for the parent, and kfp's own, must not hold the process up.
    status = main()
    sys.stdout.flush()
    os._exit(status)
