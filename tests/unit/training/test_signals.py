"""SIGTERM and Ctrl-C are a flag: no signal cuts an import, gets lost in a hook, or is missed during a call that waits."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from training.distributed.signals import StopFlag, run_stoppable, stop_flag, termination_raised

SIGNALS = [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def ended_by(raised: type[BaseException]) -> Iterator[StopFlag]:
    """A program with a flag, which a signal must end."""
    with pytest.raises(raised) as ended, stop_flag() as stop:  # noqa: PT012
        yield stop
        stop.raise_if_set()
    assert not isinstance(ended.value, SystemExit) or ended.value.code == 143


def send(*numbers: int) -> None:
    """Send signals as another process does, and let the handlers run."""
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "raised"), SIGNALS)
def test_the_first_signal_decides_how_the_program_ends(number: int, raised: type[BaseException]) -> None:
    with ended_by(raised):
        send(number, signal.SIGTERM, signal.SIGINT)


def test_a_sigterm_while_the_program_ends_does_not_change_its_exit_code() -> None:
    with ended_by(SystemExit):
        send(signal.SIGTERM)
    send(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_the_block_did_not_act_on_goes_to_the_handler_from_before(number: int) -> None:
    received: list[int] = []
    signal.signal(number, lambda number, frame: received.append(number))
    with stop_flag():
        send(number, number)
        assert received == []
    time.sleep(0.02)
    assert received == [number]


def test_a_closed_terminal_ends_the_program_unless_nohup_started_it() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(SystemExit, match="129"), stop_flag() as stop:  # noqa: PT012
        send(signal.SIGHUP)
        stop.raise_if_set()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_flag() as stop, termination_raised():
        send(signal.SIGHUP)
        assert not stop.is_set


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_short_command_is_ended_by_an_exception(number: int, code: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    with pytest.raises(SystemExit, match=str(code)), termination_raised():  # noqa: PT012
        send(number)
        time.sleep(60)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_blocks_may_be_nested() -> None:
    with ended_by(SystemExit):
        with stop_flag():
            send(signal.SIGTERM)
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "raised"), SIGNALS)
def test_an_import_is_not_cut_in_two(number: int, raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"slow_to_import_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.3)\nis_whole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with ended_by(raised):
        assert importlib.import_module(name).is_whole


def test_a_short_command_is_ended_by_a_signal_that_comes_while_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The import system ignores an exception in its callbacks, as this module does."""
    name = f"swallows_{tmp_path.name.replace('-', '_')}"
    swallow = "try:\n    os.kill(os.getpid(), 15)\n    time.sleep(0.3)\nexcept BaseException:\n    pass\nis_whole = True\n"
    (tmp_path / f"{name}.py").write_text(f"import os, time\n{swallow}", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.raises(SystemExit, match="143"), termination_raised():  # noqa: PT012
        assert importlib.import_module(name).is_whole
        for _ in range(200):
            time.sleep(0.1)


@pytest.mark.parametrize(("number", "raised"), SIGNALS)
def test_a_signal_in_a_hook_is_not_lost(number: int, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    class Hook:
        def __del__(self) -> None:
            send(number)

    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    with ended_by(raised):
        Hook()
    assert lost == []


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def look() -> None:
        with stop_flag():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]


def test_work_returns_and_raises_as_if_it_ran_here() -> None:
    with stop_flag() as stop:
        assert run_stoppable(lambda: 7, stop) == 7
        with pytest.raises(ZeroDivisionError):
            run_stoppable(lambda: 1 // 0, stop)


@pytest.mark.parametrize(("number", "raised"), SIGNALS)
def test_work_that_waits_for_ever_is_left_after_its_grace(number: int, raised: type[BaseException]) -> None:
    for_ever = threading.Event()
    with ended_by(raised) as stop:
        threading.Timer(0.1, send, [number]).start()
        run_stoppable(for_ever.wait, stop, grace_seconds=0.3)
    for_ever.set()


def test_work_that_ends_within_its_grace_returns_its_result() -> None:
    with ended_by(SystemExit) as stop:
        is_sent = threading.Event()
        threading.Timer(0.1, lambda: (send(signal.SIGTERM), is_sent.set())).start()
        assert run_stoppable(lambda: is_sent.wait(60) and "a run", stop) == "a run"
        with pytest.raises(SystemExit):
            run_stoppable(lambda: pytest.fail("nothing is begun any more"), stop)


def test_work_that_fails_because_it_is_stopped_ends_as_stopped() -> None:
    is_deleted = threading.Event()

    def follow() -> None:
        is_deleted.wait()
        raise RuntimeError("the job was deleted while it ran")

    with ended_by(SystemExit) as stop:
        threading.Timer(0.1, send, [signal.SIGTERM]).start()
        run_stoppable(follow, stop, on_stop=lambda: is_deleted.set() or False, grace_seconds=0.3)


def test_work_that_will_end_by_itself_is_waited_for_until_ctrl_c_is_pressed_again() -> None:
    release = threading.Event()
    with ended_by(SystemExit) as stop:
        threading.Timer(0.1, send, [signal.SIGTERM, signal.SIGTERM]).start()
        threading.Timer(0.8, release.set).start()
        assert run_stoppable(release.wait, stop, on_stop=lambda: True, grace_seconds=0.0)
    with ended_by(KeyboardInterrupt) as stop:
        threading.Timer(0.1, send, [signal.SIGINT, signal.SIGINT]).start()
        run_stoppable(threading.Event().wait, stop, on_stop=lambda: True)


def test_the_program_itself_can_stop_the_work_and_a_signal_counts_more() -> None:
    with pytest.raises(KeyError), stop_flag() as stop:  # noqa: PT012
        threading.Timer(0.1, stop.stop_with, [KeyError()]).start()
        run_stoppable(threading.Event().wait, stop, grace_seconds=0.0)
    with ended_by(SystemExit) as stop:
        stop.stop_with(KeyError())
        send(signal.SIGTERM)
