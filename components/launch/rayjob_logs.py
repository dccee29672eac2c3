"""The driver's log, shown while it runs; a convenience that may fail without any harm to the run."""

from __future__ import annotations

import contextlib
import sys
import threading

import urllib3
from kubernetes.client.exceptions import ApiException

from components.cluster.kubernetes_api import KubernetesApi, KubernetesError

_SUBMITTER = "ray-job-submitter"
_PAUSE_SECONDS = 5.0
_LAST_LINES_SECONDS = 3.0


class LogFollower:
    """Copies the submitter's log, which is the driver's, to standard output from a thread of its own."""

    def __init__(self, api: KubernetesApi, selector: str) -> None:
        """Prepares; `start` begins.

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
        """Begins to follow; harmless when it has begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rayjob-logs", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Waits a moment for the last lines, then leaves the thread to end by itself."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LAST_LINES_SECONDS)

    def _run(self) -> None:
        last = False
        while True:
            with contextlib.suppress(ApiException, KubernetesError, urllib3.exceptions.HTTPError, OSError):
                for pod in self._api.pods(self._selector):
                    names = [container["name"] for container in pod["spec"]["containers"]]
                    if _SUBMITTER in names:
                        self._copy(pod["metadata"]["name"])
            if last:
                return
            last = self._stop.wait(_PAUSE_SECONDS)

    def _copy(self, pod: str) -> None:
        """A connection that breaks is opened again from the log's beginning; the stamps say what was shown."""
        for line in self._api.log_lines(pod, _SUBMITTER):
            stamp, _, text = line.partition(" ")
            if stamp > self._last_stamp:
                self._last_stamp = stamp
                sys.stdout.write(f"{text}\n")
                sys.stdout.flush()
