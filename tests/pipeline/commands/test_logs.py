"""`iddpm logs` with the real KFP client, against a stand-in API server that shows recorded Workflows."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_kfp import FakeKfp, Request
from recorded_workflows import recorded, workflow_states

from components.cluster.workflows import Attempt, attempts, form_of, nodes_of
from pipelines.client.follow import Polling
from pipelines.client.kfp_client import Kfp
from pipelines.client.logs import show_logs
from training import storage

Iddpm = Callable[..., "tuple[int, str, str]"]
_STATES = workflow_states("bad-source-failed")
_PODS = {each.step: each.pod for each in attempts(_STATES[-1]) if not each.is_driver}


@pytest.fixture
def ended(server: FakeKfp) -> str:
    server.workflow = _STATES[-1]
    return server.add_run("FAILED")


def test_each_line_of_a_step_is_shown_after_its_name_without_those_of_kfps_launcher(server: FakeKfp, iddpm: Iddpm, ended: str) -> None:
    server.logs = {_PODS["preprocess"]: "I1126 launcher\nreading\nUserError: no such folder\n"}
    status, out, err = iddpm("logs", ended)
    assert status == 0
    assert out == "preprocess: reading\npreprocess: UserError: no such folder\n"
    assert f"--- preprocess, pod {_PODS['preprocess']}\n" in err


def test_a_log_that_can_not_be_read_says_where_it_is_and_one_that_is_gone_says_so(
    server: FakeKfp, iddpm: Iddpm, ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = form_of(_STATES[-1])["storage_root_uri"]
    there = f"{root}/pipelines/{ended}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nowhere")  # also where an earlier test has started an S3
    assert (
        f"--- close-run, pod {_PODS['close-run']}: its pod is gone, and {there} can't be read from here; with credentials for S3, "
        f"iddpm logs {there} shows its log\n"
    ) in iddpm("logs", ended)[2]
    server.workflow = json.loads(json.dumps(_STATES[-1]).replace(root, str(tmp_path)))
    assert f"--- close-run, pod {_PODS['close-run']}: its log is gone\n" in iddpm("logs", ended)[2]


@pytest.mark.parametrize("state", ["running", "compressed"])
def test_through_a_port_forward_kubectl_reads_what_the_api_of_a_single_user_can_not(
    server: FakeKfp, run_iddpm: Iddpm, kubectl: Callable[..., Path], state: str
) -> None:
    """KFP 2.17 looks for pods in no namespace. It finds an archived log by the Workflow's nodes, which a sweep has compressed."""
    if state == "running":
        server.workflow, pod = next(
            (state, each) for state in workflow_states("sweep") for each in attempts(state) if _runs(each, "plan-ablation")
        )
    else:
        server.workflow = workflow_states("sweep-with-compressed-nodes")[-1]
        assert "compressedNodes" in server.workflow["status"]
        pod = next(each for each in attempts(server.workflow) if not each.is_driver and each.phase == "Succeeded")
    run_id = server.add_run("RUNNING")
    log = kubectl(logs={pod.pod: "I1126 launcher\nlisting\n"})
    status, out, _ = run_iddpm("logs", run_id, pod.step, "--port-forward", "--kfp-namespace", "pipelines")
    assert (status, out) == (0, "listing\n")
    assert f"--namespace pipelines logs {pod.pod} --container main" in log.read_text()


def test_a_step_that_runs_without_a_log_says_what_may_show_one(server: FakeKfp, iddpm: Iddpm) -> None:
    server.workflow, pod = next(
        (state, each) for state in workflow_states("sweep") for each in attempts(state) if _runs(each, "plan-ablation")
    )
    hint = f"--- plan-ablation, pod {pod.pod}: no log yet; if none comes, give --port-forward or the UI's address: KFP's API reads no pod\n"
    run_id = server.add_run("RUNNING")
    assert hint in iddpm("logs", run_id)[2]
    server.logs = {pod.pod: "I1126 launcher\n"}
    assert f"--- plan-ablation, pod {pod.pod}: it has written nothing yet\n" in iddpm("logs", run_id)[2]
    server.logs = {pod.pod: "listing\n"}  # the UI reads pods
    status, out, err = iddpm("logs", run_id, "plan-ablation")
    assert (status, out) == (0, "listing\n")
    assert "no log yet" not in err


def test_a_log_in_which_only_kfps_launcher_wrote_is_not_called_gone(server: FakeKfp, iddpm: Iddpm, ended: str) -> None:
    server.logs = {_PODS["close-run"]: "I1126 launcher\n"}
    assert f"--- close-run, pod {_PODS['close-run']}: it wrote nothing\n" in iddpm("logs", ended)[2]


@pytest.mark.parametrize("step", [(), ("root",)])
def test_the_error_of_a_driver_is_shown_where_no_step_began(server: FakeKfp, iddpm: Iddpm, step: tuple[str, ...]) -> None:
    server.workflow = workflow_states("driver-refused-failed")[-1]
    pod = "iddpm-train-n7z7p-system-dag-driver-423364082"
    server.logs = {pod: recorded("workflows", "driver-refused-failed")["driver_log"]}
    status, out, err = iddpm("logs", server.add_run("FAILED"), *step)
    assert status == 0
    assert err == f"--- root, pod {pod}: it never began\n"
    assert out.startswith("root: KFP's driver: driver.RootDAG(pipelineName=iddpm-train, ")
    assert out.endswith('connection reset by peer"\n')
    assert out.count("\n") == 1


def test_the_log_of_one_step_is_shown_as_it_is_and_an_unknown_step_is_named(server: FakeKfp, iddpm: Iddpm, ended: str) -> None:
    server.logs = {_PODS["preprocess"]: "reading\n"}
    assert iddpm("logs", ended, "preprocess")[1] == "reading\n"
    status, _, err = iddpm("logs", ended, "preproces")
    assert (status, "has no step 'preproces'; did you mean 'preprocess'?" in err) == (1, True)
    assert "there is no run nobody" in iddpm("logs", "nobody")[2]


def test_a_run_without_a_workflow_has_no_logs_yet(server: FakeKfp, iddpm: Iddpm) -> None:
    run_id = server.add_run("PENDING")
    assert iddpm("logs", run_id) == (0, "", "")
    assert "has no step 'train'; none has begun" in iddpm("logs", run_id, "train")[2]


def test_a_log_that_is_gone_with_its_pod_is_read_from_storage(server: FakeKfp, iddpm: Iddpm, ended: str, tmp_path, monkeypatch) -> None:
    """Recordings lack the nodes' inputs; this is the patch by which KFP's driver says where the log goes."""
    server.workflow = copy.deepcopy(_STATES[-1])
    (node,) = (each for each in nodes_of(server.workflow).values() if each["name"].endswith("preprocess(0).executor(0)"))
    patch = '{"containers": [{"args": ["--log", "s3://bucket/here/executor-logs"]}]}'
    node["inputs"] = {"parameters": [{"name": "pod-spec-patch", "value": patch}]}
    server.workflow["status"]["nodes"][node["id"]] = node
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "executor-logs-0").write_text("reading\nI1126 launcher\n")
    read = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: read(uri.replace("s3://bucket", str(tmp_path))))
    assert iddpm("logs", ended, "preprocess")[1] == "reading\n"


def _swept(root: Path) -> list[dict[str, Any]]:
    """The states of a recorded sweep, with another storage root in its form."""
    states = workflow_states("sweep")
    return json.loads(json.dumps(states).replace(form_of(states[-1])["storage_root_uri"], str(root)))


def test_the_log_of_a_step_that_has_ended_is_the_stored_one_of_its_time_below_the_root_of_the_runs_form(
    server: FakeKfp, iddpm: Iddpm, tmp_path: Path
) -> None:
    server.workflow = _swept(tmp_path)[-1]
    run_id = server.add_run("SUCCEEDED")
    pods = {each.step: each for each in attempts(server.workflow) if not each.is_driver}
    server.logs = {pod.pod: f"{step} of the pod\n" for step, pod in pods.items()}
    pod = pods["list-data"]
    _store(tmp_path, run_id, "list-data", pod.started, "listing\nTwo data sets\n")
    _store(tmp_path, run_id, "list-data", "2026-11-27T05:00:00Z", "an earlier one\n")
    assert iddpm("logs", run_id, "list-data")[:2] == (0, "listing\nTwo data sets\n")
    assert iddpm("logs", run_id, "settings")[:2] == (0, "settings of the pod\n")
    server.logs = {}
    assert iddpm("logs", run_id)[1] == "list-data: listing\nlist-data: Two data sets\n"


def test_a_log_that_was_followed_in_its_pod_is_not_shown_again_from_storage(server: FakeKfp, kfp: Kfp, tmp_path: Path) -> None:
    states = _swept(tmp_path)
    running, pod = next((state, each) for state in states for each in attempts(state) if _runs(each, "plan-ablation"))
    server.workflow = running
    run_id = server.add_run("RUNNING")
    server.logs = {pod.pod: "listing\n"}
    _store(tmp_path, run_id, "plan-ablation", pod.started, "another\nand\nlonger one\n")

    def before(request: Request) -> None:
        if len(server.asked("GET", f"{pod.pod}/log")) == 2:
            server.logs[pod.pod] = "listing\ndone\n"
            server.runs[run_id]["state"], server.workflow = "SUCCEEDED", states[-1]

    server.before = before
    shown: list[str] = []
    show_logs(kfp, run_id, "plan-ablation", follow=True, out=shown.append, err=lambda line: None, polling=Polling(interval_seconds=0.01))
    assert shown == ["listing", "done"]


def _store(root: Path, run_id: str, step: str, began: str, text: str) -> None:
    time = began.replace("-", "").replace(":", "").rstrip("Z")
    storage.write_bytes(f"{root}/pipelines/{run_id}/logs/{step}/{time}-step.000.gz", gzip.compress(text.encode()))


def test_followed_logs_are_shown_line_by_line_once_until_the_run_has_ended(server: FakeKfp, kfp: Kfp) -> None:
    states = workflow_states("train-local-succeeded")
    running, pod = next((state, each.pod) for state in states for each in attempts(state) if _runs(each, "train"))
    server.workflow = running
    run_id = server.add_run("RUNNING")
    text = ["reading", "writing", "done"]
    looks: list[int] = []

    def before(request: Request) -> None:
        if not request.path.endswith(f"{pod}/log"):
            return
        looks.append(1)
        server.logs[pod] = "".join(f"{line}\n" for line in text[: len(looks)]) if len(looks) != 2 else ""  # the server fails once
        if len(looks) == 3:
            server.runs[run_id]["state"], server.workflow = "SUCCEEDED", states[-1]

    server.before = before
    shown: list[str] = []
    show_logs(kfp, run_id, "train", follow=True, out=shown.append, err=lambda line: None, polling=Polling(interval_seconds=0.01))
    assert shown == text
    assert len(looks) == 4


def _runs(attempt: Attempt, step: str) -> bool:
    return attempt.step == step and attempt.phase == "Running" and not attempt.is_driver
