"""Messages of the reaper to a webhook: recorded Workflows behind a small Kubernetes API, and a receiver that fails and comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_kubernetes
import pytest
from fake_kubernetes import FakeKubernetes
from recorded_workflows import workflow_states
from webhook_receiver import Receiver, receive

from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.workflows import form_of, last_start
from components.reaper import messages
from components.reaper.messages import REPORTED_LABEL, tell_webhook
from components.steps import webhook
from components.steps.run_messages import End, record_uri, tell_end
from training import storage


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield fake


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receive() as receiver:
        monkeypatch.setenv(webhook.URL_VARIABLE, receiver.url)
        monkeypatch.setenv(webhook.EVENTS_VARIABLE, "started failed cancelled finished")  # "hung" needs MLflow
        monkeypatch.setattr(webhook, "_PAUSE_SECONDS", 0.01)
        monkeypatch.setattr(messages, "_LATEST_SECONDS", float("inf"))  # the recordings are old
        yield receiver


def _show(cluster: FakeKubernetes, recording: str, root: Path, state: int = -1, *, run_id: str = "p-1") -> dict[str, Any]:
    """Put a state of a recorded Workflow onto the cluster, with a storage root of this test."""
    text = json.dumps(workflow_states(recording, pipeline_run_id=run_id)[state])
    workflow: dict[str, Any] = json.loads(text.replace("s3://iddpm", str(root)))
    workflow["metadata"]["name"] = f"{workflow['metadata']['name']}-{run_id}"
    cluster.workflows[workflow["metadata"]["name"]] = workflow
    return workflow


def _reap() -> None:
    tell_webhook(KubernetesApi(fake_kubernetes.NAMESPACE))


@pytest.mark.parametrize(
    ("recording", "event", "text"),
    [
        ("nightly-placeholder-not-replaced", "failed", "failed at score-model: main: Error (exit code 1)"),
        ("nightly-succeeded", "finished", "finished"),
        ("bad-source-failed", "failed", "failed at preprocess: main: Error (exit code 1)"),
        ("rayjob-cancelled", "cancelled", "was cancelled"),
    ],
)
def test_an_end_that_no_step_told_is_told_once(cluster, server, tmp_path, recording, event, text):
    workflow = _show(cluster, recording, tmp_path)
    for _ in range(3):
        _reap()
    (message,) = server.messages
    assert message["event"] == event
    assert text in message["text"]
    assert message["text"].endswith("(run p-1)")
    assert workflow["metadata"]["labels"][REPORTED_LABEL] == "true"
    assert cluster.count("PATCH") == 1


def test_where_mlflow_does_not_answer_it_is_asked_once_and_ends_are_told_without_numbers(cluster, server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("training.tracking.client.RETRY_SECONDS", 0.0)
    for number in range(2):
        _show(cluster, "nightly-succeeded", tmp_path, run_id=f"p-{number}")
    _reap()
    assert [(message["event"], "numbers" in message) for message in server.messages] == [("finished", False)] * 2
    assert capsys.readouterr().out.count("is told without numbers") == 1


def test_an_end_that_the_exit_task_told_is_not_told_again(cluster, server, tmp_path):
    workflow = _show(cluster, "bad-source-failed", tmp_path)
    end = End(succeeded=False, errors={"preprocess": "UserError: no such folder"}, since=last_start(workflow))
    assert tell_end(end, "p-1", form_of(workflow)["storage_root_uri"], name="digits")
    _reap()
    assert len(server.messages) == 1
    assert REPORTED_LABEL in workflow["metadata"]["labels"]


def test_the_message_of_an_exit_task_that_found_the_webhook_away_comes_whole_when_it_is_back(cluster, server, tmp_path):
    workflow = _show(cluster, "bad-source-failed", tmp_path)
    server.codes = [503] * 6
    end = End(succeeded=False, errors={"preprocess": "UserError: no such folder"}, since=last_start(workflow))
    assert not tell_end(end, "p-1", form_of(workflow)["storage_root_uri"], name="digits")
    _reap()
    assert server.messages == []
    assert REPORTED_LABEL not in workflow["metadata"]["labels"]
    _reap()
    (message,) = server.messages
    assert message["errors"] == {"preprocess": "UserError: no such folder"}


def test_a_webhook_that_is_away_is_tried_for_three_messages_and_no_more(cluster, server, tmp_path):
    for number in range(5):
        _show(cluster, "bad-source-failed", tmp_path, run_id=f"p-{number}")
    server.codes = [404] * 3
    _reap()
    assert (server.num_requests, server.messages) == (3, [])
    _reap()
    assert len(server.messages) == 5


def test_a_run_whose_storage_root_cannot_be_written_is_told_once_too(cluster, server, tmp_path):
    (tmp_path / "file").write_text("")
    _show(cluster, "bad-source-failed", tmp_path / "file")
    for _ in range(2):
        _reap()
    assert [message["event"] for message in server.messages] == ["failed"]


def test_an_end_is_not_told_again_while_the_storage_with_its_record_is_away(cluster, server, tmp_path, monkeypatch):
    workflow = _show(cluster, "bad-source-failed", tmp_path)
    end = End(succeeded=False, errors={"preprocess": "UserError: no such folder"}, since=last_start(workflow))
    assert tell_end(end, "p-1", form_of(workflow)["storage_root_uri"], name="digits")

    def away(*_: Any, **__: Any) -> Any:
        raise storage.StorageError("no answer from S3", transient=True)

    with monkeypatch.context() as during:
        during.setattr(storage, "read_json", away)
        _reap()
    assert (len(server.messages), REPORTED_LABEL in workflow["metadata"]["labels"]) == (1, False)
    _reap()
    assert (len(server.messages), REPORTED_LABEL in workflow["metadata"]["labels"]) == (1, True)


def test_a_run_is_told_when_it_begins_and_when_it_fails(cluster, server, tmp_path):
    (running, *_) = (index for index, each in enumerate(workflow_states("bad-source-failed")) if each["status"].get("phase") == "Running")
    for state in (running, -1):
        _show(cluster, "bad-source-failed", tmp_path, state)
        _reap()
    assert [message["event"] for message in server.messages] == ["started", "failed"]


def test_a_retry_that_begins_and_fails_between_two_looks_is_told_too(cluster, server, tmp_path):
    """KFP's Retry takes the label away, as was recorded; what was told is older than the pods of the second try."""
    states = workflow_states("told_again")
    first = next(index for index, each in enumerate(states) if _is_stored(each))
    assert "Running" in [each["status"]["phase"] for each in states[first:]]
    workflow = _show(cluster, "told_again", tmp_path, first)
    _reap()
    assert workflow["metadata"]["labels"][REPORTED_LABEL] == "true"
    again = _show(cluster, "told_again", tmp_path, -2)
    assert REPORTED_LABEL not in again["metadata"]["labels"]
    path = Path(record_uri(form_of(workflow)["storage_root_uri"], "p-1"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "at": workflow["status"]["finishedAt"]}))
    for _ in range(2):
        _reap()
    assert [message["event"] for message in server.messages] == ["failed", "failed"]


def test_an_end_that_kfp_has_not_stored_is_told_and_gets_its_label_later(cluster, server, tmp_path, monkeypatch):
    """KFP writes back on Retry what it stored; with the label the second end would not be told."""
    states = workflow_states("bad-source-failed")
    (ended,) = (index for index, each in enumerate(states) if _is_ended(each) and not _is_stored(each))
    workflow = _show(cluster, "bad-source-failed", tmp_path, ended)
    _reap()
    assert (len(server.messages), REPORTED_LABEL in workflow["metadata"]["labels"]) == (1, False)
    stored = _show(cluster, "bad-source-failed", tmp_path, ended + 1)
    assert _is_stored(stored)
    _reap()
    assert (len(server.messages), REPORTED_LABEL in stored["metadata"]["labels"]) == (1, True)
    _show(cluster, "bad-source-failed", tmp_path, ended)
    monkeypatch.setattr(messages, "_LATEST_SECONDS", 0.0)
    _reap()
    assert cluster.count("PATCH") == 2, "an old end needs no further look, whether KFP has stored it or not"


def _is_ended(workflow: dict[str, Any]) -> bool:
    return bool(workflow["metadata"]["labels"].get("workflows.argoproj.io/completed") == "true")


def _is_stored(workflow: dict[str, Any]) -> bool:
    return "pipeline/persistedFinalState" in workflow["metadata"]["labels"]


def test_old_ends_other_pipelines_and_a_missing_webhook_are_left_alone(cluster, server, tmp_path, monkeypatch):
    other = _show(cluster, "bad-source-failed", tmp_path)
    other["spec"] = json.loads(json.dumps(other["spec"]).replace('"iddpm-train"', '"theirs"'))
    old = _show(cluster, "bad-source-failed", tmp_path, run_id="p-2")
    monkeypatch.setattr(messages, "_LATEST_SECONDS", 0.0)
    _reap()
    assert server.messages == []
    assert (REPORTED_LABEL in old["metadata"]["labels"], REPORTED_LABEL in other["metadata"]["labels"]) == (True, False)
    monkeypatch.delenv(webhook.URL_VARIABLE)
    asked = len(cluster.requests)
    _reap()
    assert len(cluster.requests) == asked
