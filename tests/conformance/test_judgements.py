"""The judgements of `make conformance`, on recordings of a real cluster: what went well is proven, what went wrong is refuted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conformance import run
from conformance.record import Record, metadata_of

RECORDINGS = Path(__file__).parents[1] / "recordings"
UNDISTURBED = [
    ("doctor_before", "doctor_before", 1),
    ("doctor_after", "doctor_after", 2),
    ("train_local", "train-local-succeeded", 3),
    ("train_local", "train_local", 5),
    ("train_rayjob", "train-rayjob-succeeded", 6),
    ("train_rayjob", "train_rayjob", 8),
    ("nightly", "nightly", 6),
    ("bad_source", "bad-source-failed", 2),
    ("bad_source", "bad_source", 4),
    ("pod_refused", "pod_refused", 6),
    ("cancel", "rayjob-cancelled", 3),
    ("cancel", "cancel", 7),
    ("pod_deleted_twice", "pod_deleted_twice", 6),
    ("out_of_memory", "out_of_memory", 4),
    ("container_killed", "container_killed", 6),
    ("sweep", "ablation-of-two-trials-succeeded", 1),
    ("pod_drained", "pod_drained", 7),
    ("submitter_killed", "submitter_killed", 3),
    ("ray_head_killed", "ray_head_killed", 4),
    ("deadline", "deadline", 5),
    ("submitted_twice", "submitted_twice", 4),
    ("trained_twice", "trained_twice", 6),
    ("ray_worker_killed", "ray_worker_killed", 5),
    ("s3_away", "s3_away", 2),
    ("webhook", "webhook", 3),
    ("hung", "hung", 4),
    ("retry", "retry", 6),
    ("retry_button", "retry_button", 4),
    ("logs_kept", "logs_kept", 5),
    ("mlflow_away", "mlflow_away", 4),
    ("sweep", "sweep", 6),
    ("runs_shown", "runs_shown", 8),
    ("tune", "tune", 7),
    ("compare", "compare", 6),
    ("model_leaves", "model_leaves", 8),
    ("kueue", "kueue", 6),
    ("kueue_preempted", "kueue_preempted", 3),
    ("retry_from", "retry_from", 8),
    ("garbage", "garbage", 10),
    ("told_again", "told_again", 3),
    ("rayjob_options", "rayjob_options", 7),
]
REFUTED = [
    (
        "rayjob_options",
        "submitted_twice",
        "the RayJob and all its pods have the labels and annotations",
        "iddpm-conformance-67b42d3cf2",
    ),
    ("rayjob_options", "submitted_twice", "workers have the affinity and the runtime class", "(None, None)"),
    ("train_local", "plugin-env-collision-then-cancelled", "every step succeeds", "preprocess"),
    ("pod_deleted_twice", "pod_deleted_twice-second-seen-as-failed", "the run succeeds", "executor(1): main: Error (exit code 143)"),
    ("submitted_twice", "submitted_twice-job-deleted-when-done", "the run succeeds", "executor(0): main: Error (exit code 1)"),
    ("pod_deleted_twice", "worker-killed-then-step-pod-deleted", "no try is ended by the first try's clock", "Max duration limit exceeded"),
    ("ray_worker_killed", "worker-killed-then-step-pod-deleted", "the run succeeds", "exit code 143"),
    ("ray_head_killed", "ray-head-killed", "the run succeeds", "train(0).executor(0): main: Error (exit code 1)"),
    ("deadline", "ray_head_killed", "its log names the deadline", "sub-process exited"),
    (
        "container_killed",
        "pod_deleted_twice-second-seen-as-failed",
        "its container ends with exit code 137",
        "main: Error (exit code 143)",
    ),
    ("container_killed", "pod_deleted_twice", "iddpm submit says why", "exit code 0"),
    ("submitter_killed", "submitter-pod-lost", "the run succeeds", "train(0).executor(0): main: Error (exit code 1)"),
    ("mlflow_away", "mlflow-away", "no step fails for it", "evaluate(0).executor(0)"),
    ("train_rayjob", "rayjob-cancelled", "the RayJob succeeds", "RUNNING"),
    ("cancel", "train-rayjob-succeeded", "its Workflow is told to end", "activeDeadlineSeconds"),
    ("bad_source", "train-local-succeeded", "the run fails", "Succeeded"),
    ("pod_refused", "train-local-succeeded", "train is tried five times, as one step", "1 tries"),
    ("nightly", "nightly-succeeded", "the check fails", "no Workflow"),
    ("retry_button", "bad_source", "the same run goes on", "1 Workflows: ['Running'"),
]


@pytest.mark.parametrize("name", run.SCENARIOS)
def test_every_scenario_says_in_one_sentence_what_it_proves(name: str) -> None:
    sentence, _, _ = run.scenario(name)
    assert sentence.endswith(".")
    assert ". " not in sentence


def test_every_module_of_the_folder_is_a_scenario_that_runs() -> None:
    assert {path.stem for path in Path(run.__file__).with_name("scenarios").glob("*.py")} == set(run.SCENARIOS)


@pytest.mark.parametrize(("name", "recording", "proven"), UNDISTURBED)
def test_what_went_well_is_proven_as_far_as_it_was_recorded(name: str, recording: str, proven: int) -> None:
    claims = run.scenario(name)[2](Record.load(RECORDINGS, recording))
    assert [claim for claim in claims if claim.holds is False] == []
    assert sum(1 for claim in claims if claim.holds) == proven


@pytest.mark.parametrize(("name", "recording", "text", "seen"), REFUTED)
def test_what_went_wrong_is_refuted_with_what_was_seen(name: str, recording: str, text: str, seen: str) -> None:
    claims = {claim.text: claim for claim in run.scenario(name)[2](Record.load(RECORDINGS, recording))}
    assert claims[text].holds is False
    assert seen in claims[text].seen


def test_a_hung_training_of_another_session_is_no_second_message() -> None:
    record = Record.load(RECORDINGS, "hung")
    judge = run.scenario("hung")[2]
    (line,) = [line for line in record.texts["webhook"].splitlines() if " signed {" in line]
    run_id = json.loads(line[line.index("{") :])["run_id"]
    other = line.replace(run_id, "another-run")
    record.texts["webhook"] = f"{other}\n{line}"
    assert all(claim.holds for claim in judge(record))
    record.texts["webhook"] = f"{line}\n{line}"
    assert [claim.text for claim in judge(record) if claim.holds is False] == ["it is told once that the training makes no progress"]


def test_a_worker_that_was_killed_is_seen_to_be_replaced() -> None:
    assert Record.load(RECORDINGS, "worker-killed-then-step-pod-deleted").replaced("ray-worker")
    assert not Record.load(RECORDINGS, "train-rayjob-succeeded").replaced("ray-worker")


def test_a_claim_about_what_was_not_recorded_is_not_proven() -> None:
    record = Record.load(RECORDINGS, "train-local-succeeded")
    assert [claim.holds for claim in run.scenario("train_local")[2](record)][-2:] == [None, None]
    record.texts["submit"] = "the run succeeded in 6 min\nexit code 0"
    record.mlflow = [{"info": {"status": "FINISHED"}}]
    assert all(claim.holds for claim in run.scenario("train_local")[2](record))


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = Record.load(RECORDINGS, "train-rayjob-succeeded")
    record.texts, record.mlflow = {"submit": "exit code 0"}, []
    record.save(tmp_path)
    assert Record.load(tmp_path, "train-rayjob-succeeded") == record
    assert metadata_of(next(iter(record.rayjobs.values()))[0])["name"] in record.rayjobs


def test_the_table_names_the_reason_of_each_red_row() -> None:
    rows = [
        run.Row(name="train_local", sentence="It trains.", result=run.GREEN, seconds=61.0),
        run.Row(name="cancel", sentence="It ends.", result=run.RED, seconds=62.0, reasons=("a | b: no.",)),
    ]
    assert run.table(rows, "About.").splitlines()[2:] == [
        "| scenario | proven | took | result |",
        "|---|---|---|---|",
        "| train local | It trains. | 1 min 01 s | proven |",
        "| cancel | It ends. | 1 min 02 s | **RED**: a / b: no. |",
    ]
