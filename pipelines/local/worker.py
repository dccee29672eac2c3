"""The process in which `kfp.local` runs one compiled pipeline: `python -m pipelines.local.worker JOB.json`.

It is separate from the process that starts it (`pipelines.local.run`) because kfp.local keeps global state, patches
`print`, deletes its workspace and does not stop on Ctrl-C. All output of kfp and the components goes to the log file;
only progress lines (`training.console.say`) go to standard output, with their stage in front. It ends with its parent.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from components.steps.close import FAILURES_VARIABLE
from pipelines.local.output import LineFilter, write_log_line
from training.console import format_duration, parse_marked_line

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Executing task '([^']+)'")
_FINISHED = re.compile(r"Task '([^']+)' finished with status (SUCCESS|FAILURE)")
_EXCEPTION = re.compile(r"^\s*((?:\w+\.)*)(\w*(?:Error|Exception|Interrupt|Exit|Invalid|Failed|Refused|Timeout))(?:: (.*))?$")
_ITERATION = re.compile(r"/for-loop-\d+-iteration-(\d+)/")  # in the paths that kfp's executor is given
_INTERRUPTED = 130
_SECONDS_TO_STOP = 20
_PROJECT = ("training", "evaluation", "components", "pipelines")


@dataclasses.dataclass
class _Task:
    """A running component."""

    name: str
    started: float
    iteration: str = ""
    last_lines: collections.deque[str] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=400))


class StageOutput:
    """Follows kfp.local's output: writes all lines to the log, and shows progress lines with their stage.

    kfp.local runs a task in one thread from its "Executing task" line to its end, and prints the component's lines in
    that thread. So the thread tells the task of a line, also when two tasks run at once.

    Args:
        stages: Position (from 1) and display name by component, as `find_stages` returns them.
        failures_path: File that has the failures for the exit task, which KFP tells only that something failed.

    Attributes:
        failures: Error by failed component.
        stopping: Set to end the process at the next task's start.
    """

    def __init__(self, shown: TextIO, log: TextIO, stages: Mapping[str, tuple[int, str]], failures_path: Path) -> None:
        self._failures_path = failures_path
        self._shown = shown
        self._log = log
        self._stages = stages
        self._total = max((position for position, _ in stages.values()), default=1)
        self._running: dict[int, _Task] = {}
        self.failures: dict[str, str] = {}
        self.stopping = False

    def handle(self, line: str) -> None:
        """Take one line, in the thread that printed it."""
        thread, plain = threading.get_ident(), _ANSI.sub("", line)
        task = self._running.get(thread)
        write_log_line(self._log, f"{task.name if task else 'kfp':<16} {plain}")
        if started := _STARTED.search(plain):
            if self.stopping:
                os._exit(_INTERRUPTED)
            self._running[thread] = _Task(started[1], time.monotonic())
        elif finished := _FINISHED.search(plain):
            self._finish(thread, finished[1], failed=finished[2] == "FAILURE")
        elif task:
            task.last_lines.append(plain)
            if not task.iteration and (in_loop := _ITERATION.search(plain)):
                task.iteration = f" {int(in_loop[1]) + 1}"
            if (message := parse_marked_line(plain)) is not None:
                self._show(task, message)

    def _finish(self, thread: int, name: str, *, failed: bool) -> None:
        task = self._running.pop(thread, None)
        if task is None:
            return
        if failed:
            self.failures[name] = last_error(task.last_lines)
            self._failures_path.write_text(json.dumps(self.failures), encoding="utf-8")
        elif not self.stopping:
            self._show(task, f"done in {format_duration(time.monotonic() - task.started)}")

    def _show(self, task: _Task, message: str) -> None:
        position, display = self._stages.get(task.name, (0, task.name))
        self._shown.write(f"[{position}/{self._total} {display}{task.iteration}] {message}\n")
        self._shown.flush()


def last_error(lines: Iterable[str]) -> str:
    """Return the error that ended a component, in one line.

    It is the message of the last exception among the component's last lines. The class is put in front of it unless the
    project raised it: our own messages name the remedy.
    """
    printed = [line.strip() for line in lines]
    for index in reversed(range(len(printed))):
        match = _EXCEPTION.match(printed[index])
        if match:
            module, name, first = match.groups()
            rest = itertools.takewhile(bool, printed[index + 1 : index + 6])  # a message may have several lines
            message = " ".join([first or "", *rest]).strip()
            if not message:
                return name
            return message if module.split(".")[0] in _PROJECT else f"{name}: {message}"
    return "it ended without an error message (was it killed, or out of memory?)"


def find_stages(spec: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Return the steps of a compiled pipeline in the order of their dependencies.

    The result is component name (without kfp's "comp-") -> position (from 1) and display name.
    """
    ordered: list[tuple[str, str]] = []

    def walk(dag: Mapping[str, Any]) -> None:
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
    """Return an output for JSON: an artifact becomes its URI."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.uri if hasattr(value, "uri") else value


def _stop_with_parent() -> None:
    """Stop the process group when the parent ends, which closes its end of the pipe."""
    sys.stdin.read()
    os.killpg(os.getpgrp(), signal.SIGINT)
    time.sleep(_SECONDS_TO_STOP)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> int:
    """Run the job and write its result; return the exit status: 0, 1 (a task failed) or 130 (interrupted)."""
    from kfp import components, local

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    spec_text = Path(job["spec_path"]).read_text(encoding="utf-8")
    shown = sys.stdout
    with Path(job["log_path"]).open("a", buffering=1, encoding="utf-8", errors="replace") as log:
        failures_path = Path(job["result_path"]).with_name("failures.json")
        os.environ[FAILURES_VARIABLE] = str(failures_path)
        output = StageOutput(shown, log, find_stages(job["spec"]), failures_path)

        def stop(*_: object) -> None:
            output.stopping = True

        signal.signal(signal.SIGINT, stop)
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        sys.stdout = LineFilter(output.handle)
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
            result = {"failures": output.failures or {"kfp": _ANSI.sub("", f"{type(error).__name__}: {error}")}}
        finally:
            sys.stdout = shown
        if output.stopping:
            return _INTERRUPTED
        Path(job["result_path"]).write_text(json.dumps(result), encoding="utf-8")
    return 1 if "failures" in result else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # without waiting for kfp's threads and for the one that waits for the parent
