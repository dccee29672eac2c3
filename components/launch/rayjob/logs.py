"""Show the driver's log while it runs; a failure here does not affect the run."""

from __future__ import annotations

import contextlib
import sys
import threading

from components.cluster.connection import KubernetesError
from components.cluster.kubernetes_api import KubernetesApi

_SUBMITTER = "ray-job-submitter"
_PAUSE_SECONDS = 5.0
_LAST_LINES_SECONDS = 3.0


class LogFollower:
    """Copies the submitter's log, which is the driver's, to standard output from a thread of its own."""

    def __init__(self, api: KubernetesApi, selector: str) -> None:
        """Prepare to follow; `start` begins.

        Args:
            api: The cluster.
            selector: Labels of the job's pods.
        """
        self._api = api
        self._selector = selector
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_stamp = ""

    def start(self) -> None:
        """Begin to follow; do nothing if it has begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rayjob-logs", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Wait a moment for the last lines, then leave the thread to end by itself."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LAST_LINES_SECONDS)

    def _run(self) -> None:
        last = False
        while True:
            with contextlib.suppress(KubernetesError):
                for pod in self._api.pods(self._selector):
                    names = [container["name"] for container in pod["spec"]["containers"]]
                    if _SUBMITTER in names:
                        self._copy(pod["metadata"]["name"])
            if last:
                return
            last = self._stop.wait(_PAUSE_SECONDS)

    def _copy(self, pod: str) -> None:
        """Copy new lines. A connection that broke is opened again from the log's beginning; the stamps tell which lines were shown."""
        for line in self._api.log_lines(pod, _SUBMITTER):
            stamp, _, text = line.partition(" ")
            if stamp > self._last_stamp:
                self._last_stamp = stamp
                sys.stdout.write(f"{text}\n")
                sys.stdout.flush()
