"""A program that is told to stop unwinds in good order, whatever it was at."""

from __future__ import annotations

import _thread
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from components.steps.train import _finish
from training.distributed import signals as stopping
from training.distributed.signals import sigterm_as_exit

SIGNALS = [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number, _ in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """As somebody else would, who has no idea what this process is at."""
    os.kill(os.getpid(), number)


def module_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, after: str = "") -> str:
    name = f"slow_to_import_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(f"import os, time\n{line}\ntime.sleep(0.3)\n{after}\nis_whole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_second_sigterm_changes_nothing_and_the_handlers_are_as_before() -> None:
    @contextmanager
    def another_one_at_the_end() -> Iterator[None]:
        try:
            yield
        finally:
            send(signal.SIGTERM)

    before, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    with pytest.raises(SystemExit, match="143"), sigterm_as_exit(), another_one_at_the_end():
        send(signal.SIGTERM)
    send(signal.SIGTERM)  # while the program ends
    signal.signal(signal.SIGTERM, before)
    with sigterm_as_exit():
        pass
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sys.unraisablehook is hook


@pytest.mark.parametrize(("number", "raised"), SIGNALS)
def test_an_import_is_not_cut_in_two(number: int, raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module_that(tmp_path, monkeypatch, f"os.kill(os.getpid(), {int(number)})")

    def work() -> None:
        assert importlib.import_module(name).is_whole
        time.sleep(30)

    with pytest.raises(raised), sigterm_as_exit():
        work()
    assert sys.modules[name].is_whole


def test_whoever_insists_during_an_import_is_heard_once_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_LONGEST_HOLD_SECONDS", 0.1)
    name = module_that(tmp_path, monkeypatch, f"for _ in range(20):\n    os.kill(os.getpid(), {int(signal.SIGINT)})\n    time.sleep(0.02)")
    threads: list[object] = []
    start = _thread.start_new_thread
    monkeypatch.setattr(_thread, "start_new_thread", lambda *arguments: threads.append(start(*arguments)))
    raised = 0

    def work() -> None:
        nonlocal raised
        try:
            importlib.import_module(name)
            time.sleep(30)
        except KeyboardInterrupt:
            raised += 1
        time.sleep(0.3)

    with sigterm_as_exit():
        work()
    assert sys.modules[name].is_whole
    assert raised == 1
    assert len(threads) == 1, "one thread sends it again, not one for each time that it came"


def test_what_is_held_for_too_long_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_LONGEST_HOLD_SECONDS", 0.3)

    def work(stop: stopping.Stop) -> None:
        with stop.held():
            send(signal.SIGTERM)
            time.sleep(30)

    began = time.monotonic()
    with pytest.raises(SystemExit), sigterm_as_exit() as stop:
        work(stop)
    assert time.monotonic() - began < 10


def test_a_signal_that_still_waits_goes_once_to_whoever_is_there_next() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with sigterm_as_exit() as stop, stop.held():
        send(signal.SIGTERM)
        before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(-number))
        time.sleep(0.4)
        signal.signal(signal.SIGTERM, before)
        send(signal.SIGTERM)
    time.sleep(0.4)
    assert heard == [-signal.SIGTERM, signal.SIGTERM]


@pytest.mark.parametrize(("number", "raised"), SIGNALS)
def test_what_must_be_known_is_known_before_it_is_raised(number: int, raised: type[BaseException]) -> None:
    opened = []

    def work(stop: stopping.Stop) -> None:
        with stop.held():
            send(number)
            time.sleep(0.2)
            opened.append("a run")
        time.sleep(30)

    with pytest.raises(raised), sigterm_as_exit() as stop:
        work(stop)
    assert opened == ["a run"]


@pytest.mark.parametrize(("number", "raised"), SIGNALS)
def test_an_exception_that_a_hook_swallows_comes_again(number: int, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    class Hook:
        def __del__(self) -> None:
            send(number)
            time.sleep(0.1)

    def work() -> None:
        Hook()
        time.sleep(30)

    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    with pytest.raises(raised), sigterm_as_exit():
        work()
    assert not reported


def test_another_exception_that_a_hook_swallows_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hook:
        def __del__(self) -> None:
            raise ValueError("a defect")

    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(str(unraisable.exc_value)))
    with sigterm_as_exit():
        Hook()
    assert reported == ["a defect"]


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def look() -> None:
        with sigterm_as_exit() as stop, stop.held():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]


class Told:
    """A run in MLflow; somebody presses Ctrl-C while it is told its end."""

    def __init__(self, *, is_there: bool) -> None:
        self.is_there = is_there
        self.statuses: list[str] = []

    def finish(self, status: str, *, timeout_seconds: float) -> bool:
        send(signal.SIGINT)
        time.sleep(0.1)
        self.statuses.append(status)
        return self.is_there

    def flush(self, *, timeout_seconds: float) -> bool:
        send(signal.SIGINT)
        time.sleep(30)
        return False


def test_a_second_ctrl_c_does_not_keep_the_end_of_a_run_from_mlflow_but_from_waiting_for_it() -> None:
    told, away = Told(is_there=True), Told(is_there=False)
    _finish(cast(Any, told), "KILLED")
    assert told.statuses == ["KILLED"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        _finish(cast(Any, away), "KILLED")
