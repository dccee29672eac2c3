"""Lines and numbers that people read."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from training import console as progress


def test_every_line_of_a_message_carries_the_mark_and_is_heard_again(capsys):
    progress.say("training\nstep 1")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["iddpm| training", "iddpm| step 1"]
    assert [progress.parse_marked_line(line + "\n") for line in lines] == ["training", "step 1"]


def test_a_control_character_is_written_out_and_moves_no_terminal(capsys):
    progress.say("bad\x1b[31m\tname\x9b")
    assert capsys.readouterr().out == "iddpm| bad\\x1b[31m\\tname\\x9b\n"
    assert progress.printable("two\nlines of \u4f60") == "two\\nlines of \u4f60"


def test_a_path_that_is_not_utf_8_is_written_out_and_ends_no_work(capsys):
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(UnicodeEncodeError):
        name.encode()
    progress.say(f"{name}: 4 images")
    assert capsys.readouterr().out == "iddpm| caf\\udce9: 4 images\n"


def test_where_nobody_reads_the_marks_progress_leaves_standard_output_to_results(capsys):
    with progress.output_marks(False):
        progress.say("training\nstep 1")
    progress.say("marked again")
    said = capsys.readouterr()
    assert said.err == "training\nstep 1\n"
    assert said.out == "iddpm| marked again\n"


def test_a_mark_behind_a_loggers_prefix_is_heard_and_other_lines_are_not():
    assert progress.parse_marked_line("(worker pid=12) iddpm| step 5\n") == "step 5"
    assert progress.parse_marked_line("INFO: something else\n") is None


def test_a_reader_that_left_does_not_end_the_speaker():
    code = "import sys, time\nfrom training.console import say\nfor i in range(2000): say('x' * 100)\nprint('alive', file=sys.stderr)"
    # The child's stdout is a pipe whose reading end is closed at once.
    reading, writing = os.pipe()
    os.close(reading)
    child = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writing)
    assert "alive" in child.stderr


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (86399, "23 h 59 min"),
        (90000, "1 d 01 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds, words):
    assert progress.format_duration(seconds) == words


@pytest.mark.parametrize(
    ("num_bytes", "words"), [(0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1536, "1.50 KiB"), (25e9, "23.3 GiB"), (2**60, "1024 PiB")]
)
def test_bytes_read_in_three_digits(num_bytes, words):
    assert progress.format_bytes(num_bytes) == words


def test_rates_and_the_time_left_before_anything_is_done_are_unknown_rather_than_infinite():
    assert progress.format_rate(10, 0, "images") == "- images/s"
    assert progress.format_rate(1234.4, 1, "images") == "1,234 images/s"
    assert progress.format_remaining(0, 100, 5) == ""
    assert progress.format_remaining(25, 100, 10) == "30 s left"
    assert progress.format_remaining(100, 100, 10) == ""
