"""Progress is shown with its title, everything goes into the log, and what was there before comes back."""

import errno
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from pipelines.local.output import show_progress
from training.console import say


def test_show_progress_is_shown_and_everything_is_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_path = tmp_path / "logs" / "x.log"
    with show_progress(log_path, "width"):
        print("chatter of a library")
        print("a warning", file=sys.stderr)
        say("step 5")
        sys.stdout.write("(worker pid=1) iddpm| ")
        sys.stdout.write("scored\nhalf a line")
    print("after")
    shown = capsys.readouterr()
    assert shown.out == "[width] step 5\n[width] scored\nafter\n"
    assert shown.err == ""
    logged = [line[9:] for line in log_path.read_text().splitlines()]
    assert logged == ["chatter of a library", "a warning", "iddpm| step 5", "(worker pid=1) iddpm| scored"]


def test_lines_of_threads_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(tmp_path / "x.log", "width"):
        sys.stdout.write("iddpm| from the ")
        other = threading.Thread(target=lambda: say("from another"), name="other")
        other.start()
        other.join()
        sys.stdout.write("main thread\n")
    assert capsys.readouterr().out == "[width] from another\n[width] from the main thread\n"


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "closed"), OSError(errno.ENOSPC, "No space left on device")])
def test_an_output_that_takes_no_line_ends_no_work(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    stream = Mock(**{"write.side_effect": error})
    monkeypatch.setattr(sys, "stdout", stream)
    say("step 5")
    stream.write.assert_called_once()


def test_an_error_passes_and_output_is_as_before(tmp_path: Path) -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(ValueError, match="x"), show_progress(tmp_path / "x.log", ""):
        raise ValueError("x")
    assert (sys.stdout, sys.stderr) == before
