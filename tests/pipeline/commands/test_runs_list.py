"""`iddpm runs` and `iddpm logs` of trainings in a real MLflow and a real S3, with and without a KFP."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable

import pytest
from fake_kfp import FakeKfp

from components.launch.logs import pipeline_directory
from components.steps.runs import note_attempt
from pipelines.cli.options import table
from pipelines.cli.runs import progress
from pipelines.cli.runs.progress import training_lines, watch
from pipelines.client.errors import KfpError
from pipelines.client.stored_logs import find_directories, show_stored_logs
from training import storage
from training.config.errors import UserError
from training.tracking import runs
from training.tracking.runs import ERROR_TAG, TrackedRun, open_run
from training.tracking.trainings import LatestTrainings

Command = Callable[..., "tuple[int, str, str]"]
pytestmark = pytest.mark.slow


@pytest.fixture
def trainings(bucket_uri: str) -> Callable[..., tuple[str, TrackedRun]]:
    """Opens a training in MLflow: 1,600 updates of 32 images, by two workers at 64 images a second."""

    def start(name: str, step: int, *, pipeline_run_id: str = "", parent: str = "") -> tuple[str, TrackedRun]:
        key = f"{name}-{uuid.uuid4().hex[:10]}"
        tags = {"iddpm.run_uri": f"{bucket_uri}/runs/{key}", "kfp.pipeline_run_id": pipeline_run_id, "iddpm.num_workers": "2"}
        params = {"optim": {"num_steps": 1600, "global_batch_size": 32}}
        run = open_run(run_key=key, experiment_name="runs", run_name=key, tags=tags, params=params, parent_run_id=parent)
        for at, score in ((200, 9.0), (400, 3.0), (600, 4.0)):
            if at <= step:
                run.log_metrics({"score/best": score}, at)
        run.log_metrics({"train/images_per_second": 64.0, "train/loss": 0.1, "system/gpu_0_utilization_percentage": 80.0}, step)
        assert run.flush()
        return key, run

    return start


def test_a_look_has_progress_rate_time_left_best_score_and_cost_of_running_and_ended_trainings(trainings, run_iddpm: Command) -> None:
    running, _ = trainings("running", 600)
    failed, lost = trainings("failed", 200)
    lost.set_tags({ERROR_TAG: "train: OOMKilled"})
    lost.finish("FAILED")
    sweep = open_run(run_key="sweep/a", experiment_name="runs", run_name="a", tags={"iddpm.trial": "cosine"}, params={})
    trial, done = trainings("trial", 1600, parent=sweep.run_id)
    sweep.set_tags({"iddpm.run_uri": f"s3://somewhere/{trial}"})  # as a trial that has finished names its training
    done.finish("FINISHED")

    found = {each.key: each for each in LatestTrainings().read(3)}
    assert list(found) == [trial, failed, running]
    one = found[running]
    assert (one.state, one.step, one.num_steps, one.images_per_second) == ("running", 600, 1600, 64.0)
    assert (one.best_score, one.best_step, one.gpu_share) == (3.0, 400, 0.8)
    # An update is 32 images, half a second; two cards.
    assert (one.seconds_left, one.card_hours, one.card_hours_in_all) == (500.0, 600 * 0.5 * 2 / 3600, 1600 * 0.5 * 2 / 3600)
    assert one.silent_seconds is not None
    assert one.silent_seconds < 60
    assert (found[failed].state, found[failed].error, found[failed].seconds_left) == ("failed", "train: OOMKilled", None)
    assert (found[trial].trial, found[trial].card_hours_in_all) == ("cosine", found[trial].card_hours)

    status, out, err = run_iddpm("runs", "--limit", "3", "--price-per-hour", "3.6")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["training", "state", "updates", "images/s", "best", "score", "cost", "GPU"]
    assert lines[3].split() == [*f"{running} 8 min 20 s left 600/1,600 64 3 @ 400 0.6 of 1.6 80%".split()]
    assert max(map(len, lines)) <= 100
    told = json.loads(run_iddpm("runs", "--limit", "3", "--json")[1])
    assert [each["key"] for each in told] == [trial, failed, running]


def test_a_clusters_runs_have_their_trainings_below_them(trainings, server: FakeKfp, iddpm: Command) -> None:
    first, second = (server.add_run("RUNNING", pipeline_spec={"pipelineInfo": {"name": "iddpm-train"}}) for _ in range(2))
    key, _ = trainings("on-a-cluster", 600, pipeline_run_id=first)
    lines = iddpm("runs")[1].splitlines()
    names = [line.split()[0] for line in lines]
    assert names[0] == "training"
    assert names[names.index(first) + 1] == key
    assert len(names) == 4
    by_run = {each["run_id"]: each["trainings"] for each in json.loads(iddpm("runs", "--json")[1])}
    assert by_run[second] == []
    assert [each["key"] for each in by_run[first]] == [key]
    assert "--watch and --json exclude each other" in iddpm("runs", "--watch", "--json")[2]


def test_all_trainings_of_a_sweep_are_listed_and_those_of_an_old_run_beside_many_newer_ones(
    trainings, server: FakeKfp, iddpm: Command
) -> None:
    old, sweep = (server.add_run("RUNNING", pipeline_spec={"pipelineInfo": {"name": "iddpm-ablation"}}) for _ in range(2))
    first, _ = trainings("retried", 200, pipeline_run_id=old)
    keys = [trainings("trial", 200, pipeline_run_id=sweep)[0] for _ in range(12)]
    by_run = {each["run_id"]: [run["key"] for run in each["trainings"]] for each in json.loads(iddpm("runs", "--limit", "2", "--json")[1])}
    assert by_run[sweep] == keys[::-1]
    assert first in by_run[old]  # another test may have used the same id in this MLflow


def test_a_watched_list_goes_on_after_an_error_but_not_at_the_first_look(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def away() -> list[str]:
        raise UserError("MLflow does not answer")

    def kfp_away() -> list[str]:
        raise KfpError("KFP failed (503)")

    def leave() -> list[str]:
        raise KeyboardInterrupt

    with pytest.raises(UserError, match="does not answer"):
        watch(away)
    monkeypatch.setattr(progress, "_WATCH_SECONDS", 0.0)
    looks = iter([lambda: ["one"], away, kfp_away, lambda: ["two"], leave])
    watch(lambda: next(looks)())
    assert [line for line in capsys.readouterr().out.splitlines() if line and ":" not in line[:3]] == [
        "one",
        "error: MLflow does not answer; trying again",
        "error: KFP failed (503); trying again",
        "two",
    ]


def test_a_training_that_was_done_again_is_found_by_its_key_and_by_the_digits_of_both(trainings, bucket_uri: str) -> None:
    key, _ = trainings("again", 200)
    assert runs.find_training(key[-10:]).tags["iddpm.run_key"] == key
    uri = f"{bucket_uri}/runs/{key}-2"
    open_run(run_key=f"{key}-2", experiment_name="runs", run_name=key, tags={"iddpm.run_uri": uri}, params={})
    assert runs.is_run_key(f"{key}-2")
    assert runs.is_run_key(f"{key[-10:]}-2")
    assert not runs.is_run_key(str(uuid.uuid4()))
    assert not runs.is_run_key(uuid.uuid4().hex)
    for word, found in ((key, key), (f"{key}-2", f"{key}-2"), (key[-10:], f"{key}-2"), (f"{key[-10:]}-2", f"{key}-2")):
        assert runs.find_training(word).tags["iddpm.run_key"] == found
    (training,) = LatestTrainings().read(1)
    long = dataclasses.replace(training, key=f"a-long-name-of-a-training-with-many-words-{key}-2", step=100, best_score=3.0, best_step=100)
    assert f"-{key[-10:]}-2 " in training_lines([long], indent=30)[1]


def test_a_watched_list_in_a_pipe_has_no_control_characters_and_ends_with_ctrl_c(trainings) -> None:
    key, run = trainings("watched", 600)
    watching = subprocess.Popen([sys.executable, "-m", "pipelines.cli.main", "runs", "--watch"], stdout=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    seen = ""
    while seen.count(key) < 2:
        seen += (line := watching.stdout.readline())
        assert line, seen
        if key in line and seen.count(key) == 1:
            run.log_metrics({"train/loss": 0.1}, 700)
            assert run.flush()
    watching.send_signal(signal.SIGINT)
    rest, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert "600/1,600" in seen
    assert "700/1,600" in seen
    assert "\x1b" not in seen + rest


def test_logs_are_found_by_key_digits_directory_and_pipelines_run_and_followed_while_the_training_runs(
    trainings, run_iddpm: Command, bucket_uri: str
) -> None:
    key, run = trainings("logged", 600, pipeline_run_id=(pipeline := uuid.uuid4().hex[:8]))
    uri = f"{bucket_uri}/runs/{key}"

    def write(name: str, lines: int) -> None:
        storage.write_bytes(f"{uri}/logs/{name}.gz", gzip.compress("".join(f"{name} {n}\n" for n in range(lines)).encode()))

    write("train/20261126T190000-step.000", 2)
    write("train/20261126T190001-rank-0.out.000", 1)
    write("train/20261126T190001-rank-1.out.000", 1)
    write("evaluate/20261126T200000-step.000", 1)
    expected = [f"train/20261126T190000-step.000 {n}" for n in range(2)] + ["evaluate/20261126T200000-step.000 0"]
    for word in (key, key[-10:], uri, pipeline):
        status, out, err = run_iddpm("logs", word)
        assert (status, out.splitlines()) == (0, expected)
        assert "--- train, step, began 2026-11-26 19:00:00 UTC" in err
    assert run_iddpm("logs", key, "--rank", "1")[1] == "train/20261126T190001-rank-1.out.000 0\n"
    assert "has no log of rank 2; it has those of ranks 0, 1" in run_iddpm("logs", key, "--rank", "2")[2]
    assert "has no log of step 'trian'; did you mean 'train'?" in run_iddpm("logs", key, "trian")[2]
    assert "MLflow knows no training 0123456789" in run_iddpm("logs", "0123456789")[2]

    shown: list[str] = []

    def show(line: str) -> None:
        shown.append(line)
        if len(shown) == 2:  # it goes on, and a later part is begun
            write("train/20261126T190000-step.000", 3)
            write("train/20261126T190000-step.001", 1)
        if len(shown) == 4:
            assert run.finish("FINISHED")

    show_stored_logs([uri], "train", None, follow=True, out=show, err=lambda line: None, pause_seconds=0.1)
    assert shown == [f"train/20261126T190000-step.000 {n}" for n in range(3)] + ["train/20261126T190000-step.001 0"]


def test_the_log_of_the_preparation_is_found_with_the_data_set_of_a_run_by_each_name_of_the_run(
    trainings, run_iddpm: Command, bucket_uri: str
) -> None:
    pipeline = uuid.uuid4().hex[:8]
    first, second = (trainings("logged", 600, pipeline_run_id=pipeline)[0] for _ in range(2))  # two trainings on the same images
    data_uri = f"{bucket_uri}/data/digits"
    storage.write_bytes(f"{data_uri}/logs/preprocess/20261126T180000-step-0a1b.000.gz", gzip.compress(b"prepared\n"))
    for key in (first, second):
        storage.write_bytes(f"{bucket_uri}/runs/{key}/logs/train/20261126T190000-step.000.gz", gzip.compress(b"trained\n"))
        note_attempt(f"{bucket_uri}/runs/{key}", data_uri)
    for word in (first, first[-10:], f"{bucket_uri}/runs/{first}"):
        assert run_iddpm("logs", word)[:2] == (0, "prepared\ntrained\n")
        assert run_iddpm("logs", word, "preprocess")[:2] == (0, "prepared\n")
    assert run_iddpm("logs", pipeline)[:2] == (0, "prepared\ntrained\ntrained\n")
    status, out, err = run_iddpm("logs", f"{data_uri}/")
    assert (status, out) == (0, "prepared\n")
    assert "--- preprocess, step-0a1b, began 2026-11-26 18:00:00 UTC" in err
    message = "if no training began, name the directory of the pipeline's run or of the data set, like s3://BUCKET/pipelines/ID"
    assert message in run_iddpm("logs", "no-such-run")[2]


def test_the_logs_of_a_pipelines_first_and_last_step_stand_around_those_of_its_training_and_alone_if_none_began(
    trainings, run_iddpm: Command, bucket_uri: str
) -> None:
    pipeline = uuid.uuid4().hex[:8]
    key = trainings("logged", 600, pipeline_run_id=pipeline)[0]

    def write(directory: str, step: str, began: str) -> None:
        storage.write_bytes(f"{directory}/logs/{step}/20261126T{began}-step.000.gz", gzip.compress(f"{step}\n".encode()))

    write(f"{bucket_uri}/runs/{key}", "train", "190000")
    for step, began in (("settings", "180000"), ("close-run", "200000")):
        write(pipeline_directory(bucket_uri, pipeline), step, began)
    for word in (key, pipeline):
        assert run_iddpm("logs", word)[:2] == (0, "settings\ntrain\nclose-run\n")
        assert run_iddpm("logs", word, "settings")[:2] == (0, "settings\n")
        assert "did you mean 'settings'?" in run_iddpm("logs", word, "setings")[2]
    assert run_iddpm("logs", pipeline_directory(bucket_uri, pipeline))[:2] == (0, "settings\nclose-run\n")


def test_the_logs_of_a_pipelines_run_without_a_training_are_found_below_the_root_that_mlflow_has_or_the_default(
    services, run_iddpm: Command, bucket_uri: str
) -> None:
    def write(directory: str, step: str) -> str:
        storage.write_bytes(f"{directory}/logs/{step}/20261126T180000-step.000.gz", gzip.compress(f"{step}\n".encode()))
        return directory

    for tag in ("iddpm.ablation_uri", "iddpm.tuning_uri"):
        pipeline, key = uuid.uuid4().hex[:8], uuid.uuid4().hex[:8]
        sweep_uri = f"{bucket_uri}/sweeps/{key}"
        open_run(
            run_key=key, experiment_name="runs", run_name=key, tags={tag: sweep_uri, "kfp.pipeline_run_id": pipeline}, params={}
        ).finish("FAILED")
        own = write(pipeline_directory(bucket_uri, pipeline), "plan")
        assert find_directories(pipeline, by_pipeline=True) == [own]  # the sweep's has no log yet
        write(sweep_uri, "report")
        assert run_iddpm("logs", pipeline)[:2] == (0, "plan\nreport\n")

    for root in ("s3://bucket-that-was-deleted", bucket_uri):
        key = uuid.uuid4().hex[:8]
        tags = {"iddpm.run_uri": f"{root}/runs/{key}"}
        open_run(run_key=key, experiment_name="runs", run_name=key, tags=tags, params={}).finish("FINISHED")
    for root in (services.bucket_uri, bucket_uri):  # the default, and that of some other run
        compared = uuid.uuid4().hex[:8]  # MLflow has no run of it
        write(pipeline_directory(root, compared), "compare-models")
        status, out, err = run_iddpm("logs", compared, "--follow")
        assert (status, out) == (0, "compare-models\n")
        assert "MLflow shows nothing of it as running" in err
    assert "bucket-that-was-deleted" in run_iddpm("logs", "no-such-run")[2]


def test_a_table_is_never_wider_than_100_characters_and_keeps_the_digits(trainings) -> None:
    key, _ = trainings("lsun-bedroom-256-hybrid-cosine-with-a-long-name", 600)
    (found,) = LatestTrainings().read(1)
    lines = training_lines([found], indent=2)
    assert max(map(len, lines)) <= 100
    assert key[-10:] in lines[1]
    assert found.key == key


def test_wide_letters_do_not_move_the_columns() -> None:
    assert table([("木の絵", "a"), ("tree", "b")]) == ["木の絵  a", "tree    b"]


def test_the_trials_of_a_sweep_are_told_apart_by_their_last_digit(trainings) -> None:
    _, _ = trainings("digits-tiny-hybrid-cosine", 600)
    (found,) = LatestTrainings().read(1)
    grid = itertools.product(("true", "false"), (0.001, 0.01), (0, 1))
    labels = [f"stop_gradient={stop} vlb_weight={weight} seed={seed}" for stop, weight, seed in grid]
    for given in (["vlb_weight=0.001", "vlb_weight=0.01"], labels):
        lines = training_lines([dataclasses.replace(found, trial=label, best_score=40.6, best_step=200) for label in given], indent=2)
        assert [label in line for label, line in zip(given, lines[1:], strict=True)] == [True] * len(given)


def test_trials_are_listed_by_what_tells_them_apart(trainings) -> None:
    _, _ = trainings("digits-tiny-hybrid-cosine", 600)
    (found,) = LatestTrainings().read(1)
    fields = "data=digits num_timesteps=400 schedule={} objective={} stop_gradient={} seed=0"
    labels = [fields.format(*values) for values in (("cosine", "simple", True), ("linear", "hybrid", True), ("cosine", "vlb", False))]
    lines = training_lines([dataclasses.replace(found, trial=label) for label in labels])
    shown = ["cosine simple stop_gradient=True", "linear hybrid stop_gradient=True", "cosine vlb stop_gradient=False"]
    assert [words in line for words, line in zip(shown, lines[1:], strict=True)] == [True] * 3
    assert "digits num" not in "".join(lines)
    assert all(found.key[-10:] in line for line in lines[1:])


@pytest.mark.parametrize(
    ("step", "total", "shown"),
    [(0, 1_000_000, "0/1.00M"), (310, 1_000_000, "310/1.00M"), (12_345, 1_000_000, "12k/1.00M"), (250_000, 1_000_000, "0.25M/1.00M")],
)
def test_the_first_updates_of_a_long_training_are_not_shown_as_none(trainings, step: int, total: int, shown: str) -> None:
    trainings("long", 600)
    (found,) = LatestTrainings().read(1)
    assert f" {shown} " in training_lines([dataclasses.replace(found, step=step, num_steps=total)])[1]
