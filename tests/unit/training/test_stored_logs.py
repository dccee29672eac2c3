"""Logs in the directory of a run or of a data set: stored while they grow, bounded, without secrets, and read back."""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from step_arguments import preprocess_arguments

from components.launch.logs import log_place, step_log_stored
from components.launch.repeat import LostError
from components.launch.run import run_step
from components.retention.collect import collect
from components.retention.survey import Policy
from components.retention.verify import verify
from components.steps.registry import EVALUATE, PREPROCESS, REFERENCE
from components.steps.runs import data_of, note_attempt, run_directory
from pipelines.client.stored_logs import show_stored_logs
from training import storage
from training.config.errors import UserError
from training.config.presets import preset
from training.config.redaction import without_secrets
from training.data.format.manifest import read_manifest
from training.storage import logs
from training.storage.logs import LogUpload, list_logs, read_part
from training.tracking.references import RecordedRun, Records


def _upload(path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> LogUpload:
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_UPLOADS", 3600.0)
    return LogUpload(path, logs.log_uri(str(run), "train", "rank-1.out"))


def _lines(run: Path) -> list[str]:
    (log,) = list_logs(str(run), "train")
    assert (log.step, log.source) == ("train", "rank-1.out")
    return [line for part in log.parts for line in read_part(part.uri)]


def test_what_was_stored_before_a_process_was_killed_is_there_up_to_the_last_whole_line(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_text("first\nsecond\nAWS_SECRET_ACC")
    upload = _upload(path, tmp_path, monkeypatch)
    upload.store()
    assert _lines(tmp_path) == ["first", "second"]
    with path.open("a") as file:
        file.write("ESS_KEY=abcdef\nlast")
    upload.finish()
    assert _lines(tmp_path) == ["first", "second", "AWS_SECRET_ACCESS_KEY=***", "last"]


def test_parts_are_in_the_order_of_their_numbers_also_beyond_three_digits(tmp_path):
    for number in (1000, 0, 999, 1001, 998):
        storage.write_bytes(f"{tmp_path}/logs/train/20261126T190501-rank-1.out.{number:03d}.gz", gzip.compress(f"{number}\n".encode()))
    assert _lines(tmp_path) == ["0", "998", "999", "1000", "1001"]


def test_a_long_log_keeps_its_first_part_and_the_last_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_PART_BYTES", 1000)
    path = tmp_path / "log"
    text = [f"line {number:04d}" for number in range(5000)]  # 10 bytes each
    path.write_text("".join(f"{line}\n" for line in text[:1234]))
    upload = _upload(path, tmp_path, monkeypatch)
    upload.store()
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in text[1234:])
    upload.finish()
    stored = _lines(tmp_path)
    (log,) = list_logs(str(tmp_path))
    assert len(log.parts) <= 1 + logs._NUM_LAST_PARTS
    assert stored[:100] == text[:100]
    assert stored[100:] == text[-len(stored[100:]) :]
    assert len(stored) >= 600


def test_storage_that_is_away_for_a_while_loses_nothing_and_fails_nobody(tmp_path, monkeypatch):
    path, run = tmp_path / "log", tmp_path / "run"
    path.write_text("first\n")
    run.write_text("a file where the directory should be")
    upload = _upload(path, run, monkeypatch)
    with pytest.raises(storage.StorageError):
        upload.store()
    run.unlink()
    upload.finish()
    assert _lines(run) == ["first"]


_SIGNED = "https://s3.eu.example.com/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=ID%2Fs3&X-Amz-Date=2&X-Amz-Signature=0123abc"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (_SIGNED, _SIGNED.replace("ID%2Fs3", "***").replace("0123abc", "***")),
        ("AWS_SECRET_ACCESS_KEY=abc/def+g= HOME=/root", "AWS_SECRET_ACCESS_KEY=*** HOME=/root"),
        ("environ({'MLFLOW_TRACKING_PASSWORD': 'hunter2', 'A': 'b'})", "environ({'MLFLOW_TRACKING_PASSWORD': '***', 'A': 'b'})"),
        ('{"aws_secret_access_key": "abc", "region": "x"}', '{"aws_secret_access_key": "***", "region": "x"}'),
        ("IDDPM_WEBHOOK_URL=https://chat/x/y", "IDDPM_WEBHOOK_URL=***"),
        ("POST https://hooks.slack.com/services/T0/B0/xyz failed", "POST https://hooks.slack.com/*** failed"),
        ("https://chat.example.com/hooks/abc123 answered 404", "https://chat.example.com/hooks/*** answered 404"),
        ("https://prod-1.westeurope.logic.azure.com:443/workflows/1/x?sig=ab", "https://prod-1.westeurope.logic.azure.com:443/***"),
        ("{'Authorization': 'Bearer ey.ab.cd', 'Host': 'x'}", "{'Authorization': 'Bearer ***', 'Host': 'x'}"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=A/b, Signature=c", "Authorization: AWS4-HMAC-SHA256 ***"),
        ("key id AKIAIOSFODNN7EXAMPLE is refused", "key id AKIA*** is refused"),
        ("https://user:word@host/path", "https://***@host/path"),
        ("the value is very-secret-value here", "the value is *** here"),
        ("the value is very-secret-value-of-2 here", "the value is *** here"),
        ("SERVICE_ACCOUNT_KEY=abc PRIVATE_KEY=def", "SERVICE_ACCOUNT_KEY=*** PRIVATE_KEY=***"),
        ("step 1,200/1,600  loss 0.0312  215 images/s", None),
        ("score: FID 3.2 at step=00001200, tokens 5, s3://iddpm/runs/a-0123456789/checkpoints?x=1", None),
    ],
)
def test_secrets_are_replaced_and_nothing_else(text, expected, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "very-secret-value")
    monkeypatch.setenv("RAY_AUTH_TOKEN_2", "very-secret-value-of-2")
    monkeypatch.setenv("SOME_TOKEN", "loss")  # too short to be a secret
    assert without_secrets(text) == (text if expected is None else expected)


@pytest.mark.parametrize("shown", [str, repr, json.dumps, lambda value: urllib.parse.quote(value, safe="")])
def test_a_secret_with_odd_characters_and_a_line_break_at_its_end_is_replaced_however_it_is_shown(shown, monkeypatch):
    value = "pa\"ss'w\\o/rd$%é\n"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", value)
    assert without_secrets(f"it was {shown(value.strip())} here").replace("'", "").replace('"', "") == "it was *** here"


_PROGRAM = """
import os, subprocess, sys
from components.launch.logs import step_log_stored
with step_log_stored(sys.argv[1], "evaluate"):
    sys.stdout.write("printed\\n")  # whole: print writes a line and its end apart where output is unbuffered
    sys.stdout.flush()
    sys.stderr.write("complained\\n")
    subprocess.run([sys.executable, "-c", "import os; os.write(1, b'last words\\\\n'); os.kill(os.getpid(), 9)"])
print("after")
"""


def test_a_steps_log_has_what_it_and_a_killed_child_printed_and_its_output_stays_as_it_is(tmp_path):
    done = subprocess.run([sys.executable, "-c", _PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("printed\nlast words\nafter\n", "complained\n")
    (log,) = list_logs(str(tmp_path))
    assert (log.step, log.source) == ("evaluate", "step")
    assert sorted(read_part(log.parts[0].uri)) == ["complained", "last words", "printed"]


def test_the_log_of_a_step_lies_in_the_directory_of_its_run_also_before_the_training_has_begun(tmp_path):
    experiment = preset("digits-hybrid-cosine")
    run_uri = run_directory(experiment, "0123", str(tmp_path))[1]
    arguments = {"experiment": experiment.to_json(), "data_uri": "s3://data", "data_digest": "0123", "storage_root_uri": str(tmp_path)}
    assert log_place(REFERENCE, arguments) == (run_uri, ())
    assert log_place(EVALUATE, {"run_uri": run_uri}) == (run_uri, ())


def test_a_trial_that_another_step_trained_names_the_workers_whose_logs_it_has(tmp_path):
    for rank in (0, 1):
        (tmp_path / "log").write_text("words\n")
        LogUpload(tmp_path / "log", logs.log_uri(str(tmp_path / "run"), "train", f"rank-{rank}.out")).finish()
    with pytest.raises(UserError, match=r"has no step's log, because another step trained this trial; --rank shows those of workers 0, 1$"):
        show_stored_logs([str(tmp_path / "run")], "", None, follow=False, out=print, err=print)


def test_a_log_with_rays_own_marks_alone_is_not_announced(tmp_path, capsys):
    run = str(tmp_path / "run")
    for source, text in (("rank-0.err", ":job_id:01000000\n"), ("rank-0.out", "words\n")):
        (tmp_path / "log").write_text(text)
        LogUpload(tmp_path / "log", logs.log_uri(run, "train", source)).finish()
    show_stored_logs([run], "train", 0, follow=False, out=print, err=print)
    head, *rest = capsys.readouterr().out.splitlines()
    assert (head.startswith("--- train, rank-0.out, began "), rest) == (True, ["words"])


_DATA = "data/digits-8x8x1-none"
_OWN_IMAGES = ["data.name=own", "data.num_classes=0", "model.class_conditional=false", "data.image_channels=3", "data.resize=area"]


def _prepare(root: Path, **changes: Any) -> None:
    arguments = preprocess_arguments(root, **changes)
    del arguments["resources"]
    with open(1, "w", closefd=False) as stdout, contextlib.redirect_stdout(stdout):  # pytest's own does not write to the descriptor
        run_step(PREPROCESS, arguments, "laptop")


def _words(directory: Path, step: str = "preprocess") -> list[str]:
    """Return the logs of a step as texts."""
    return ["\n".join(line for part in log.parts for line in read_part(part.uri)) for log in list_logs(str(directory), step)]


def test_the_log_of_a_preparation_lies_with_its_data_set_once_however_many_runs_find_the_images(tmp_path):
    _prepare(tmp_path)
    (made,) = _words(tmp_path / _DATA)
    assert "data/digits-8x8x1-none/train: 1,497 images in 1 shard" in made
    before = read_manifest(str(tmp_path / _DATA / "train"))
    _prepare(tmp_path)
    _prepare(tmp_path)
    assert _words(tmp_path / _DATA) == [made]
    assert read_manifest(str(tmp_path / _DATA / "train")) == before
    _prepare(tmp_path / "elsewhere", data_uri=str(tmp_path / "mine"))
    assert len(_words(tmp_path / "mine")) == 1
    assert not (tmp_path / "elsewhere").exists()


def test_a_preparation_that_makes_another_size_of_images_that_are_there_has_worked(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(2):
        _write_image(tmp_path / "images" / f"{number}.png")
    experiment = preset("digits-hybrid-cosine", _OWN_IMAGES).to_json()
    mine = {"experiment": experiment, "source": str(tmp_path / "images"), "data_uri": str(tmp_path / "mine")}
    _prepare(tmp_path, **mine)
    for _ in range(2):
        _prepare(tmp_path, **mine, other_sizes=[4])
    assert sorted("mine/4x4/train: 2 images in 1 shard" in words for words in _words(tmp_path / "mine")) == [False, True]


def _write_image(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), (10, 20, 30)).save(path)


def test_a_preparation_that_fails_leaves_its_log_with_the_error_where_the_data_set_would_be_and_a_later_one_is_not_confused(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    experiment = preset("digits-hybrid-cosine", _OWN_IMAGES).to_json()
    mine = {"experiment": experiment, "data_uri": str(tmp_path / "mine")}
    with pytest.raises(UserError):
        _prepare(tmp_path, **mine, source=str(tmp_path / "nowhere"))
    with pytest.raises(UserError):
        _prepare(tmp_path, **mine, source=str(tmp_path / "images"))
    wrong, unreadable = sorted(_words(tmp_path / "mine"), key=lambda words: "broken.png" in words)
    assert wrong.startswith("UserError: ")
    assert "nowhere" in wrong
    assert "broken.png" in unreadable
    with pytest.raises(UserError, match="there is no run, checkpoint or data set there"):
        verify(str(tmp_path / "mine"))
    with pytest.raises(UserError, match="there is no data set"):
        read_manifest(str(tmp_path / "mine"))
    _write_image(tmp_path / "images" / "broken.png")
    _prepare(tmp_path, **mine, source=str(tmp_path / "images"))
    assert "mine/train: 1 images in 1 shard" in "".join(_words(tmp_path / "mine"))
    _write_image(tmp_path / "images" / "more.png")
    with pytest.raises(UserError, match="already contains another data set"):  # the images are there, and the step still fails
        _prepare(tmp_path, **mine, source=str(tmp_path / "images"))
    assert len(_words(tmp_path / "mine")) == 4
    assert not verify(str(tmp_path / "mine")).damaged


@pytest.mark.parametrize("pod", ["", "preprocess-x-system-container-impl-1"])
def test_what_the_user_did_wrong_stands_once_at_the_end_of_the_log(tmp_path, monkeypatch, pod):
    monkeypatch.setenv("KFP_POD_NAME", pod)  # with one, the step has a process of its own, which prints the error
    with pytest.raises(UserError, match="no source 'nowhere'"):
        _prepare(tmp_path, source="nowhere")
    (words,) = _words(tmp_path / _DATA)
    assert words.splitlines()[-1].removeprefix("iddpm| ").startswith("UserError: there is no source 'nowhere'")
    assert words.count("nowhere") == 1


@pytest.mark.parametrize("error", ["ValueError('no\\nmore')", "RuntimeError('no\\nmore')"])
def test_an_error_that_the_steps_process_prints_stands_once(tmp_path, error):
    program = f"import sys; from components.launch.logs import step_log_stored as stored\nwith stored({str(tmp_path)!r}, 'train'):\n"
    program += "    import subprocess; subprocess.run([sys.executable, '-c', 'raise ' + sys.argv[1]]); raise eval(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, error], capture_output=True, check=False)
    (words,) = _words(tmp_path, "train")
    assert words.count("Error: no\nmore") == 1
    assert words.endswith("Error: no\nmore")


def test_an_error_of_which_the_log_ends_with_a_part_is_written_whole(tmp_path):
    with contextlib.suppress(UserError), step_log_stored(str(tmp_path), "train"):
        subprocess.run(["echo", "no: more"], check=True)
        raise UserError("never: no: more")
    assert _words(tmp_path, "train") == ["no: more\nUserError: never: no: more"]


def test_a_preparation_whose_process_is_killed_leaves_its_last_words_and_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("components.launch.repeat.PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("KFP_POD_NAME", "pod")
    killer = "import os, sys; print('half of the images', flush=True); os.kill(os.getpid(), 9)"
    monkeypatch.setattr("components.launch.run.Call.driver", ("python", "-c", killer))
    with pytest.raises(LostError, match="was killed"):
        _prepare(tmp_path)
    tries = _words(tmp_path / _DATA)
    assert len(tries) == 3
    for words in tries:
        assert words.startswith("half of the images")
        assert "the process of step preprocess was killed, most likely because the pod's memory" in words


def test_a_log_that_was_stored_for_a_while_goes_if_the_step_only_found_its_work_done(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_UPLOADS", 1.0)
    manifest = tmp_path / "train" / "manifest.json"
    manifest.parent.mkdir()
    manifest.write_text("{}")
    uri = str(tmp_path)

    def stored() -> list[str]:
        return [part.uri for log in list_logs(uri) for part in log.parts]

    program = "import time; print('listing', flush=True); time.sleep(2.5)"
    with step_log_stored(uri, "preprocess", [str(manifest)]):
        subprocess.run([sys.executable, "-c", program], check=True)
        assert len(stored()) == 1
    assert stored() == []
    with step_log_stored(uri, "preprocess", [str(manifest), str(tmp_path / "test" / "manifest.json")]):
        subprocess.run(["echo", "compared"], check=True)
        manifest.write_text('{"changed": true}')
    assert len(stored()) == 1


def _show(directory: Path, step: str = "", rank: int | None = None) -> tuple[list[str], list[str]]:
    """Return the lines of the logs, and those about them."""
    out: list[str] = []
    err: list[str] = []
    show_stored_logs([str(directory)], step, rank, follow=False, out=out.append, err=err.append)
    return out, err


def _write_log(uri: Path, step: str, source: str, path: Path, words: str = "") -> None:
    path.write_text(f"{words or f'{step} {source}'}\n")
    LogUpload(path, logs.log_uri(str(uri), step, source)).finish()


def test_the_logs_of_a_run_begin_with_that_of_its_data_set_which_has_it_too(tmp_path):
    run, data = tmp_path / "run", tmp_path / "data"
    _write_log(data, "preprocess", "step-0a1b", tmp_path / "log")
    _write_log(run, "train", "step", tmp_path / "log")
    assert _show(run)[0] == ["train step"]
    note_attempt(str(run), str(data))
    assert data_of(str(run)) == str(data)
    assert _show(run)[0] == ["preprocess step-0a1b", "train step"]
    assert _show(run, "preprocess")[0] == _show(data)[0] == _show(data, "preprocess")[0] == ["preprocess step-0a1b"]
    assert _show(run, "train")[0] == ["train step"]
    (run / "attempt.json").unlink()
    (run / "result.json").write_text(json.dumps({"data_uri": str(data)}))
    assert _show(run, "preprocess")[0] == ["preprocess step-0a1b"]
    with pytest.raises(UserError, match=r"run: has no log of step 'preproces'; did you mean 'preprocess'\?$"):
        _show(run, "preproces")
    with pytest.raises(UserError, match=r"run: has no log of rank 0; it has those of ranks none$"):
        _show(run, rank=0)


def test_what_is_said_where_a_log_is_missing_fits_runs_data_sets_and_other_directories(tmp_path):
    run, data = tmp_path / "run", tmp_path / "data"
    run.mkdir()
    (run / "experiment.json").write_text("{}")
    with pytest.raises(UserError, match=r"run: has no logs$"):
        _show(run)
    with pytest.raises(UserError, match=r"nowhere: has no logs; is it the directory of a run or of a data set\?$"):
        _show(tmp_path / "nowhere")
    note_attempt(str(run), str(data))
    (data / "train").mkdir(parents=True)
    (data / "train" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"data: has no logs$"):
        _show(data)
    _write_log(run, "train", "rank-0.out", tmp_path / "log")
    with pytest.raises(UserError, match=r"run, .*data: has no step's log, .*; --rank shows those of workers 0$"):
        _show(run, "preprocess")
    _write_log(data, "preprocess", "step-0a1b", tmp_path / "log")
    out, err = _show(run)
    assert out == ["preprocess step-0a1b"]
    assert err[-1].endswith("run: has no step's log, because another step trained this trial; --rank shows those of workers 0")
    with pytest.raises(UserError, match=r"--rank shows those of workers 0$"):
        _show(run, "train")
    assert _show(run, rank=0)[0] == ["train rank-0.out"]


def test_the_log_of_a_data_set_is_kept_with_it_and_keeps_nothing_else(tmp_path):
    _prepare(tmp_path)
    for name in ("runs/live", "runs/gone"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "experiment.json").write_text("{}")
    # A line that names a run, as an error may, is no reference to it.
    _write_log(tmp_path / _DATA, "preprocess", "step-0a1b", tmp_path / "log", f"{tmp_path}/runs/gone/checkpoints is not there")
    records = Records(
        tuple(
            RecordedRun(run_id=name, directory_uri=f"{tmp_path}/runs/{name}", is_running=False, is_deleted=name == "gone", texts=())
            for name in ("live", "gone")
        ),
        (),
    )
    found = collect(str(tmp_path), Policy(days=0, grace_hours=0), delete=True, records=lambda: records)
    assert [each.name for each in found.deleted] == ["runs/gone"]
    kept = {each.name: each.state for each in found.directories}
    assert kept["data"] == "kept"
    assert len(list_logs(str(tmp_path / _DATA), "preprocess")) == 2
