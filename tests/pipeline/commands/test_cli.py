"""The command line as a person meets it: quick, documented, and one line where something is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import click
import numpy as np
import pytest
import torch
import typer
from PIL import Image

from components.launch.resources import STAGES, read_resources
from pipelines.cli.main import app
from pipelines.cli.runs import local
from pipelines.client.arguments import arguments_of, compiled_pipeline, require_possible_here
from pipelines.local.ablate import _run_trials
from pipelines.local.images import preparation
from pipelines.services.services import Services, ServicesError, connect, current
from training.config.experiment import Resources
from training.config.files import read_experiment_file, resolve_experiment
from training.config.presets import preset
from training.data.sources.published import PUBLISHED
from training.models.unet import make_model

Command = Callable[..., "tuple[int, str, str]"]


def _commands(group: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command with its path, like ("schedule list", ...)."""
    for name, command in getattr(group, "commands", {}).items():
        yield f"{path}{name}", command
        yield from _commands(command, f"{path}{name} ")


COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_help_waits_for_no_library_but_that_of_the_command_line() -> None:
    """A library can cost every command seconds on a slow machine; `iddpm --help` takes half a second."""
    program = str(Path(sys.executable).with_name("iddpm"))
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=True, env=environment)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if line.startswith("import time:")}
    needs = {re.split(r"[^\w.-]", need)[0].lower() for need in importlib.metadata.requires("iddpm-pipelines") or ()} - {"iddpm-pipelines"}
    assert {"torch", "kfp", "typer"} <= needs
    of = importlib.metadata.packages_distributions()
    assert {name for name in imported if needs.intersection(distribution.lower() for distribution in of.get(name, ()))} == {"typer", "rich"}


def test_ctrl_c_ends_a_command_in_silence_while_its_modules_are_imported_and_before_it_begins(tmp_path: Path) -> None:
    script = tomllib.loads(Path("pyproject.toml").read_text())["project"]["scripts"]["iddpm"].partition(":")
    interrupt = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "importing").mkdir()
    (tmp_path / "importing" / "typer.py").write_text(interrupt)  # the first library that the command line imports
    run = f"import sys; from {script[0]} import {script[2]}; sys.exit({script[2]}())"
    begin = f"import typer.main\ndef get_command(*_):\n    {interrupt.replace(chr(10), '; ')}\ntyper.main.get_command = get_command\n{run}"
    for path, program in ((tmp_path / "importing", run), (tmp_path, begin)):
        environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{Path.cwd()}"}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=50)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_help_names_every_command(run_iddpm: Command) -> None:
    assert len(COMMANDS) > 30
    for path in COMMANDS:
        *groups, name = path.split()
        assert f" {name} " in run_iddpm(*groups, "--help")[1]


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_every_command_and_every_option_has_a_text_that_says_what_it_does(path: str) -> None:
    texts = {path: COMMANDS[path].help}
    texts |= {f"{path} {each.name}": each.help for each in COMMANDS[path].params if isinstance(each, click.Option) or hasattr(each, "help")}  # type: ignore[attr-defined]
    for name, text in texts.items():
        assert text, name
        assert re.match(r"[A-Z]|\w+[.,:= ]", text), name
        assert not re.match(r"(Of|What|Whether|Where|How|Who|Why|Let)\b", text), name
        assert text.rstrip().endswith("."), name


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_the_help_of_a_narrow_terminal_cuts_nothing_short(path: str, run_iddpm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run_iddpm(*path.split(), "--help")
    assert status == 0
    assert "…" not in out
    shown = [each for each in COMMANDS[path].params if not getattr(each, "hidden", False)]
    assert {name for each in shown for name in (*each.opts, *each.secondary_opts) if name.startswith("--")} <= set(out.split())


def test_rebuild_average_takes_a_runs_key(run_iddpm: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tags = {"iddpm.best_checkpoint_uri": f"{tmp_path}/run/checkpoints/step=00000001"}
    monkeypatch.setattr("evaluation.selection.resolve.find_training", lambda key: Mock(run_id="1", tags=tags))
    status, _, err = run_iddpm("rebuild-average", "a591b1e5c6", f"{tmp_path}/rebuilt", "--decay", "0.97")
    assert status == 1
    assert f"error: {tmp_path}/run: has no snapshots; name a run" in err


def test_the_help_of_preprocess_names_every_source() -> None:
    source = next(each for each in COMMANDS["preprocess"].params if each.name == "source")
    assert isinstance(source, click.Option) or hasattr(source, "help")
    assert all(name in source.help for name in (*PUBLISHED, "lsun-"))


def test_a_full_disk_below_standard_output_is_named(run_iddpm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.print", Mock(side_effect=[OSError(errno.ENOSPC, "No space left on device"), None]))
    assert run_iddpm("show", "digits-hybrid-cosine")[0] == 1
    assert "the disk is full; free some space" in print.call_args.args[0]  # type: ignore[attr-defined]


def test_an_error_is_one_line_on_standard_error(run_iddpm: Command) -> None:
    status, out, err = run_iddpm("show", "digits-hybrid-cosine", "--set", "optim.learning_rat=1")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: optim.learning_rat: there is no 'learning_rat'")


@pytest.mark.parametrize("command", ["sample", "memorisation", "learn-steps", "learn-variance"])
@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_that_no_experiment_can_have_is_refused(run_iddpm: Command, command: str, seed: str) -> None:
    status, _, err = run_iddpm(command, "model", "--seed", seed)
    assert status == 2
    assert "'--seed'" in err


def test_an_error_that_a_library_raises_is_not_shown_as_a_message_of_ours(run_iddpm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.config.files.named_experiment", Mock(side_effect=ValueError("ambiguous truth value")))
    status, _, err = run_iddpm("show", "digits-hybrid-cosine")
    assert (status, err) == (1, "error: ValueError: ambiguous truth value (unexpected; --debug shows where)\n")


@pytest.mark.parametrize(("word", "option"), [("guidance_scale=2", "--scales"), ("guidance_step=400", "--guidance-step")])
def test_a_guidance_sweep_takes_scale_and_guide_by_options_of_its_own(run_iddpm: Command, word: str, option: str) -> None:
    status, _, err = run_iddpm("guidance-sweep", "model", "--sampling", word)
    assert (status, err) == (1, f"error: --sampling {word.partition('=')[0]}: give it by {option}\n")


def test_a_file_on_this_machine_is_imported(run_iddpm: Command, tmp_path: Path) -> None:
    file, run, named = tmp_path / "model000700.pt", tmp_path / "run", "digits-tiny-hybrid-cosine"
    torch.save(make_model(preset(named)).state_dict(), file)
    status, out, err = run_iddpm("import-checkpoint", str(file), str(run), "--preset", named)
    assert (status, err) == (0, "")
    assert json.loads(out)["checkpoint_uri"] == f"{run}/checkpoints/step=00000700"
    status, _, err = run_iddpm("sample", str(file), str(tmp_path / "grid.png"))
    assert (status, err.count("\n")) == (1, 1)
    assert f"{file}: there is no run with a checkpoint there" in err
    status, _, err = run_iddpm("import-checkpoint", str(tmp_path), str(run), "--preset", named)
    assert (status, err.count("\n")) == (1, 1)
    assert f"{tmp_path}: is a folder, and none of diffusers (it has no model_index.json)" in err


def test_results_alone_are_on_standard_output(run_iddpm: Command, tmp_path: Path) -> None:
    status, out, err = run_iddpm("preprocess", "digits-tiny-hybrid-cosine", str(tmp_path / "digits"))
    assert (status, out.count("\n")) == (0, 1)
    assert "1,497 images in 1 shard" in err
    assert "iddpm|" not in err


def test_images_are_prepared_for_an_experiment_file_as_for_a_preset(run_iddpm: Command, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text('base = "digits-tiny-hybrid-cosine"\n[data]\nimage_size = 4\nresize = "area"\n')
    assert run_iddpm("preprocess", str(tmp_path / "my.toml"), str(tmp_path / "data"))[0] == 0
    assert "1,497 of 4x4x1" in run_iddpm("dataset", "info", str(tmp_path / "data" / "train"))[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compile", "file"), "file/train.yaml: File exists; a file and a directory can't have one name, so use another"),
        (("compile", "s3://bucket/key"), "s3:/bucket/key/train.yaml: is neither a path nor a whole address"),
        (("compile", "gs://bucket/key"), "gs:/bucket/key/train.yaml: is neither a path nor a whole address"),
        (("score-batch", "a.npz", "b.npz", "--out", "file:///tmp/x"), "file:/tmp/x: is neither a path nor a whole address"),
        (("score-batch", "a.npz", "b.npz", "--out", "s3://bucket/key"), "s3:/bucket/key: is neither a path nor a whole address"),
        (
            ("score-batch", "a.npz", "b.npz", "--out", "file/below"),
            "file/below: Not a directory; a file and a directory can't have one name",
        ),
    ],
)
def test_a_path_that_can_not_be_written_is_named_with_the_remedy(
    run_iddpm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    status, out, err = run_iddpm(*words)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_without_the_right_to_write_is_refused_before_the_work(
    run_iddpm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.storage.disk.os.access", lambda path, mode: not mode & os.W_OK)  # root may write everywhere
    status, _, err = run_iddpm("score-batch", "a.npz", "b.npz", "--out", str(tmp_path))
    assert (status, err) == (
        1,
        f"error: {tmp_path}: Permission denied; give this user the right to it, or name another directory\n",
    )


def test_images_are_not_prepared_for_a_directory_without_the_right_to_write(
    run_iddpm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_iddpm("preprocess", "digits-hybrid-cosine", str(tmp_path / "there"))[0] == 0
    monkeypatch.setattr("training.storage.disk.os.access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr("training.data.preparation.prepare._make", Mock(side_effect=AssertionError("it begins")))
    for words in (
        ("preprocess", "digits-hybrid-cosine", str(tmp_path / "new")),
        ("dataset", "preview", str(tmp_path / "none"), str(tmp_path / "sheet.png")),
    ):
        status, _, err = run_iddpm(*words)
        assert status == 1
        assert "Permission denied; give this user the right to it" in err
    assert run_iddpm("preprocess", "digits-hybrid-cosine", str(tmp_path / "there"))[0] == 0, "a finished one is not written again"


def test_a_full_disk_is_named_and_leaves_no_half_written_file(
    run_iddpm: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.storage.disk.os.fsync", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    for words in (("init", "--images", str(images), "--out", str(tmp_path / "new" / "my.toml")), ("compile", str(tmp_path / "new"))):
        status, _, err = run_iddpm(*words)
        assert (status, err.count("\n")) == (1, 1)
        assert "the disk is full; free some space" in err
        assert not list((tmp_path / "new").iterdir())


def test_a_package_that_is_not_installed_is_named_with_the_remedy(run_iddpm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kfp", None)  # as in the image, which has kfp without all of its requirements
    monkeypatch.delitem(sys.modules, "pipelines.client.kfp_client", raising=False)
    status, out, err = run_iddpm("cancel", "RUN_ID", "--endpoint", "http://localhost:1")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "the Python package kfp is not installed here; `make setup` installs all" in err


def test_workers_are_at_least_one(run_iddpm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run_iddpm("ablate", "hybrid-weight", "--num-workers", "0")
    assert status == 2
    assert "--num-workers" in err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(run_iddpm: Command) -> None:
    with pytest.raises(ValueError, match="nothing-like-it"):
        run_iddpm("show", "nothing-like-it", "--debug")


def test_an_unknown_command_is_a_usage_error(run_iddpm: Command) -> None:
    status, _, err = run_iddpm("tarin")
    assert status == 2
    assert "Traceback" not in err


def test_show_prints_the_experiment_with_its_overrides(run_iddpm: Command) -> None:
    assert json.loads(run_iddpm("show", "digits-hybrid-cosine", "--set", "optim.num_steps=7")[1])["optim"]["num_steps"] == 7


def test_show_prints_an_experiment_file_that_reads_back_to_the_same_experiment(run_iddpm: Command) -> None:
    changes = ["optim.num_steps=7", "evaluation.sampling.method=ddim", "data.name=birds", "optim.grad_clip_norm=null"]
    text = run_iddpm("show", "digits-hybrid-cosine", "--toml", *(word for change in changes for word in ("--set", change)))[1]
    assert read_experiment_file(text) == resolve_experiment(preset="digits-hybrid-cosine", overrides=changes)
    assert run_iddpm("show", "digits-hybrid-cosine", "--toml")[1] == 'base = "digits-hybrid-cosine"\n'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "tarin"), "there is no pipeline 'tarin'; did you mean 'train'? The pipelines are train, ablation, nightly-fid"),
        (("run", "train", "--preset", "digits"), "there is no preset 'digits'"),
        (("run", "train", "--set", "optim.num_steps=few"), "optim.num_steps"),
        (
            ("run", "train", "--param", "train_resource=1"),
            "pipeline train has no parameter 'train_resource'; did you mean 'train_resources'?",
        ),
        (("run", "train", "--resources", "train.num_workers=0"), "train_resources.num_workers: must be at least 1, got 0"),
        (("run", "train", "--resources", "train.precision=fp16"), "train_resources.precision: Input should be 'fp32' or 'bf16'"),
        (("run", "nightly-fid", "--preset", "digits-hybrid-cosine"), "takes no --preset and no --set"),
        (("run", "train", "my.toml"), "my.toml: cannot be read as an experiment file"),
        (("run", "ablation", "my.toml"), "my.toml: pipeline ablation takes no file; name an ablation"),
        (("run", "tune", "--from", "train"), "--from train: pipeline tune can't do finished steps again"),
        (("run", "train", "--param", "image=foo"), "--param image=foo: a run on this machine uses no image; leave it out"),
        (("train", "digits-hybrid-cosine", "--param", "image=foo"), "--param image=foo: a run on this machine uses no image"),
        (("tune", "digits-hybrid-cosine", "--search", "model.dropout=0..2"), "model.dropout: must be in [0, 1), got 2.0"),
        (("tune", "digits-hybrid-cosine", "--search", "model.dropout=0..0.2", "--reduction", "1"), "reduction: must be 2 or more, or 0"),
        (("tune", "my.toml", "--search", "model.dropout=0..0.2"), "my.toml: cannot be read as an experiment file"),
        (("train", "digits-hybrid-cosine", "--images", "photos/"), "photos/: there is no such file or folder; check the address"),
        (("train", "digits-hybrid-cosine", "--images", "cifar1"), "there is no source 'cifar1'; did you mean 'cifar10'?"),
        (("train", "digits-hybrid-cosine", "--images", "~nobody-here/x"), "~nobody-here/x: there is no home directory of that user"),
        (
            ("train", "digits-hybrid-cosine", "--images", "a", "--param", "data_source=b"),
            "--images and --param data_source both name the images; give one of them",
        ),
        (
            ("train", "digits-hybrid-cosine", "--images", "a.zip", "--param", 'data_options={"num_test": 3}'),
            "there is no source 'a.zip'; the sources are",
        ),
        (
            ("tune", "digits-hybrid-cosine", "--search", "model.dropout=0..0.2", "--images", "a.zip"),
            "there is no source 'a.zip'; the sources are",
        ),
        (("ablate", "width", "--source", "digits=a.zip"), "there is no source 'a.zip'; the sources are"),
    ],
)
def test_a_run_that_can_not_work_is_refused_before_anything_starts(
    run_iddpm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.services.services.up", Mock(side_effect=AssertionError("it starts")))
    status, _, err = run_iddpm(*arguments)
    assert status == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (
            ("train", "digits-tiny-hybrid-cosine", "--from", "evaluate"),
            {"experiment_preset": "digits-tiny-hybrid-cosine", "force_from": "evaluate"},
        ),
        (("train", "my.toml"), {"experiment_file": 'base = "digits-hybrid-cosine"'}),
        (("ablation", "two-stage"), {"ablation_name": "two-stage"}),
    ],
)
def test_run_takes_what_submit_takes(
    run_iddpm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], given: dict[str, str]
) -> None:
    # Here and below a command ends where its work would begin, which takes minutes: tests/integration does it for real.
    (tmp_path / "my.toml").write_text('base = "digits-hybrid-cosine"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.services.services.up", Mock())
    started = Mock(return_value={})
    monkeypatch.setattr("pipelines.local.run.run_pipeline", started)
    status, _, err = run_iddpm("run", *words)
    assert (status, err) == (0, "")
    assert started.call_args.args[1] == given


def test_a_run_on_this_machine_stores_addresses_that_another_folder_finds(
    run_iddpm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.services.services.up", Mock())
    started = Mock(return_value={})
    monkeypatch.setattr("pipelines.local.run.run_pipeline", started)
    for root, whole in (("kept/here", str(tmp_path / "kept/here")), ("s3://bucket/x", "s3://bucket/x"), ("file:///x", "file:///x")):
        status, _, err = run_iddpm("run", "train", "--param", f"storage_root_uri={root}", "--param", "data_uri=data")
        assert (status, err) == (0, "")
        assert started.call_args.args[1] == {"storage_root_uri": whole, "data_uri": str(tmp_path / "data")}
    status, _, err = run_iddpm("run", "train", "--param", "storage_root_uri=s3:/bucket")
    assert status == 1
    assert "s3:/bucket: is neither a path nor a whole address" in err


def test_a_folder_of_images_is_the_same_one_for_a_tuning_as_for_a_training(
    run_iddpm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "digits"  # by this bare name, the source would be the published data set
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "0.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.services.services.up", Mock())
    trained, tuned = Mock(), Mock(return_value=Mock(lines=[], folder=tmp_path))
    monkeypatch.setattr("pipelines.local.training.train_here", trained)
    monkeypatch.setattr("pipelines.local.tune.run_tuning", tuned)
    assert run_iddpm("train", "digits-hybrid-cosine", "--images", "digits")[0] == 0
    assert run_iddpm("tune", "digits-hybrid-cosine", "--images", "digits", "--search", "model.dropout=0..0.2")[0] == 0
    assert trained.call_args.args[0]["data_source"] == tuned.call_args.kwargs["source"] == str(folder)
    assert tuned.call_args.kwargs["resources"]["train"] == Resources()  # all cores, as of a training


def test_a_tuning_and_an_ablation_prepare_their_images_as_the_options_say(
    run_iddpm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.services.services.up", Mock(return_value=Mock(home=tmp_path)))
    monkeypatch.setattr("pipelines.local.ablate.estimate_time_left", Mock())
    tuned, ablated = Mock(return_value=Mock(lines=[], folder=tmp_path)), Mock(return_value=Mock(failed={}, folder=tmp_path))
    monkeypatch.setattr("pipelines.local.tune.run_tuning", tuned)
    monkeypatch.setattr("pipelines.local.ablate.run_ablation", ablated)
    said = ("--data-options", '{"background": "black", "num_test": 3}')
    assert run_iddpm("tune", "digits-hybrid-cosine", "--search", "model.dropout=0..0.2", *said)[0] == 0
    assert run_iddpm("ablate", "width", *said)[0] == 0
    assert tuned.call_args.kwargs["data_options"] == ablated.call_args.kwargs["data_options"] == said[1]
    prepared = preparation(said[1], "")
    assert (prepared["options"]["background"], prepared["source_options"]["num_test"]) == ("black", 3)
    assert preparation("", "")["source_options"] == {"labels": "auto", "num_test": 0}
    for command in (("tune", "digits-hybrid-cosine", "--search", "model.dropout=0..0.2"), ("ablate", "width")):
        status, _, error = run_iddpm(*command, "--data-options", '{"num_tests": 3}')
        assert status == 1
        assert error.startswith("error: data_options.num_tests: there is no 'num_tests'; did you mean 'num_test'?")
        assert "give --" in run_iddpm(*command, "--data-options", '{"sources": {"digits": "/data"}}')[2]


_TUNE = ("tune", "digits-hybrid-cosine", "--search", "model.dropout=0..0.2")
_ABLATE = ("ablate", "width")


@pytest.fixture
def resources_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_iddpm: Command) -> Callable[..., dict[str, Resources]]:
    """Run a command up to its work, and return the resources of each stage that it would work with."""
    trained, tuned, ablated = (
        Mock(),
        Mock(return_value=Mock(lines=[], folder=tmp_path)),
        Mock(return_value=Mock(failed={}, folder=tmp_path)),
    )
    monkeypatch.setattr("pipelines.services.services.up", Mock(return_value=Mock(home=tmp_path)))
    monkeypatch.setattr("pipelines.local.ablate.estimate_time_left", Mock())
    monkeypatch.setattr("pipelines.local.training.train_here", trained)
    monkeypatch.setattr("pipelines.local.tune.run_tuning", tuned)
    monkeypatch.setattr("pipelines.local.ablate.run_ablation", ablated)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)

    def given(*words: str) -> dict[str, Resources]:
        assert run_iddpm(*words)[::2] == (0, "")
        if words[0] != "train":
            found: dict[str, Resources] = {"tune": tuned, "ablate": ablated}[words[0]].call_args.kwargs["resources"]
            return found
        arguments = trained.call_args.args[0]
        return {stage: read_resources(arguments.get(f"{stage}_resources", "laptop"), stage=stage).work for stage in STAGES}

    return given


def test_a_tuning_and_an_ablation_take_every_resource_that_a_training_takes(resources_given: Callable[..., dict[str, Resources]]) -> None:
    changed = {
        "num_workers": 2,
        "min_workers": 1,
        "num_gpus_per_worker": 1,
        "microbatch_size": 8,
        "precision": "bf16",
        "compile": True,
        "gradient_checkpointing": True,
        "num_threads": 1,
        "cache_dir": "/scratch",
        "resident_data": True,
        "collective_timeout_seconds": 60,
    }
    assert changed.keys() == {field.name for field in dataclasses.fields(Resources)}
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changed.items()}
    words = [f"train.{name}={value}" for name, value in values.items()]
    words += ["data.num_workers=3", "evaluate=1xgpu", "evaluate.num_workers=4"]
    said = [part for word in words for part in ("--resources", word)]
    found = resources_given("train", "digits-hybrid-cosine", *said)
    assert (found["train"], found["data"].num_workers, found["evaluate"].num_workers) == (Resources.from_dict(changed), 3, 4)
    assert resources_given(*_TUNE, *said) == resources_given(*_ABLATE, *said) == found


def test_the_options_for_workers_and_gpus_are_fields_of_the_resources(resources_given: Callable[..., dict[str, Resources]]) -> None:
    both = Resources(num_workers=8, num_gpus_per_worker=1, precision="bf16")
    options = ("--num-workers", "8", "--gpu", "--resources", "train=laptop", "--resources", "train.precision=bf16")
    plain = Resources(num_workers=8, num_gpus_per_worker=1)
    assert resources_given(*_ABLATE, *options) == {"data": Resources(), "train": both, "evaluate": plain}
    assert resources_given(*_TUNE, *options) == {"data": Resources(), "train": both, "evaluate": Resources()}


@pytest.mark.parametrize("command", [_TUNE, _ABLATE], ids=["tune", "ablate"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--num-workers", "2", "--resources", "train.num_workers=2"), "--num-workers and --resources train.num_workers mean the same"),
        (("--gpu", "--resources", "train.num_gpus_per_worker=0"), "--gpu and --resources train.num_gpus_per_worker mean the same"),
        (("--resources", "train.num_threads=1", "--resources", "train.num_threads=2"), "--resources train.num_threads is given twice"),
        (("--resources", "trian.num_threads=1"), "has no stage 'trian'; did you mean 'train'?"),
        (("--resources", "train.num_thread=1"), "train_resources.num_thread: there is no 'num_thread'; did you mean 'num_threads'?"),
        (("--resources", "train.precision=fp16"), "train_resources.precision: Input should be 'fp32' or 'bf16'"),
        (("--resources", "evaluate.num_threads=1"), "evaluate_resources.num_threads is read by training alone"),
        (("--resources", "train=rayjob-2xcpu"), "train_resources: no cluster is known here"),
        (
            ("--resources", "train.ray_mode=address", "--resources", "train.ray_address=auto"),
            "train_resources.ray_mode address: this command works in processes of this machine; `iddpm run ",
        ),
    ],
)
def test_a_tuning_and_an_ablation_refuse_resources_in_one_line_before_anything_starts(
    tmp_path: Path, run_iddpm: Command, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr("pipelines.services.services.up", Mock(side_effect=AssertionError))
    status, _, error = run_iddpm(*command, *words)
    assert (status, error.count("\n")) == (1, 1)
    assert said in error


@pytest.mark.parametrize(
    ("present", "words", "said"),
    [
        (
            0,
            ("train", "digits-hybrid-cosine", "--resources", "train=1xgpu"),
            "train_resources asks for a GPU (num_gpus_per_worker is 1), and this machine shows none; leave GPUs out",
        ),
        (
            1,
            ("run", "train", "--resources", "train=8xgpu"),
            "train_resources asks for 8 GPUs, one for each worker (num_gpus_per_worker is 1), and this machine shows 1; ask for 1 at most",
        ),
        (0, ("run", "ablation", "--resources", "evaluate=8xgpu"), "evaluate_resources asks for a GPU ("),
        (0, (*_TUNE, "--gpu"), "train_resources asks for a GPU ("),
        (1, (*_ABLATE, "--gpu", "--num-workers", "2"), "train_resources asks for 2 GPUs"),
        (0, ("reproduce", "cifar10-table2", "--resources", "evaluate=1xgpu", "--yes"), "evaluate_resources asks for a GPU ("),
    ],
    ids=["train", "run train", "run ablation", "tune", "ablate", "reproduce"],
)
def test_gpus_that_this_machine_does_not_have_are_refused_before_anything_starts(
    run_iddpm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: int, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.services.services.up", Mock(side_effect=AssertionError("it starts")))
    monkeypatch.setattr("torch.cuda.device_count", lambda: present)
    monkeypatch.setattr("torch.cuda.is_available", lambda: present > 0)
    status, _, err = run_iddpm(*words)
    assert (status, err.count("\n")) == (1, 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_takes_the_gpus_that_there_are_and_those_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    elastic = '{"profile": "8xgpu", "min_workers": 1}'
    require_possible_here({"train_resources": elastic, "evaluate_resources": "8xgpu"})  # workers of evaluation take turns
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    require_possible_here({"train_resources": "rayjob-8xgpu", "data_resources": "2xcpu"})


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_trial_is_trained_and_measured_with_the_resources_of_its_stage(monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    trained, measured = Mock(return_value="s3://b/runs/1"), Mock()
    monkeypatch.setattr("components.ablations.steps.finished_record", lambda item: None)
    monkeypatch.setattr("components.ablations.steps.train_trial", lambda item, train: train("mlflow-run"))
    monkeypatch.setattr("components.ablations.steps.measure_trial", measured)
    monkeypatch.setattr("components.steps.train.train_run", trained)
    monkeypatch.setattr("pipelines.local.trial._log_stored", lambda job, experiment: contextlib.nullcontext())
    monkeypatch.setattr("pipelines.local.ablate.available_cores", lambda: 4)
    monkeypatch.setattr("training.distributed.ray_session.ray_session", lambda num_cpus: contextlib.nullcontext())
    alone = Mock(side_effect=lambda run, jobs, **_: ((job, run(job)) for job in jobs))
    monkeypatch.setattr("training.distributed.ray_session.parallel_tasks", alone)
    threads = Mock()
    monkeypatch.setattr("torch.set_num_threads", threads)
    item = {"label": "a", "ablation_uri": "s3://b/a", "experiment_preset": "digits-hybrid-cosine", "overrides": []}
    stages = {"train": Resources(precision="bf16", collective_timeout_seconds=60), "evaluate": Resources(num_workers=num_workers)}
    failed = _run_trials([{**item, "data_uri": "s3://b/d", "reference_uri": ""}], "s3://b", stages, 2, Mock(describe=lambda: ""))
    assert failed == {}
    assert alone.called == threads.called == (num_workers == 1)  # one that is measured by several processes has no process of its own
    share = 2 if num_workers == 1 else 0
    assert Resources(**trained.call_args.args[5]) == dataclasses.replace(stages["train"], num_threads=share)
    assert trained.call_args.kwargs["ray_address"] == (None if num_workers == 1 else "local")
    assert Resources(**measured.call_args.args[2]) == stages["evaluate"]


def test_cost_counts_a_microbatch_in_images_and_memory_in_bytes(run_iddpm: Command) -> None:
    (line,) = (line for line in run_iddpm("cost", "digits-hybrid-cosine")[1].splitlines() if line.startswith("memory in training"))
    assert re.search(r"largest microbatch bf16 [\d,]+ images, microbatch 64 images, training peak fp32 [\d.]+ MiB", line)


def test_cost_is_the_papers(run_iddpm: Command) -> None:
    found = json.loads(run_iddpm("cost", "imagenet64-hybrid-cosine", "--json")[1])
    assert found["parameters"] == 121_063_942
    assert round(found["forward_macs"] / 1e9, 2) == 39.74


# -- an experiment file of one's own -----------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of colour images in two classes, one of them with transparency."""
    random = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "images" / ("cats" if number % 2 else "dogs") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40 + number, 36, 4 if number == 0 else 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def test_init_writes_an_experiment_that_fits_the_images_and_says_how_to_train_it(run_iddpm: Command, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    (images / "cats" / "more.zip").write_text("")
    status, out, _ = run_iddpm("init", "--images", str(images), "--out", str(file), "--name", "pets")
    assert status == 0
    assert "1 file is not an image and is left out, like cats/more.zip\n" in out
    assert "12 images in 2 classes, 36 to 51 pixels, 3 channels\n" in out
    assert "1 of 12 have transparent pixels" in out
    assert f"  iddpm train {file} --images {images}\n" in out
    experiment = read_experiment_file(file)
    assert (experiment.data.name, experiment.data.image_size, experiment.data.image_channels, experiment.data.num_classes) == (
        "pets",
        32,
        3,
        2,
    )
    assert experiment.model.class_conditional
    status, _, err = run_iddpm("init", "--images", str(images), "--out", str(file))
    assert status == 1
    assert "exists already" in err


@pytest.mark.parametrize("name", ["digits", "shoot 12:30", "two\nlines"])
@pytest.mark.parametrize("how", ["{name}", "./{name}", "~/{name}", "file://{folder}/{quoted}"])
def test_init_and_training_look_at_the_folder_whatever_its_name(
    run_iddpm: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    images.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    word = how.format(name=name, folder=tmp_path, quoted=urllib.parse.quote(name))
    status, out, _ = run_iddpm("init", "--images", word, "--out", str(tmp_path / "mine.toml"))
    assert status == 0
    assert f"{word}: 12 images in 2 classes, " in out
    assert read_experiment_file(tmp_path / "mine.toml").data.num_classes == 2
    assert local._own_images(word) == [f"data_source={tmp_path / name}", 'data_options={"num_test": 1}']


def test_init_says_one_size_where_all_images_have_it(run_iddpm: Command, tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    for number in range(3):
        Image.new("L", (40, 40), number).save(tmp_path / "grey" / f"{number}.png")
    _, out, _ = run_iddpm("init", "--images", str(tmp_path / "grey"), "--out", str(tmp_path / "mine.toml"))
    assert "grey: 3 images, 40 pixels, 1 channel\n" in out


def test_init_says_once_which_image_takes_the_classes_from_all(run_iddpm: Command, images: Path, tmp_path: Path) -> None:
    (images / "cats" / "1.png").rename(images / "logo.png")
    status, out, _ = run_iddpm("init", "--images", str(images), "--out", str(tmp_path / "mine.toml"))
    assert status == 0
    assert out.count("logo.png is beside the folders and in none of them") == 1


def test_init_prints_the_command_that_skips_an_unreadable_image_whose_name_forges_no_line(
    run_iddpm: Command, images: Path, tmp_path: Path
) -> None:
    (images / "cats" / "0\nerror: all fine\x1b[31m.png").write_bytes(b"no picture")
    file = tmp_path / "mine.toml"
    status, out, _ = run_iddpm("init", "--images", str(images), "--out", str(file))
    assert status == 0
    assert "1 cannot be read, the first is cats/0\\nerror: all fine\\x1b[31m.png: is not an image" in out
    skip = 'data_options={"on_error": "skip"}'
    assert f"  iddpm train {file} --images {images} --param '{skip}'\n" in out
    assert local._own_images(str(images), [skip])[1:] == ['data_options={"on_error": "skip", "num_test": 1}']
    words = ("images32-hybrid-cosine", str(tmp_path / "data"), "--source", str(images), "--set", "data.name=images")
    status, _, err = run_iddpm("preprocess", *words, "--set", "data.num_classes=2", "--set", "model.class_conditional=true")
    assert (status, err.count("\n")) == (1, 1)
    assert "\x1b" not in err
    _, _, err = run_iddpm("preprocess", *words, "--set", "data.num_classes=2", "--on-error", "skip")
    assert "left out cats/0\\nerror: all fine\\x1b[31m.png: it is not an image" in err
    assert not [line for line in err.splitlines() if line.startswith("error")]


def test_a_refused_init_and_preview_make_no_folder(run_iddpm: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run_iddpm("init", "--images", str(tmp_path / "empty"), "--out", str(tmp_path / "new" / "my.toml"))[0] == 1
    assert run_iddpm("dataset", "preview", str(tmp_path / "empty"), str(tmp_path / "new" / "sheet.png"))[0] == 1
    assert not (tmp_path / "new").exists()


def test_a_number_of_errors_without_skipping_any_is_refused(run_iddpm: Command, tmp_path: Path) -> None:
    status, _, err = run_iddpm("preprocess", "digits-hybrid-cosine", str(tmp_path / "data"), "--max-errors", "7")
    assert (status, err) == (1, "error: --max-errors counts what --on-error skip leaves out; add it\n")
    status, _, err = run_iddpm("tune", "digits-hybrid-cosine", "--search", "model.dropout=0..0.2", "--data-options", '{"max_errors": 7}')
    assert (status, err) == (1, 'error: data_options.max_errors counts what "on_error": "skip" leaves out; add it\n')
    assert run_iddpm("preprocess", "digits-hybrid-cosine", str(tmp_path / "data"), "--max-errors", "7", "--on-error", "skip")[0] == 0


def test_init_refuses_test_images_that_training_would_refuse(run_iddpm: Command, images: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "test").mkdir(parents=True)
    images.rename(tmp_path / "data" / "train")
    Image.new("RGB", (40, 40)).save(tmp_path / "data" / "test" / "0.png")
    status, _, err = run_iddpm("init", "--images", str(tmp_path / "data"), "--out", str(tmp_path / "mine.toml"))
    assert status == 1
    assert f"{tmp_path}/data/test: 1 of 1 test images are in no class folder, like 0.png, but the training images are" in err


def test_init_for_a_gpu_writes_the_command_that_trains_on_it_and_takes_the_folders_name(
    run_iddpm: Command, images: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    status, out, _ = run_iddpm("init", "--images", str(images), "--out", str(file), "--card", "h100")
    assert status == 0
    assert f"  iddpm train {file} --images {images} --resources train=1xgpu\n" in out
    assert read_experiment_file(file).data.name == "images"


def test_an_experiment_file_stands_wherever_a_preset_does(run_iddpm: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "digits-hybrid-cosine"\nname = "mine"\n[optim]\nnum_steps = 40\n')
    assert json.loads(run_iddpm("show", str(file))[1])["optim"]["num_steps"] == 40
    assert "num_steps = 40" in run_iddpm("show", str(file), "--toml")[1]
    assert json.loads(run_iddpm("show", str(file), "--json")[1])["experiment"]["name"] == "mine"
    costs = [json.loads(run_iddpm("cost", name, "--card", "CPU", "--json")[1]) for name in (str(file), "digits-hybrid-cosine")]
    assert costs[0]["phases"]["training"]["flops"] == costs[1]["phases"]["training"]["flops"] * 40 / 1600


def test_init_names_the_image_that_makes_all_others_small(run_iddpm: Command, images: Path, tmp_path: Path) -> None:
    icon = Image.open(images / "cats" / "1.png").convert("RGB")
    icon.resize((20, 60)).save(images / "cats" / "icon.png")
    status, out, _ = run_iddpm("init", "--images", str(images), "--out", str(tmp_path / "mine.toml"))
    assert status == 0
    message = "1 of 13 are smaller than 32 pixels, the smallest is cats/icon.png: without them, images could be of 32 pixels and not 16\n"
    assert message in out
    icon.resize((60, 3)).save(images / "dogs" / "line.png")
    status, _, err = run_iddpm("init", "--images", str(images), "--out", str(tmp_path / "mine2.toml"))
    assert status == 1
    assert "2 of 14 are smaller than 32 pixels, the smallest is dogs/line.png with 3; images have at least 8" in err


def test_init_refuses_a_file_that_cannot_be_written_before_it_looks_at_an_image(
    run_iddpm: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    monkeypatch.setattr("training.data.inspection.folder.open_image", looked.append)
    (tmp_path / "file").write_text("")
    status, out, err = run_iddpm("init", "--images", str(images), "--out", str(tmp_path / "file" / "my.toml"))
    assert (status, out, looked) == (1, "", [])
    assert "a file and a directory can't have one name" in err


def test_a_demo_of_own_images_writes_its_experiment_once_and_keeps_what_the_user_changed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDDPM_HOME", str(tmp_path / "home"))
    file = local._demo_experiment(str(images))
    experiment = read_experiment_file(file)
    assert file.stem == experiment.name == experiment.data.name
    assert experiment.data.num_classes == 2
    assert experiment.evaluation.rescore_best == 1, "a demo does not compare checkpoints for as long as it trains"
    file.write_text(file.read_text() + "\n# mine\n")
    assert local._demo_experiment(str(images)) == file
    assert file.read_text().endswith("# mine\n")
    (tmp_path / "elsewhere").mkdir()
    other = images.rename(tmp_path / "elsewhere" / images.name)
    assert local._demo_experiment(str(other)) != file


def test_the_experiment_of_a_file_is_what_the_pipeline_trains(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'base = "images32-hybrid-cosine"\nname = "mine"\nseed = 3\n[data]\nname = "mine"\n'
        '[optim]\nema_decays = [0.9, 0.99]\n[evaluation.sampling]\nmethod = "ddim"\nspacing = "ddim50"\n'
    )
    arguments = arguments_of(compiled_pipeline("train"), preset="", overrides=["seed=4"], words=[f"experiment_file={file}"])
    trained = resolve_experiment(file_text=arguments["experiment_file"], overrides=arguments["experiment_overrides"])
    assert trained == read_experiment_file(file).override(["seed=4"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "mine.toml: cannot be read"),
        ("\n", "mine.toml: the experiment file is empty"),
        ("base = ", "is not TOML"),
        ('base = "images33-hybrid-cosine"\n', "there is no preset 'images33-hybrid-cosine'"),
        ('base = "images32-hybrid-cosine"\n[optim]\nnum_step = 5\n', "optim.num_step"),
    ],
)
def test_train_refuses_a_file_that_is_no_experiment_before_anything_starts(
    run_iddpm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("mine.toml").write_text(text)
    status, _, err = run_iddpm("train", "mine.toml")
    assert (status, err.count("\n")) == (1, 1)
    assert said in err
    assert not Path(".iddpm").exists()


@pytest.mark.parametrize(
    ("named", "local"),
    [
        ({}, {"AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI"}),
        ({"MLFLOW_TRACKING_URI": "http://mlflow.example.com"}, {"AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY"}),
        ({"AWS_ENDPOINT_URL": "http://s3.example.com"}, {"MLFLOW_TRACKING_URI"}),
        ({"AWS_ENDPOINT_URL": "http://s3.example.com", "MLFLOW_TRACKING_URI": "http://mlflow.example.com"}, set()),
        ({"AWS_ACCESS_KEY_ID": "key", "MLFLOW_TRACKING_URI": "http://mlflow.example.com"}, set()),
    ],
)
def test_the_local_services_stand_in_for_each_one_that_the_environment_does_not_name(
    named: dict[str, str], local: set[str], services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in services.env:
        monkeypatch.delenv(name)
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IDDPM_HOME", str(services.home))
    connect()
    for name in ("AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI"):
        assert os.environ.get(name) == (services.env[name] if name in local else named.get(name))


def test_a_directory_of_another_user_hinders_only_who_needs_its_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("IDDPM_HOME", str(tmp_path))
    monkeypatch.setattr(Path, "read_text", refuse)
    connect()
    with pytest.raises(ServicesError, match=r"ports\.json: Permission denied; set IDDPM_HOME to a directory of your own"):
        current()


def test_a_letter_that_the_terminal_lacks_ends_no_table(run_iddpm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pod.yaml").write_text("kind: Pod\nspec: {containers: [{name: a, image: münchen/a}, {name: b, image: other/b}]}", "utf-8")
    shown = io.BytesIO()
    terminal = io.TextIOWrapper(shown, encoding="ascii", write_through=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        status, _, err = run_iddpm("images", str(tmp_path / "pod.yaml"))
    assert (status, shown.getvalue(), err) == (0, b"m?nchen/a\nother/b\n", "")


@pytest.mark.parametrize("words", ["verify", "gc", "sample", "dataset info", "dataset verify", "dataset preview", "import-checkpoint"])
def test_an_empty_argument_is_refused_with_what_it_takes(run_iddpm: Command, words: str) -> None:
    target = ("run",) if words == "import-checkpoint" else ()
    status, out, err = run_iddpm(*words.split(), "", *target)
    assert (status, out) == (1, "")
    assert re.match(r"error: [A-Z]+ is empty; it takes: .*([Dd]irectory|folder)", err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("submit", "nightly-fid", "--no-wait", "--timeout", "5m"), "but this command does not wait: leave out --no-wait"),
        (("cancel", "a-run", "--timeout", "5m"), "--timeout 5m is the longest time to wait, but this command does not wait: add --wait"),
        (("runs", "--namespace", "team-a"), "the address of Kubeflow Pipelines is missing"),
        (("runs", "--kfp-namespace", "team-a"), "the address of Kubeflow Pipelines is missing"),
        (("runs", "--json", "--price-per-hour", "2"), "--price-per-hour goes with the table"),
        (("ablate", "width", "--card", "H100"), "--card and --price-per-hour are of --plan"),
        (("ablate", "width", "--price-per-hour", "2"), "--card and --price-per-hour are of --plan"),
        (("compare", "one"), "one model has nothing to be compared with"),
        (("memorisation", "one", "--samples", "a.npz", "--seed", "3"), "--seed says how to draw samples, and --samples gives them"),
        (("evaluate", "one", "--no-likelihood", "--likelihood-steps", "5"), "--likelihood-steps says how to compute bits/dim, and --no-"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(run_iddpm: Command, words: tuple[str, ...], said: str) -> None:
    status, out, err = run_iddpm(*words)
    assert (status, out) == (1, "")
    assert said in err
