"""Show the driver's log while it runs; a failure here does not affect the run."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from dataclasses import dataclass

from components.cluster.connection import KubernetesError
from components.cluster.kubernetes_api import KubernetesApi

_SUBMITTER = "ray-job-submitter"
_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 120.0
_LAST_LINES_SECONDS, _SECONDS_WHEN_STOPPED = 15.0, 3.0
"""Time for the last lines: of a job that has ended, which a busy API server gives slowly, and of a pod that is stopped."""
_OVERLAP_SECONDS = 60.0
"""A log is read again from this long before its last line, as that line may have been under way for a while."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RAYS_OWN = re.compile(r"\b(cli|job_manager|packaging|worker)\.py:\d+ -- |Waiting for Ray Dashboard GCS|PlacementGroupCleaner")
"""Lines of the command that submits, and of Ray's start: each run has the same, and none is about the run."""


@dataclass
class _Reading:
    """The part of a submitter's log that has been read.

    Attributes:
        stamp: Time stamp of its last line; the kubelet writes all with the same number of digits, so they sort as text.
        at: When that line was read, by the clock of this process.
        position: Lines so far, without Ray's own.
        repeats: True as long as they are those that another submitter has shown.
    """

    pod: str
    stamp: str = ""
    at: float = 0.0
    position: int = 0
    repeats: bool = True


class LogFollower:
    """Copies the submitter's log, which is the driver's, to standard output from a thread of its own."""

    def __init__(self, api: KubernetesApi, selector: str) -> None:
        """Prepare to follow; `start` begins."""
        self._api = api
        self._selector = selector
        self._stop, self._ended = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._shown: list[int] = []
        self._finished_pods: set[str] = set()
        self._reading = _Reading("")

    def start(self) -> None:
        """Begin to follow; do nothing if it has begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rayjob-logs", daemon=True)
            self._thread.start()

    def has_ended(self) -> bool:
        """Return True if a submitter's log has come to its end, so the job's state may have changed."""
        return self._ended.is_set()

    def forget_end(self) -> None:
        """Wait for the next end: another submitter may take the place of the last one."""
        self._ended.clear()

    def finish(self, *, job_has_ended: bool) -> None:
        """Wait a moment for the last lines, then leave the thread to end by itself; where the job has ended a longer one."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LAST_LINES_SECONDS if job_has_ended else _SECONDS_WHEN_STOPPED)

    def _run(self) -> None:
        last, pause = False, _PAUSE_SECONDS
        while True:
            before = len(self._shown)
            with contextlib.suppress(KubernetesError):
                for pod in self._api.pods(self._selector):
                    name = pod["metadata"]["name"]
                    names = [container["name"] for container in pod["spec"]["containers"]]
                    if _SUBMITTER in names and name not in self._finished_pods:
                        self._copy(name)
                        self._finished_pods.add(name)
                        self._ended.set()
            if last:
                return
            pause = _PAUSE_SECONDS if len(self._shown) > before else min(pause * 2, _LONGEST_PAUSE_SECONDS)
            last = self._stop.wait(pause)

    def _copy(self, pod: str) -> None:
        """Copy new lines.

        A connection that broke, as after five minutes without a line, is opened again with the lines of the time since then, and those
        that were read before are skipped by their time stamps. A second submitter repeats the driver's whole log: lines are skipped as
        long as they are the ones that were shown before.
        """
        reading = self._reading = self._reading if self._reading.pod == pod else _Reading(pod)
        read_to, seconds = reading.stamp, None
        if read_to:
            seconds = int(time.monotonic() - reading.at + _OVERLAP_SECONDS)
        for line in self._api.log_lines(pod, _SUBMITTER, since_seconds=seconds):
            stamp, _, rest = line.partition(" ")
            if stamp <= read_to:
                continue
            reading.stamp, reading.at = stamp, time.monotonic()
            text = _COLOUR.sub("", rest)
            if _RAYS_OWN.search(text):
                continue
            digest = hash(text)
            reading.repeats = reading.repeats and reading.position < len(self._shown) and self._shown[reading.position] == digest
            reading.position += 1
            if not reading.repeats:
                del self._shown[reading.position - 1 :]
                self._shown.append(digest)
                sys.stdout.write(f"{text}\n")
                sys.stdout.flush()
