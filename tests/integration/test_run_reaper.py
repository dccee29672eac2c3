"""MLflow runs that outlived the run of a pipeline: a real MLflow, and recorded Workflows behind a small Kubernetes API."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_kubernetes
import pytest
from counting_proxy import counting
from fake_kubernetes import FakeKubernetes
from recorded_workflows import recorded, workflow_states
from webhook_receiver import receive

from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.workflows import attempts
from components.reaper import __main__ as reaper
from components.reaper.messages import HUNG_VARIABLE, tell_webhook
from components.reaper.mlflow_runs import WORKFLOW_TAG, close_finished_runs, send_what_mlflow_lacks
from components.steps.mlflow_sync import leave_mark, shown_as_running, update_mlflow
from components.steps.runs import note_attempt
from components.steps.webhook import URL_VARIABLE
from evaluation.records.result import EvaluationResult
from evaluation.tuning.record import TuningTrial, write_record
from training import storage
from training.config.errors import UserError
from training.config.presets import preset
from training.tracking.client import connect, tracking_uri
from training.tracking.references import ABLATION_URI_TAG, TUNING_URI_TAG
from training.tracking.runs import (
    ERROR_TAG,
    PIPELINE_RUN_TAG,
    TrackedRun,
    close_open_run,
    open_again,
    open_run,
    open_runs,
    set_tag,
    tags_of,
)


@pytest.fixture
def cluster(services: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield fake


@pytest.fixture
def pipeline() -> str:
    """Id of a pipeline's run."""
    return str(uuid.uuid4())


def _run(pipeline: str, key: str = "", run_uri: str = "") -> TrackedRun:
    key = key or f"reaped-{uuid.uuid4().hex[:8]}"
    tags = {PIPELINE_RUN_TAG: pipeline, "iddpm.run_uri": run_uri}
    run = open_run(run_key=key, experiment_name="reaping", run_name=key, tags=tags, params={})
    assert run.flush()
    return run


def _workflow(cluster: FakeKubernetes, pipeline: str, phase: str) -> None:
    metadata = {"name": "train-x", "uid": "w-1", "labels": {"pipeline/runid": pipeline}}
    cluster.workflows["train-x"] = {"metadata": metadata, "status": {"phase": phase}}


def _reap() -> list[str]:
    return close_finished_runs(KubernetesApi(fake_kubernetes.NAMESPACE))


def _status(run: TrackedRun) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient().get_run(run.run_id).info.status)


@pytest.mark.parametrize(
    ("recording", "status", "reason"),
    [
        ("train-local-succeeded", "FINISHED", "has ended (Succeeded)"),
        ("bad-source-failed", "FAILED", "has ended (Failed)"),
        ("rayjob-cancelled", "KILLED", "was cancelled"),
        ("plugin-env-collision-then-cancelled", "KILLED", "was cancelled"),
    ],
)
def test_a_run_is_closed_once_its_recorded_workflow_has_ended(cluster, pipeline, capsys, recording, status, reason):
    run = _run(pipeline)
    states = workflow_states(recording, pipeline_run_id=pipeline)
    running = [state for state in states if state["status"].get("phase") in (None, "Running")]
    for state in (running[0], running[-1]):
        cluster.workflows = {state["metadata"]["name"]: state}
        assert _reap() == []
        assert _status(run) == "RUNNING"
    cluster.workflows = {states[-1]["metadata"]["name"]: states[-1]}
    assert len(_reap()) == 1
    assert _status(run) == status
    assert f"it is closed as {status}: its Workflow {states[-1]['metadata']['name']} {reason}" in capsys.readouterr().out
    assert _reap() == []


def test_a_training_that_logs_nothing_is_told_to_hang_once_for_each_time_that_it_stands_still(cluster, pipeline, tmp_path, monkeypatch):
    key = f"reaped-{uuid.uuid4().hex[:8]}"
    run_uri = f"{tmp_path}/runs/{key}"
    run = _run(pipeline, key, run_uri)
    states = workflow_states("train-local-succeeded", pipeline_run_id=pipeline)
    running = json.loads(
        json.dumps([each for each in states if each["status"].get("phase") == "Running"][-1]).replace("s3://iddpm", str(tmp_path))
    )
    cluster.workflows = {running["metadata"]["name"]: running}

    def log(seconds_ago: float, step: int) -> None:
        line = {"step": step, "time": int((time.time() - seconds_ago) * 1000), "values": {"loss": 1.5}}
        with Path(run_uri, "metrics.jsonl").open("a") as file:
            file.write(f"{json.dumps(line)}\n")

    with receive() as receiver:
        monkeypatch.setenv(URL_VARIABLE, receiver.url)
        monkeypatch.setenv(HUNG_VARIABLE, "5")
        tell_webhook(KubernetesApi(fake_kubernetes.NAMESPACE))  # it may still wait for its data
        Path(run_uri).mkdir(parents=True)
        for seconds_ago, num_told in ((310, 1), (305, 2), (290, 2)):
            log(seconds_ago, seconds_ago)
            for _ in range(2):
                tell_webhook(KubernetesApi(fake_kubernetes.NAMESPACE))
            assert len(receiver.messages) == num_told
        log(1000, 1000)
        note_attempt(run_uri, "")  # it resumes on another machine, and reads its data
        tell_webhook(KubernetesApi(fake_kubernetes.NAMESPACE))
        assert len(receiver.messages) == 2
        message = receiver.messages[0]
        assert (message["event"], message["run_uri"]) == ("hung", run_uri)
        assert f"{key} has made no progress for 5 min" in message["text"]
    run.finish("KILLED")


def _told_of_the_end(cluster: FakeKubernetes, recording: str, pipeline: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The one message to the webhook about a recorded run that has ended."""
    states = json.dumps(workflow_states(recording, pipeline_run_id=pipeline)).replace("s3://iddpm", str(root))
    ended = json.loads(states)[-1]
    cluster.workflows = {ended["metadata"]["name"]: ended}
    monkeypatch.setattr("components.reaper.messages._LATEST_SECONDS", float("inf"))  # the recordings are old
    with receive() as receiver:
        monkeypatch.setenv(URL_VARIABLE, receiver.url)
        monkeypatch.setenv(HUNG_VARIABLE, "0")
        tell_webhook(KubernetesApi(fake_kubernetes.NAMESPACE))
    (message,) = receiver.messages
    return message


def test_the_error_of_a_driver_that_fails_before_any_step_reaches_the_webhook(cluster, pipeline, tmp_path, monkeypatch):
    """No step of such a run begins, its exit task neither."""
    (attempt,) = attempts(workflow_states("driver-refused-failed")[-1])
    cluster.logs = {attempt.pod: recorded("workflows", "driver-refused-failed")["driver_log"].splitlines()}
    message = _told_of_the_end(cluster, "driver-refused-failed", pipeline, tmp_path, monkeypatch)
    assert message["event"] == "failed"
    assert message["errors"].keys() == {"root"}
    assert "KFP's driver: " in message["errors"]["root"]
    assert message["errors"]["root"] in message["text"]


def _trained(root: Path, pipeline: str) -> str:
    """A training that was evaluated; returns its line of numbers."""
    key = f"reaped-{uuid.uuid4().hex[:8]}"
    run_uri = f"{root}/runs/{key}"
    _run(pipeline, key, run_uri).finish("FINISHED")
    _evaluated(run_uri)
    return "FID 5.25 ± 0.5, at step 3,000"


def _evaluated(run_uri: str) -> None:
    result = EvaluationResult(
        checkpoint_uri="s3://x",
        weights="ema_0.99",
        step=3000,
        distance_name="FID",
        distance=5.25,
        distance_standard_error=0.5,
        protocol={"distance": {"num_samples": 100}},
        experiment={},
        created_at="2026-11-27T00:00:00Z",
        seconds=1.0,
    )
    storage.write_json(f"{run_uri}/evaluations/final.json", result.to_dict())


def _tuned(root: Path, pipeline: str) -> str:
    """A tuning of two trials, with a training of one below it."""
    _trained(root, pipeline)
    uri = f"{root}/tunings/t"
    for number, score in enumerate((4.0, 3.0)):
        write_record(uri, TuningTrial(number=number, params={"optim.learning_rate": score}, state="complete", score=score))
    tags = {PIPELINE_RUN_TAG: pipeline, TUNING_URI_TAG: uri}
    open_run(run_key=f"t-{pipeline}", experiment_name="reaping", run_name="t", tags=tags, params={}).finish("FINISHED")
    return "best 3 of 2 trials, with optim.learning_rate=3.0"


def _ablated(root: Path, pipeline: str) -> str:
    """An ablation whose report is made, with two trainings."""
    for _ in range(2):
        _trained(root, pipeline)
    uri = f"{root}/ablations/a"
    storage.write_json(
        f"{uri}/summary.json", {"name": "a", "order": 0, "findings": [{"verdict": "reproduced", "claim": "cosine is better"}]}
    )
    tags = {PIPELINE_RUN_TAG: pipeline, ABLATION_URI_TAG: uri}
    open_run(run_key=f"a-{pipeline}", experiment_name="reaping", run_name="a", tags=tags, params={}).finish("FINISHED")
    return "reproduced: cosine is better"


@pytest.mark.parametrize("make", [_trained, _tuned, _ablated])
def test_a_late_message_of_success_has_the_numbers_of_the_exit_task(cluster, pipeline, tmp_path, monkeypatch, make):
    line = make(tmp_path, pipeline)
    message = _told_of_the_end(cluster, "train-local-succeeded", pipeline, tmp_path, monkeypatch)
    assert (message["event"], message["numbers"]["summary"]) == ("finished", line)
    assert f" finished: {line} (run {pipeline})" in message["text"]


def test_after_kfps_retry_a_killed_evaluation_leaves_a_failed_run_though_its_training_finished(cluster, pipeline, tmp_path, monkeypatch):
    """KFP's Retry runs the failed step again, and no exit task; the evaluation is killed at once. The Workflow is a recorded one."""
    states = workflow_states("mlflow-away", pipeline_run_id=pipeline)
    key = f"reaped-{uuid.uuid4().hex[:8]}"
    run_uri = f"{tmp_path}/runs/{key}"
    run = _run(pipeline, key, run_uri)
    storage.write_json(f"{run_uri}/result.json", {"tracking_run_id": run.run_id, "best_checkpoint_uri": "s3://x", "best_weights": "w"})
    run.finish("FINISHED")
    open_again(run.run_id, "evaluate", pipeline)
    running = [state for state in states if state["status"].get("phase") == "Running"][-1]
    cluster.workflows = {running["metadata"]["name"]: running}
    with receive() as receiver:
        monkeypatch.setenv(URL_VARIABLE, receiver.url)
        monkeypatch.setenv(HUNG_VARIABLE, "0.0001")
        note_attempt(run_uri, "")
        tell_webhook(KubernetesApi(fake_kubernetes.NAMESPACE))
        assert receiver.messages == []  # an evaluation logs nothing until it is done
    assert _reap() == []
    assert _status(run) == "RUNNING"
    cluster.workflows = {states[-1]["metadata"]["name"]: states[-1]}
    cluster.logs = {attempt.pod: ["ValueError: what the pod's log says"] for attempt in attempts(states[-1]) if attempt.step == "evaluate"}
    assert _reap() == [key]
    assert _status(run) == "FAILED"
    error = tags_of(run.run_id)[ERROR_TAG]
    assert error.startswith("evaluate: ")
    assert "ValueError: what the pod's log says" in error


@pytest.mark.parametrize("evaluated_by", ["", "11111111-0000-0000-0000-000000000000"])
def test_a_training_of_a_failed_pipeline_that_another_or_a_laptop_evaluates_is_left_alone(cluster, pipeline, tmp_path, evaluated_by):
    state = workflow_states("bad-source-failed", pipeline_run_id=pipeline)[-1]
    cluster.workflows = {state["metadata"]["name"]: state}
    run = _run(pipeline)
    run.finish("FINISHED")
    run_uri = f"{tmp_path}/runs/{run.run_id}"
    storage.write_json(f"{run_uri}/result.json", {"tracking_run_id": run.run_id})
    with shown_as_running(run_uri, "evaluate", evaluated_by):
        assert _reap() == []
        assert _status(run) == "RUNNING"
    assert _status(run) == "FINISHED"
    assert tags_of(run.run_id)[PIPELINE_RUN_TAG] == evaluated_by
    assert not tags_of(run.run_id).get(ERROR_TAG)


@pytest.mark.parametrize(("told", "shown"), [("", "evaluate: ValueError: the pod's log"), ("evaluate: the exit task's words", "")])
def test_a_finished_training_shows_the_later_failure_that_no_exit_task_has_told(cluster, pipeline, told, shown):
    state = workflow_states("mlflow-away", pipeline_run_id=pipeline)[-1]
    name = state["metadata"]["name"]
    cluster.workflows = {name: state}
    cluster.logs = {attempt.pod: ["ValueError: the pod's log"] for attempt in attempts(state) if attempt.step == "evaluate"}
    run = _run(pipeline)
    run.finish("FINISHED")
    if told:
        set_tag(run.run_id, ERROR_TAG, told)
    state["metadata"]["labels"].pop("pipeline/persistedFinalState", None)
    for is_stored in (False, True):
        if is_stored:
            cluster.workflows[name]["metadata"]["labels"]["pipeline/persistedFinalState"] = "true"
        assert reaper.main() == 0
        assert tags_of(run.run_id)[ERROR_TAG].startswith(told or shown)
        assert ("iddpm/tagged" in cluster.workflows[name]["metadata"]["labels"]) == is_stored
    assert _status(run) == "FINISHED"


def test_metrics_that_a_killed_step_left_in_the_runs_directory_reach_mlflow(cluster, pipeline, tmp_path):
    key = f"reaped-{uuid.uuid4().hex[:8]}"
    run_uri = f"{tmp_path}/runs/{key}"
    run = _run(pipeline, key, run_uri)
    storage.write_bytes(f"{run_uri}/metrics.jsonl", b'{"step": 10, "time": 1, "values": {"loss": 1.5}}\n')
    _workflow(cluster, pipeline, "Failed")
    assert _reap() == [key]
    assert run.metric_history("loss") == [(10, 1.5)]


def test_a_run_and_a_mark_that_cannot_be_read_do_not_keep_others_open(cluster, pipeline, tmp_path, capsys):
    keys = [f"reaped-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    runs = [_run(pipeline, key, f"{tmp_path}/runs/{key}") for key in keys]
    for key, run in zip(keys, runs, strict=True):
        storage.write_bytes(f"{tmp_path}/runs/{key}/metrics.jsonl", b'{"step": 10, "time": 1, "values": {"loss": 1.5}}\n')
        leave_mark(f"{tmp_path}/runs/{key}", {"run_uri": f"{tmp_path}/runs/{key}", "run_id": run.run_id})
    # A file of another release: a UserError, as the field may be a user's.
    storage.write_json(f"{tmp_path}/runs/{keys[0]}/experiment.json", {"name": "x", "no_such_field": 1})
    storage.write_json(f"{tmp_path}/runs/{keys[0]}/result.json", {"step": 10, "tracking_run_id": runs[0].run_id})
    leave_mark(f"{tmp_path}/ablations/none", {"ablation_uri": f"{tmp_path}/ablations/none"})
    storage.write_bytes(f"{tmp_path}/mlflow_behind/0.json", b"no JSON")
    _workflow(cluster, pipeline, "Failed")
    assert set(_reap()) == set(keys)
    assert [_status(run) for run in runs] == ["FAILED", "FAILED"]
    assert runs[1].metric_history("loss") == [(10, 1.5)]
    said = capsys.readouterr().out
    assert all(words in said for words in ("no_such_field", "no ablation was planned there", "is not JSON"))
    storage.delete_prefix(f"{tmp_path}/mlflow_behind")  # the reaper would look at them in other tests too


def test_a_run_that_mlflow_refuses_keeps_no_other_from_being_sent(cluster, pipeline, tmp_path, monkeypatch, capsys):
    """Such as a run of another team below the same storage root, which this account may not read."""
    keys = [f"reaped-{uuid.uuid4().hex[:8]}" for _ in range(3)]
    runs = [_run(pipeline, key, f"{tmp_path}/runs/{key}") for key in keys]
    for key, run in zip(keys, runs, strict=True):
        storage.write_bytes(f"{tmp_path}/runs/{key}/metrics.jsonl", b'{"step": 10, "time": 1, "values": {"loss": 1.5}}\n')
        leave_mark(f"{tmp_path}/runs/{key}", {"run_uri": f"{tmp_path}/runs/{key}", "run_id": run.run_id})
    (first, *_) = storage.list_uris(f"{tmp_path}/mlflow_behind")  # the reaper goes through them in this order
    refused = storage.read_json(first, dict[str, str])["run_id"]
    with counting(tracking_uri()) as proxy, monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        proxy.forbidden = refused
        send_what_mlflow_lacks(open_runs(PIPELINE_RUN_TAG, pipeline))
    assert "refused: " in capsys.readouterr().out
    assert [run.metric_history("loss") for run in runs] == [[] if run.run_id == refused else [(10, 1.5)] for run in runs]
    assert storage.list_uris(f"{tmp_path}/mlflow_behind") == [first]
    _workflow(cluster, pipeline, "Failed")
    assert set(_reap()) == set(keys)


def test_a_directory_that_cannot_be_read_leaves_no_request_to_be_sent_later(services, tmp_path):
    """The reaper has gone on to other runs by then."""
    run_uri = f"{tmp_path}/runs/damaged"
    run = _run("", "damaged", run_uri)
    storage.write_bytes(f"{run_uri}/metrics.jsonl", b'{"step": 10, "time": 1, "values": {"loss": 1.5}}\n')
    storage.write_json(f"{run_uri}/experiment.json", {"name": "x", "no_such_field": 1})
    threads = set(threading.enumerate())
    with pytest.raises(UserError, match="no_such_field"):
        update_mlflow(run_uri, run.run_id)
    begun = set(threading.enumerate()) - threads
    assert not [thread for thread in begun if not isinstance(thread, threading.Timer)]  # a cancelled timer takes a moment to end
    run.finish("KILLED")


def test_a_run_that_mlflow_was_behind_when_it_ended_is_found_below_its_own_storage_root(cluster, tmp_path):
    key = f"reaped-{uuid.uuid4().hex[:8]}"
    run_uri = f"{tmp_path}/runs/{key}"
    run = _run("", key, run_uri)
    run.log_params({"evaluation": {"memorisation": False}})  # by an earlier command; now it has its default again
    storage.write_bytes(f"{run_uri}/metrics.jsonl", b'{"step": 10, "time": 1, "values": {"loss": 1.5}}\n')
    storage.write_bytes(f"{run_uri}/experiment.json", preset("digits-tiny-hybrid-cosine").to_json().encode())
    result = {"tracking_run_id": run.run_id, "best_checkpoint_uri": "s3://x", "best_weights": "ema_0.99"}
    storage.write_json(f"{run_uri}/result.json", result)
    leave_mark(run_uri, {"run_uri": run_uri, "run_id": run.run_id})
    _reap()
    assert run.metric_history("loss") == [(10, 1.5)]
    assert (_status(run), tags_of(run.run_id)["iddpm.best_weights"]) == ("FINISHED", "ema_0.99")
    assert connect().get_run(run.run_id).data.params["diffusion.schedule"] == "cosine"
    assert tags_of(run.run_id)["resumed.evaluation.memorisation"] == "True"
    assert storage.list_uris(f"{tmp_path}/mlflow_behind") == []


def test_an_evaluation_without_the_result_of_its_training_is_logged_and_not_registered(cluster, tmp_path):
    """An interrupted `iddpm gc` may leave it, and the training that goes on there leaves a mark when it is stopped."""
    key = f"reaped-{uuid.uuid4().hex[:8]}"
    run_uri = f"{tmp_path}/runs/{key}"
    run = _run("", key, run_uri)
    _evaluated(run_uri)
    leave_mark(run_uri, {"run_uri": run_uri, "run_id": run.run_id})
    _reap()
    assert run.metric_history("final/distance") == [(3000, 5.25)]
    assert storage.list_uris(f"{tmp_path}/mlflow_behind") == []
    run.finish("KILLED")


def test_a_log_that_is_not_utf8_keeps_no_run_open(cluster, pipeline):
    """The name of a user's image may be in Latin-1."""
    state = workflow_states("bad-source-failed", pipeline_run_id=pipeline)[-1]
    cluster.workflows = {state["metadata"]["name"]: state}
    cluster.logs = {attempt.pod: ["ValueError: stra\udce9e.png is damaged"] for attempt in attempts(state)}
    run = _run(pipeline)
    assert len(_reap()) == 1
    assert tags_of(run.run_id)[ERROR_TAG].endswith("ValueError: stra\ufffde.png is damaged")


def test_a_run_that_somebody_deleted_in_mlflow_is_not_tried_for_ever(cluster, tmp_path):
    from mlflow import MlflowClient

    key = f"reaped-{uuid.uuid4().hex[:8]}"
    run_uri = f"{tmp_path}/runs/{key}"
    run = _run("", key, run_uri)
    other = _run("", f"{key}-other", f"{tmp_path}/runs/other")  # the storage root is that of a run that is still there
    leave_mark(run_uri, {"run_uri": run_uri, "run_id": run.run_id})
    MlflowClient().delete_run(run.run_id)
    _reap()
    assert storage.list_uris(f"{tmp_path}/mlflow_behind") == []
    other.finish("KILLED")


def test_the_work_grows_with_the_open_pipelines_alone(cluster, tmp_path, mlflow_calls):
    """Closed runs, KFP's own and the trials of one sweep cost nothing more."""

    def count() -> tuple[int, int]:
        mlflow_calls.clear()
        before = cluster.count("GET", "/workflows")
        _reap()
        return len(mlflow_calls), cluster.count("GET", "/workflows") - before

    def fewest() -> tuple[int, int]:
        """Requests of other tests, such as the end of a run that one left open or of a thread that still sends, only add to a count."""
        return min(count() for _ in range(4))

    few = fewest()
    sweep = [_run("sweep") for _ in range(5)]
    for number in range(10):
        _run("ended", run_uri=f"{tmp_path}/runs/{number}").finish("FINISHED")
    many = fewest()
    assert many[0] == few[0]
    assert many[1] == 1  # all open pipelines in one request, those that an earlier test may have left too
    for run in sweep:
        run.finish("KILLED")


@pytest.mark.parametrize("phase", ["Running", "Pending", ""])
def test_a_run_whose_workflow_goes_on_is_left_alone_and_closed_once_it_is_gone(cluster, pipeline, capsys, phase):
    run = _run(pipeline)
    _workflow(cluster, pipeline, phase)
    assert _reap() == []
    assert _status(run) == "RUNNING"
    cluster.workflows.clear()  # somebody deleted the run in the UI
    assert len(_reap()) == 1
    assert _status(run) == "KILLED"
    assert "its Workflow train-x is gone" in capsys.readouterr().out


def test_a_run_of_no_pipeline_and_one_of_a_pipeline_that_was_never_seen_here_are_left_alone(cluster, pipeline):
    laptop, elsewhere = _run(""), _run(pipeline)
    assert _reap() == []
    assert (_status(laptop), _status(elsewhere)) == ("RUNNING", "RUNNING")
    assert cluster.count("GET", "/workflows") >= 1
    for run in (laptop, elsewhere):
        run.finish("KILLED")


def test_a_run_that_was_seen_by_another_cluster_is_left_alone(cluster, pipeline, tmp_path, monkeypatch):
    run = _run(pipeline)
    _workflow(cluster, pipeline, "Running")
    _reap()
    (tmp_path / "other").mkdir()
    with fake_kubernetes.serve(tmp_path / "other") as (_, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        assert _reap() == []
    assert _status(run) == "RUNNING"
    run.finish("KILLED")


def test_a_run_that_a_laptop_or_another_pipeline_went_on_with_is_left_alone(cluster, pipeline):
    key = f"reaped-{uuid.uuid4().hex[:8]}"
    _run(pipeline, key)
    _workflow(cluster, pipeline, "Running")
    assert _reap() == []
    _workflow(cluster, pipeline, "Failed")
    for taken_over_by in ("", str(uuid.uuid4())):
        run = _run(taken_over_by, key)
        assert _reap() == []
        assert _status(run) == "RUNNING"
    run.finish("KILLED")


def test_a_run_that_is_taken_over_between_the_look_and_the_closing_is_left_alone(cluster, pipeline):
    run = _run(pipeline)
    (found,) = [each for each in open_runs(PIPELINE_RUN_TAG) if each.run_id == run.run_id]
    _run("", found.key)
    assert not close_open_run(found, PIPELINE_RUN_TAG, "KILLED")
    assert _status(run) == "RUNNING"
    run.finish("KILLED")
    assert not close_open_run(found, PIPELINE_RUN_TAG, "FAILED")


def test_a_run_of_kfps_own_is_left_to_kfp(cluster, pipeline):
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("reaping") or client.get_experiment(client.create_experiment("reaping"))
    created = client.create_run(experiment.experiment_id, tags={PIPELINE_RUN_TAG: pipeline})
    _workflow(cluster, pipeline, "Failed")
    assert _reap() == []
    client.set_terminated(created.info.run_id, "KILLED")


def test_of_the_runs_that_a_cluster_recorded_with_kfps_plugin_on_only_ours_are_closed(cluster):
    """A sweep is running; 60 of the 68 runs are the plugin's, and it leaves some of them running."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment_id = client.create_experiment(f"recorded-{uuid.uuid4().hex[:8]}")
    for each in recorded("kfp-api", "mlflow-runs-with-the-plugin-on")["runs"]:
        tags = {tag["key"]: tag["value"] for tag in each["data"]["tags"] if tag["key"] != "iddpm.run_uri"}  # its S3 is gone
        created = client.create_run(experiment_id, run_name=each["info"]["run_name"], tags=tags)
        if each["info"]["status"] != "RUNNING":
            client.set_terminated(created.info.run_id, each["info"]["status"])
    last = workflow_states("ablation-of-four-trials")[-1]
    cluster.workflows = {last["metadata"]["name"]: last}
    assert _reap() == []
    cluster.workflows.clear()
    assert len(_reap()) == 7  # the sweep, its trials, and two trainings
    still = [run.data.tags for run in client.search_runs([experiment_id]) if run.info.status == "RUNNING"]
    assert {tags["mlflow.runName"] for tags in still} == {"abl-1", "train-trial", "train", "preprocess"}
    for run in client.search_runs([experiment_id]):
        client.delete_run(run.info.run_id)


def test_the_workflow_is_recorded_once(cluster, pipeline):
    run = _run(pipeline)
    _workflow(cluster, pipeline, "Running")
    _reap()
    recorded = tags_of(run.run_id)[WORKFLOW_TAG]
    assert recorded.startswith(f"{pipeline} ")
    assert recorded.endswith(" train-x")
    _workflow(cluster, pipeline, "Failed")
    _reap()


def test_one_refused_request_is_reported_and_the_rest_is_done(cluster, pipeline, capsys):
    run = _run(pipeline)
    _workflow(cluster, pipeline, "Failed")
    cluster.faults["GET"] = [403]  # to the list of RayJobs
    assert reaper.main() == 1
    assert "may not list RayJobs" in capsys.readouterr().out
    assert _status(run) == "FAILED"


def test_a_task_that_fails_in_an_unforeseen_way_keeps_no_other_from_its_work(cluster, pipeline, monkeypatch, capsys):
    def fail(api: KubernetesApi) -> None:
        raise KeyError("an odd RayJob")

    monkeypatch.setattr(reaper, "delete_finished_rayjobs", fail)
    run = _run(pipeline)
    _workflow(cluster, pipeline, "Failed")
    assert reaper.main() == 1
    assert "KeyError: 'an odd RayJob'" in capsys.readouterr().err
    assert _status(run) == "FAILED"


def test_without_mlflow_the_exit_code_says_so_and_the_rayjobs_are_looked_after(cluster, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert reaper.main() == 1
    assert "no MLflow server is known" in capsys.readouterr().out
    assert cluster.count("GET", "/rayjobs") == 1


def test_a_cluster_without_kuberay_has_runs_to_close_all_the_same(cluster, pipeline):
    run = _run(pipeline)
    _workflow(cluster, pipeline, "Error")
    cluster.has_kuberay = False
    assert reaper.main() == 0
    assert _status(run) == "FAILED"
