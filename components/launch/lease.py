"""The lease of a run's directory: one training at a time writes there, whoever starts it, and on whichever machine.

    <run>/lease/00000001.json

The file with the highest number is the lease. To take it is to write the next number where there is none yet, which the storage
lets one of several do. The owner counts up in its file as long as it trains. Others see by their own clock whether it still counts, so
clocks of different machines are never compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from components.launch.repeat import LostError
from training import storage
from training.console import format_duration, say
from training.distributed.signals import StopFlag, run_stoppable

DIRECTORY = "lease"
_SECONDS_TO_RELEASE = 10.0


class LeaseLostError(LostError):
    """Another training has taken the lease while this one could not renew it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseTimes:
    """The times of leases, in seconds.

    Attributes:
        renew: Between two renewals.
        retry: Between two tries to renew while the storage does not answer.
        poll: Between two looks at another owner's lease.
        abandoned: A lease that has not been renewed for so long belongs to a process that was killed.
    """

    renew: float = 30.0
    retry: float = 5.0
    poll: float = 5.0
    abandoned: float = 180.0


DEFAULT_TIMES = LeaseTimes()


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A lease as it is stored.

    Attributes:
        owner: The pipeline's run and what of it trains, equal for a retry of the same step; empty outside a pipeline.
        host: The machine or pod, with its namespace of processes and the start of its kernel.
        pid: The process on that host.
        began: When the process began, in ticks since the kernel did: a later process with the same number has another.
        id: Differs for each time that a lease is taken.
        count: Number of renewals.
    """

    owner: str
    host: str
    pid: int
    began: str
    id: str
    count: int = 0
    is_released: bool = False

    def __str__(self) -> str:
        host = self.host.partition(" ")[0]
        return f"pipeline run {self.owner.partition(' ')[0]} on {host}" if self.owner else f"process {self.pid} on {host}"


@contextlib.contextmanager
def leased(
    run_uri: str, owner: str, stop: StopFlag, *, is_done: Callable[[], bool] = lambda: False, times: LeaseTimes = DEFAULT_TIMES
) -> Iterator[None]:
    """Hold the lease of a run's directory within the block; wait first while another owner holds it.

    A lease is free once it is released, its process was on this machine and is gone, a retry of the owner's own step asks for it, or it
    has not been renewed for `times.abandoned`. If the storage was away for that long, it is lost only if somebody else has taken it.

    Args:
        owner: See `Lease`.
        stop: It ends the wait, and is set if the lease is lost; `raise_if_set` then raises LeaseLostError.
        is_done: Returns True if the run needs no more training; that ends the wait too, and the block then holds no lease.

    Raises:
        SystemExit, KeyboardInterrupt: A signal ended the wait.
        StorageError: The storage does not answer.
    """
    directory_uri = storage.join(run_uri, DIRECTORY)
    mine = _new_lease(owner)
    number = run_stoppable(lambda: _take(directory_uri, mine, stop, is_done, times), stop)
    if number is None:
        yield
        return
    renewer = _Renewer(directory_uri, number, mine, stop, times)
    renewer.start()
    try:
        yield
    finally:
        renewer.release()


def read_lease(directory_uri: str) -> tuple[int, Lease | None]:
    """Return number and content of the lease in that directory; 0 and None where there has been none."""
    while True:
        numbers = _numbers(directory_uri)
        if not numbers:
            return 0, None
        try:
            return numbers[-1], storage.read_record(_uri(directory_uri, numbers[-1]), Lease)
        except storage.ObjectNotFoundError:
            continue  # the next one was taken since the listing


def _new_lease(owner: str) -> Lease:
    # Containers may share a name, and each counts its own processes, so the namespace is part of the host. Two machines may share a name
    # too, and outside of containers the number of the namespace is the same on all of them, so the boot is part of it as well.
    host = f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()} {_boot_id()}"
    return Lease(owner=owner, host=host, pid=os.getpid(), began=_beginning(os.getpid()), id=uuid.uuid4().hex)


def _boot_id() -> str:
    """Return the id that the kernel took when it started; empty in a sandbox that has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _beginning(pid: int) -> str:
    """Return when a process began, in ticks since the machine did; empty if there is none, or only its exit code waits to be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_free(found: Lease, mine: Lease) -> bool:
    if found.is_released:
        return True
    if found.host == mine.host:
        return _beginning(found.pid) != found.began
    return bool(mine.owner) and found.owner == mine.owner


def _take(directory_uri: str, mine: Lease, stop: StopFlag, is_done: Callable[[], bool], times: LeaseTimes) -> int | None:
    """Return the number of the lease once it is taken; None if the run is done meanwhile."""
    seen: Lease | None = None
    looked, unchanged = time.monotonic(), 0.0
    while True:
        number, found = storage.retry(lambda: read_lease(directory_uri))
        before, looked = looked, time.monotonic()
        # The owner could not renew it while the storage was away from both: such a look counts no longer than any other.
        unchanged = unchanged + min(looked - before, 2 * times.poll) if found == seen else 0.0
        if found is not None and found.id == mine.id:  # the answer to the write was lost
            return number
        is_abandoned = unchanged >= times.abandoned
        if found is None or _is_free(found, mine) or is_abandoned:
            if found is not None and is_abandoned:
                say(f"{found} has not renewed its lease for {format_duration(times.abandoned)}: this training goes on in its place")
            if _write_first(directory_uri, number + 1, mine):
                return number + 1
            continue
        if seen is None or seen.id != found.id:
            say(f"run {_key(directory_uri)} is trained by {found}; waiting for its end")
        seen = found
        deadline = time.monotonic() + times.poll
        while time.monotonic() < deadline:
            stop.raise_if_set()
            time.sleep(min(0.5, times.poll))
        if storage.retry(is_done):
            return None


def _write_first(directory_uri: str, number: int, mine: Lease) -> bool:
    """Write the lease of that number if there is none, then delete the earlier ones.

    Return False if the number is taken. It may be our own, written by a request whose answer was lost.
    """
    if not storage.retry(lambda: storage.write_json(_uri(directory_uri, number), dataclasses.asdict(mine), if_absent=True)):
        return False
    numbers = storage.retry(lambda: _numbers(directory_uri))
    if numbers and numbers[-1] > number:  # between our look and our write, others took this number and the next
        storage.retry(lambda: storage.delete(_uri(directory_uri, number)))
        return False

    def delete_earlier() -> None:
        for earlier in numbers:
            if earlier < number:
                storage.delete(_uri(directory_uri, earlier))

    storage.retry(delete_earlier)
    return True


class _Renewer:
    """Renews a lease in a thread until it is released, or lost."""

    def __init__(self, directory_uri: str, number: int, lease: Lease, stop: StopFlag, times: LeaseTimes) -> None:
        self._directory_uri, self._number, self._lease, self._stop, self._times = directory_uri, number, lease, stop, times
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="iddpm-lease", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def release(self) -> None:
        """Let the next one have it, and end the thread; a storage that does not answer is waited for only a few seconds."""
        self._is_ending.set()
        self._thread.join(_SECONDS_TO_RELEASE)

    def _run(self) -> None:
        pause = self._times.renew
        while not self._is_ending.wait(pause):
            try:
                taken_by = self._taken_by()
                if taken_by is not None:
                    self._stop.stop_with(
                        LeaseLostError(
                            f"run {_key(self._directory_uri)} is trained by {taken_by} now, since this training could not renew its "
                            "lease for minutes; this one has stopped"
                        )
                    )
                    return
                self._lease = dataclasses.replace(self._lease, count=self._lease.count + 1)
                self._write()
                pause = self._times.renew
            except storage.StorageError:  # training itself says that it is away, and how long it waits
                pause = self._times.retry
        with contextlib.suppress(storage.StorageError):
            if self._taken_by() is None:
                self._lease = dataclasses.replace(self._lease, is_released=True)
                self._write()

    def _taken_by(self) -> Lease | None:
        _, found = read_lease(self._directory_uri)
        return found if found is not None and found.id != self._lease.id else None

    def _write(self) -> None:
        storage.write_json(_uri(self._directory_uri, self._number), dataclasses.asdict(self._lease))


def _uri(directory_uri: str, number: int) -> str:
    return storage.join(directory_uri, f"{number:08d}.json")


def _numbers(directory_uri: str) -> list[int]:
    names = [uri.rpartition("/")[2].removesuffix(".json") for uri in storage.list_uris(directory_uri)]
    return sorted(int(name) for name in names if name.isdecimal())


def _key(directory_uri: str) -> str:
    return directory_uri.rsplit("/", 2)[1]
