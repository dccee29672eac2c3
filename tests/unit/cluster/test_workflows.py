"""The steps of a run and their last errors, from Workflows as a real cluster showed them."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from recorded_workflows import recorded, workflow_states

from components.cluster.failures import last_error, step_errors, step_lines
from components.cluster.workflows import attempts, form_of, nodes_of
from training import storage


def _no_log(pod: str) -> str:
    return ""


def _compressed(workflow: dict[str, Any]) -> dict[str, Any]:
    """The Workflow as Argo stores a large one: it writes the nodes as gzipped JSON in base64, and leaves `nodes` out."""
    text = base64.b64encode(gzip.compress(json.dumps(workflow["status"]["nodes"]).encode())).decode()
    return {**workflow, "status": {**workflow["status"], "nodes": None, "compressedNodes": text}}


def test_compressed_nodes_are_the_same_nodes() -> None:
    largest = max(workflow_states("ablation-of-four-trials"), key=lambda each: len(each["status"].get("nodes") or {}))
    assert len(nodes_of(largest)) == 82
    assert nodes_of(_compressed(largest)) == nodes_of(largest)
    assert attempts(_compressed(largest)) == attempts(largest)


def test_a_workflow_without_nodes_has_no_steps() -> None:
    assert attempts(workflow_states("bad-source-failed")[0]) == []


def test_a_workflow_that_kfp_did_not_make_has_no_form() -> None:
    assert form_of({"spec": {"templates": [{"dag": {"tasks": [{"name": "a", "template": "b"}]}}]}}) == {}


def test_steps_have_their_names_and_those_of_a_loop_the_number_of_their_item() -> None:
    largest = max(workflow_states("ablation-of-four-trials"), key=lambda each: len(each["status"].get("nodes") or {}))
    steps = {attempt.step for attempt in attempts(largest)}
    assert {"list-data", "plan-ablation", "preprocess (1)", "train-trial (1)", "train-trial (4)"} <= steps
    assert not [step for step in steps if "executor" in step or "." in step]


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("exit-handler-1-driver", "steps"),
        ("for-loop-2(0).iteration-driver", "data-sets"),
        ("for-loop-3(0).iteration-driver", "trials"),
        ("for-loop-3(0).iteration-iterations(1:1)(0).iteration-item-driver", "trials (2)"),
        ("for-loop-3(0).iteration-iterations(1:1)(0).iteration-item(0).train-trial-driver", "train-trial (2)"),
    ],
)
def test_a_failed_driver_of_a_loop_or_a_group_has_the_name_that_kfps_page_shows(driver: str, name: str) -> None:
    workflow = workflow_states("sweep")[-1]
    failed = [node for node in nodes_of(workflow).values() if re.search(rf"\.{re.escape(driver)}(\(0\))?$", node["name"])]
    assert [node["type"] for node in sorted(failed, key=lambda node: len(node["name"]))] == ["Retry", "Pod"]
    for node in failed:
        node.update(phase="Failed", message="main: Error (exit code 1)")
    log = "F1128 10:15:11.1 1 main.go:87] KFP driver: the metadata store is away"
    assert step_errors(workflow, lambda pod: log) == {name: "KFP's driver: the metadata store is away"}


def test_a_group_without_a_name_of_its_own_has_the_one_in_the_workflow() -> None:
    workflow = workflow_states("sweep")[-1]
    for template in workflow["spec"]["templates"]:
        for task in (template.get("dag") or {}).get("tasks") or ():
            for given in (task.get("arguments") or {}).get("parameters") or ():
                if given["name"] == "task":
                    given["value"] = json.dumps({key: value for key, value in json.loads(given["value"]).items() if key != "taskInfo"})
    steps = {attempt.step for attempt in attempts(workflow) if attempt.is_driver}
    assert {"exit-handler-1", "for-loop-2", "for-loop-2 (1)", "for-loop-3", "for-loop-3 (2)", "train-trial (2)"} <= steps


@pytest.mark.parametrize(
    ("recording", "errors"),
    [
        ("bad-source-failed", {"preprocess": "main: Error (exit code 1)"}),
        ("mlflow-away", {"evaluate": "main: Error (exit code 1)", "close-run": "main: Error (exit code 1)"}),
        ("worker-killed-then-step-pod-deleted", {"train": "Max duration limit exceeded"}),
        ("train-local-succeeded", {}),
    ],
)
def test_without_a_log_argos_words_are_the_error(recording: str, errors: dict[str, str]) -> None:
    assert step_errors(workflow_states(recording)[-1], _no_log) == errors


def test_a_killed_steps_error_is_why_it_was_killed_and_then_its_log() -> None:
    logs = {"iddpm-train-fdcfl-retry-system-container-impl-2955592534": "step 400 of 3,000\n"}
    workflow = workflow_states("worker-killed-then-step-pod-deleted")[-1]
    assert step_errors(workflow, lambda pod: logs[pod]) == {"train": "Max duration limit exceeded (its log ends with: step 400 of 3,000)"}


def test_the_error_of_a_driver_is_its_own_words_without_those_of_the_calls_around_it() -> None:
    log = recorded("workflows", "driver-refused-failed")["driver_log"]
    (error,) = step_errors(workflow_states("driver-refused-failed")[-1], lambda pod: log).values()
    assert error.startswith("KFP's driver: driver.RootDAG(pipelineName=iddpm-train, ")
    assert error.endswith('"error reading server preface: read tcp 10.244.0.78:36578->10.96.55.125:8080: read: connection reset by peer"')


def test_the_names_of_pods_are_those_of_the_cluster() -> None:
    pods = {attempt.pod for attempt in attempts(workflow_states("worker-killed-then-step-pod-deleted")[-1])}
    refused = [attempt for attempt in attempts(workflow_states("plugin-env-collision-then-cancelled")[-1]) if "invalid" in attempt.message]
    assert refused
    assert all(f'Pod "{attempt.pod}" is invalid' in attempt.message for attempt in refused)
    assert "iddpm-train-fdcfl-retry-system-container-impl-2351451155" in pods


def test_the_log_of_a_pod_that_is_gone_is_read_where_the_driver_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = recorded("workflows", "bad-source-failed")
    workflow = workflow_states("bad-source-failed")[-1]
    node = workflow["status"]["nodes"]["iddpm-train-mxm94-2853953927"]
    patch = recording["driver_pod_spec_patches"]["iddpm-train-mxm94(0).root(0).exit-handler-1(0).preprocess-driver(0)"]
    node["inputs"] = {"parameters": [{"name": "pod-spec-patch", "value": patch}]}  # recorded apart from its node
    (uri,) = [attempt.log_uri for attempt in attempts(workflow) if attempt.step == "preprocess" and attempt.log_uri]
    assert uri.startswith("s3://iddpm/kfp/iddpm-train/6a90ab8b-6e96-480c-b043-47fb797f266f/preprocess/")
    assert uri.endswith("/executor-logs-0")
    asked: list[str] = []

    def read_bytes(where: str) -> bytes:
        asked.append(where)
        return b"UserError: no images\n"

    monkeypatch.setattr(storage, "read_bytes", read_bytes)
    assert step_errors(workflow, _no_log) == {"preprocess": "UserError: no images"}
    assert asked == [uri]


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ("one\nKilled\n\n", "Killed"),
        ("", ""),
        ("Traceback (most recent call last):\n  File\na.b.FidError: no such model\nexit status 1", "FidError: no such model"),
        ("last words\nF1126 06:43:59.1 1 main.go:49] failed to execute component: exit status 1", "last words"),
        ("fine\nF1126 06:43:59.1 1 main.go:49] failed to execute component: signal: killed", "fine"),
        (
            f"fine\nF1126 06:43:59.1 m.go:5] failed to execute component: failed to upload {'a' * 500}: AccessDenied: no such role\nError",
            f"KFP's launcher: failed to upload {'a' * 183} ... {'a' * 172}: AccessDenied: no such role",
        ),
    ],
)
def test_the_last_error_of_a_log(log: str, error: str) -> None:
    assert last_error(log) == error


def test_a_step_s_lines_are_those_without_what_kfp_and_argo_write_around_them() -> None:
    log = """\
time=2026-11-26T19:41:15.745Z level=INFO msg="capturing logs" argo=true
I1126 19:41:15.828115      16 main.go:67] Setting log level to: '1'
[KFP Executor 2026-11-26 19:41:16,032 INFO]: Looking for component `report` in --component_module_path `/tmp/x/ephemeral_component.py`
[KFP Executor 2026-11-26 19:41:16,032 INFO]: Got executor_input:
{
    "inputs": {
        "parameterValues": {
            "run": "{}"
        }
    }
}
[KFP Executor 2026-11-26 19:41:21,991 INFO]: Found credentials in environment variables.
[KFP Executor 2026-11-26 19:41:22,991 WARNING]: a library warns
iddpm| the report is s3://iddpm/runs/x/evaluations/report.html
[KFP Executor 2026-11-26 19:41:30,217 INFO]: Wrote executor output file to /s3/iddpm/kfp/x/output_metadata.json.
I1126 19:41:33.492270      16 launcher_v2.go:1230] ExecutorOutput: {
  "parameterValues": {
    "Output": "done"
  }
}
I1126 19:41:33.492512      16 launcher_v2.go:867] Executing uploadOutputArtifacts attempt: 1
"""
    assert step_lines(log) == [
        "[KFP Executor 2026-11-26 19:41:22,991 WARNING]: a library warns",
        "iddpm| the report is s3://iddpm/runs/x/evaluations/report.html",
    ]
