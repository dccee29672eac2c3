"""One training at a time writes into a run's directory: the lease, who takes it over and when, and what an outage of the storage does."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.launch.lease import DIRECTORY, Lease, LeaseLostError, LeaseTimes, leased, read_lease
from components.launch.repeat import may_pass
from components.retention.survey import Policy, survey
from components.retention.verify import verify
from training import storage
from training.distributed.signals import StopFlag
from training.tracking.references import Records

FAST = LeaseTimes(renew=0.03, retry=0.02, poll=0.02, abandoned=3.0)
PATIENT = dataclasses.replace(FAST, abandoned=120.0)
"""A busy machine does not take so long for what is done at once."""
ELSEWHERE = Lease(owner="", host="another-machine pid:[1]", pid=1, began="5", id="other")


def write(run: Path, lease: Lease, number: int = 1) -> None:
    storage.write_json(storage.join(str(run), DIRECTORY, f"{number:08d}.json"), dataclasses.asdict(lease))


def found(run: Path) -> tuple[int, Lease | None]:
    return read_lease(storage.join(str(run), DIRECTORY))


def seconds_to_take(run: Path, owner: str = "", is_done: Callable[[], bool] = lambda: False, times: LeaseTimes = FAST) -> float:
    began = time.monotonic()
    with leased(str(run), owner, StopFlag(), is_done=is_done, times=times):
        return time.monotonic() - began


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_is_released_at_the_end_of_the_block_also_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), leased(str(tmp_path), "", StopFlag(), times=FAST):  # noqa: PT012
        assert found(tmp_path)[1] is not None
        raise ZeroDivisionError
    number, lease = found(tmp_path)
    assert number == 1
    assert lease is not None
    assert lease.is_released
    assert seconds_to_take(tmp_path, times=PATIENT) < PATIENT.abandoned / 2


def test_of_many_that_start_one_at_a_time_goes_on(tmp_path: Path) -> None:
    write(tmp_path, dataclasses.replace(ELSEWHERE, is_released=True))  # all find it free in the same moment
    inside, most, done = [0], [0], []

    def work() -> None:
        with leased(str(tmp_path), "", StopFlag(), times=dataclasses.replace(FAST, abandoned=60.0)):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1
            done.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, len(done)) == ([1], 6)
    assert len(storage.list_uris(storage.join(str(tmp_path), DIRECTORY))) == 1, "old leases do not pile up"


def test_a_number_that_had_its_time_is_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, dataclasses.replace(ELSEWHERE, is_released=True))
    write_json, current = storage.write_json, dataclasses.replace(ELSEWHERE, id="third")

    def write_late(uri: str, value: Any, *, if_absent: bool = False) -> bool:
        if if_absent and uri.endswith("2.json"):  # meanwhile one has taken number 2 and released it, and the next has number 3
            storage.delete_prefix(storage.join(str(tmp_path), DIRECTORY))
            write_json(storage.join(str(tmp_path), DIRECTORY, "00000003.json"), dataclasses.asdict(current))
        return write_json(uri, value, if_absent=if_absent)

    monkeypatch.setattr(storage, "write_json", write_late)
    assert seconds_to_take(tmp_path) >= FAST.abandoned
    assert found(tmp_path)[0] == 4


def test_a_killed_process_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    code = (
        "import os, sys; from components.launch.lease import leased; from training.distributed.signals import StopFlag\n"
        "with leased(sys.argv[1], '', StopFlag()): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    lease = found(tmp_path)[1]
    assert lease is not None
    assert not lease.is_released
    assert seconds_to_take(tmp_path, times=PATIENT) < PATIENT.abandoned / 2


def test_a_process_of_another_machine_with_the_same_name_is_waited_for(tmp_path: Path) -> None:
    """Outside of containers the namespace of processes has the same number on every machine."""
    with leased(str(tmp_path), "", StopFlag(), times=FAST):
        mine = found(tmp_path)[1]
    assert mine is not None
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    other = dataclasses.replace(ELSEWHERE, host=mine.host.replace(boot_id, "another"))
    write(tmp_path, other, number=2)
    assert seconds_to_take(tmp_path) >= FAST.abandoned


def test_a_process_that_lives_here_is_waited_for_also_by_its_own_pipeline(tmp_path: Path) -> None:
    with leased(str(tmp_path), "a-run step", StopFlag(), times=FAST):
        done: list[bool] = []
        assert seconds_to_take(tmp_path, "a-run step", is_done=lambda: bool(done.append(True)) or len(done) > 3) > 3 * FAST.poll


def test_a_retry_of_the_same_step_goes_on_at_once_on_another_machine(tmp_path: Path) -> None:
    write(tmp_path, dataclasses.replace(ELSEWHERE, owner="a-run trial-1"))
    assert seconds_to_take(tmp_path, "a-run trial-1", times=PATIENT) < PATIENT.abandoned / 2
    assert found(tmp_path)[0] == 2


@pytest.mark.parametrize("owner", ["", "a-run trial-2", "another-run trial-1"])
def test_anyone_else_waits_until_the_lease_was_not_renewed_for_long(tmp_path: Path, owner: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "digits-0", dataclasses.replace(ELSEWHERE, owner="a-run trial-1"))
    assert seconds_to_take(tmp_path / "digits-0", owner) >= FAST.abandoned
    lines = capsys.readouterr().out.splitlines()
    assert "run digits-0 is trained by pipeline run a-run on another-machine; waiting for its end" in lines[0]
    assert "has not renewed its lease for" in lines[1]
    assert len(lines) == 2


def test_a_lease_that_is_renewed_is_waited_for_as_long_as_it_takes(tmp_path: Path) -> None:
    def renew() -> None:
        for count in range(30):
            write(tmp_path, dataclasses.replace(ELSEWHERE, count=count))
            time.sleep(FAST.abandoned / 10)
        write(tmp_path, dataclasses.replace(ELSEWHERE, is_released=True))

    write(tmp_path, ELSEWHERE)
    thread = threading.Thread(target=renew)
    thread.start()
    assert seconds_to_take(tmp_path) > 3 * FAST.abandoned
    thread.join()


def test_a_signal_ends_the_wait(tmp_path: Path) -> None:
    write(tmp_path, ELSEWHERE)
    stop = StopFlag()
    stop._received.append(15)
    with pytest.raises(SystemExit), leased(str(tmp_path), "", stop, times=FAST):
        pass


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event; while it is set the storage does not answer the thread that renews."""
    away = threading.Event()

    def broken(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if away.is_set() and threading.current_thread().name == "iddpm-lease":
                raise storage.StorageError("no answer", transient=True)
            return real(*arguments, **more)

        return call

    for name in ("write_json", "list_uris", "read_record"):
        monkeypatch.setattr(storage, name, broken(getattr(storage, name)))
    return away


def test_an_outage_longer_than_the_lease_does_no_harm_where_nobody_took_it(tmp_path: Path, outage: threading.Event) -> None:
    stop = StopFlag()
    with leased(str(tmp_path), "", stop, times=FAST):
        outage.set()
        time.sleep(2 * FAST.abandoned)
        outage.clear()
        number, before = found(tmp_path)
        wait_until(lambda: found(tmp_path)[1] != before)
        assert (number, stop.is_set) == (1, False)


def test_a_training_whose_lease_was_taken_stops_with_the_new_owners_name(tmp_path: Path, outage: threading.Event) -> None:
    stop = StopFlag()
    taken = dataclasses.replace(ELSEWHERE, owner="b-run", id="new")
    with leased(str(tmp_path / "digits-0"), "", stop, times=FAST):
        outage.set()
        time.sleep(0.1)
        write(tmp_path / "digits-0", taken, number=2)
        outage.clear()
        wait_until(lambda: stop.is_set)
    assert found(tmp_path / "digits-0") == (2, taken), "it must neither renew nor release what is another's"
    with pytest.raises(LeaseLostError, match="run digits-0 is trained by pipeline run b-run on another-machine now") as raised:
        stop.raise_if_set()
    assert may_pass(raised.value), "the launcher waits for the other training in its place"


def test_the_lease_is_neither_garbage_nor_damage(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "digits-0"
    write(run, ELSEWHERE)
    assert verify(str(run)).damaged == ()
    stored = storage.list_objects(str(tmp_path))
    (directory,) = survey(str(tmp_path), stored, Records(runs=(), registered=()), Policy(), now=stored[0].modified + 60, read=lambda _: [])
    assert (directory.state, directory.garbage) == ("live", ())
    later = survey(str(tmp_path), stored, Records(runs=(), registered=()), Policy(), now=stored[0].modified + 1e7, read=lambda _: [])
    assert (later[0].state, later[0].garbage) == ("unknown", ())
