"""A cluster on which a recorded scenario is driven again: it says what was recorded, and its time passes while the drive waits.

What was not recorded is taken from what was: pods of steps are those that the Workflow's nodes name, and a training whose log was not kept
has that of another recorded training. Objects that a drive makes are there as it sent them.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import typer
import yaml
from conformance.cluster import RAYJOB
from conformance.record import NODE_NAME, Record, is_try, nodes_of
from fake_kfp import FakeKfp, Request
from fake_kubernetes import NAMESPACE, FakeKubernetes
from recorded_workflows import kfp_answer
from replay import Replay

from pipelines.cli.main import app

_RECORDINGS = Path(__file__).parents[1] / "recordings"
_RUNS = Path(__file__).parents[2] / "k8s" / "base" / "runs"
_WORKFLOW = "workflows.argoproj.io/workflow"
_SERVICES = "/apis/apps/v1/namespaces/iddpm"
_LOG_BEGINS = re.compile(r'^(?=\S+Z time=\S+ level=INFO msg="capturing logs")', re.MULTILINE)
_EXECUTOR = re.compile(r"([\w-]+)(\([\d:]+\))?\.executor\((\d+)\)$")
_EXIT_CODE = "\nexit code "
_OF_EVERY_RUN = ("storage_root_uri=", "tracking_experiment=", "experiment_file=", "seed=")
_NOTED_LOGS = {"gc": "job", "model": "pod"}
"""End of a name of a pod that the drive makes -> name under which its log was noted, where they differ."""

Lines = list[tuple[float, str]]


class AcceptedError(Exception):
    """A command has checked all its arguments and would send them."""


@dataclass(frozen=True)
class _Process:
    returncode: int
    has_ended: Callable[[], bool]

    def poll(self) -> int | None:
        return self.returncode if self.has_ended() else None

    def terminate(self, *seconds: float) -> None:
        """Do nothing: only a drive that has failed ends its commands."""

    wait = kill = terminate


class RecordedCluster(FakeKubernetes):
    """The cluster of one recorded scenario.

    Attributes:
        record: The recording.
        now: The time there, in seconds since 1970.
        done: What the drive has done, in order: commands, changes of objects, programs run in pods, and calls of KFP and MLflow.
        look: Called at each recorded change, as a recorder looks.
    """

    def __init__(self, name: str) -> None:
        super().__init__(queues={})
        self.record = Record.load(_RECORDINGS, name)
        self.done: list[str] = []
        self.look: Callable[[], None] = lambda: None
        self._replay = Replay(self.record)
        self.now = min(self._replay.times, default=0.0) - 60
        self._gone: set[str] = set()
        self._made: dict[str, dict[str, Any]] = {}
        for kind, service in (("deployments", "mlflow"), ("statefulsets", "seaweedfs")):
            self._made[f"{_SERVICES}/{kind}/{service}"] = {"spec": {"replicas": 1}, "status": {"readyReplicas": 1}}
        for file in ("gc.yaml", "reaper.yaml"):
            for each in yaml.safe_load_all((_RUNS / file).read_text()):
                if each["kind"] == "CronJob":
                    self._made[f"/apis/batch/v1/namespaces/{NAMESPACE}/cronjobs/{each['metadata']['name']}"] = each
        self._names = _names(self.record)
        self._step_logs = _logs(self.record)
        texts = self.record.texts
        self._commands = [text for key, text in texts.items() if _EXIT_CODE in text and not key.startswith("submit")]
        self._executed = [texts[key] for key in ("killed", "stopped", "head", "worker") if key in texts]
        self._show(self.now)

    # -- time ----------------------------------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """Let time pass, with a look at each recorded change."""
        end = self.now + seconds
        for change in [each for each in self._replay.times if self.now < each <= end]:
            self._show(change)
            self.look()
        self._show(end)

    def _show(self, at: float) -> None:
        with self.lock:
            self.now = at
            self.workflows = self._replay.workflows(at)
            self.rayjobs = {name: each for name, each in self._replay.rayjobs(at).items() if name not in self._gone}
            replayed = {**self._step_pods(), **self._replay.pods(at)}
            owners = {name: states[0]["owner"] for name, states in self.record.pods.items()}
            self.pods = {name: pod for name, pod in replayed.items() if not {name, owners.get(name)} & self._gone}
            self.pods |= {each["metadata"]["name"]: each for path, each in self._made.items() if "/pods/" in path}
            logs = self._step_logs | {name: self._noted_log(name) for name in self.pods if name.startswith("iddpm-conformance-")}
            self.logs = {name: [line for when, line in lines if when <= at] for name, lines in logs.items()}

    def _step_pods(self) -> dict[str, dict[str, Any]]:
        pods = {}
        for recording in self.record.workflows:
            item = self.workflows.get(recording["workflow"], {"status": {}})
            for node in nodes_of(item["status"]).values():
                if node["type"] != "Pod" or node["phase"] == "Pending":
                    continue
                labels = {"pipeline/runid": item["metadata"]["labels"]["pipeline/runid"], _WORKFLOW: recording["workflow"]}
                name, step = _pod_name(node), node["name"].removesuffix(")").rpartition(".executor(")[0].removesuffix("(0)")
                image = re.search(r'"image":"([^"]+)"', recording["driver_pod_spec_patches"].get(f"{step}-driver", ""))
                annotations = {NODE_NAME: node["name"]}
                pods[name] = {
                    "metadata": {"name": name, "uid": name, "labels": labels, "annotations": annotations, "resourceVersion": node["phase"]},
                    "spec": {"containers": [{"name": "main", "image": image[1] if image else ""}]},
                    "status": {"phase": {"Error": "Failed"}.get(node["phase"], node["phase"])},
                }
        return pods

    def _noted_log(self, pod: str) -> Lines:
        end = pod.rpartition("-")[2]
        return _lines(self.record.texts.get(_NOTED_LOGS.get(end, end), "").partition("\nthe job's end: ")[0])

    # -- Kubernetes ----------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        """Answer a request; what a drive may change is there, or the answer is 404."""
        with self.lock:
            if method == "GET":
                return (200, self._made[path]) if path in self._made else super().answer(method, path, query, body)
            kind, name = path.removesuffix("/eviction").split("/")[-2:]
            if method == "POST" and not path.endswith("/eviction"):
                kind, name = name, body["metadata"]["name"]
                if f"{path}/{name}" in self._made:
                    return 409, {"message": f"{name} is there already"}
                self._make(f"{path}/{name}", kind, body)
            elif (there := self._made.get(path)) is not None:
                if method == "DELETE":
                    del self._made[path]
                else:
                    _merge(there, body)
                    if kind in ("deployments", "statefulsets"):
                        there["status"] = {"readyReplicas": there["spec"]["replicas"]}
            elif method != "PATCH" and name in {"pods": self.pods, "rayjobs": self.rayjobs}.get(kind, {}):
                self._gone.add(name)
            else:
                return 404, {"message": f"{path} is not there"}
            changes = body["spec"].items() if method == "PATCH" else ()
            changed = [key if isinstance(value, list) else f"{key}={value}" for key, value in changes]
            self._note(method, f"{kind}/{name}{'/eviction' if path.endswith('/eviction') else ''}", *changed)
            self._show(self.now)
            return 200, {}

    def _make(self, path: str, kind: str, body: Mapping[str, Any]) -> None:
        """Keep an object, with what Kubernetes says of it a moment later."""
        name = body["metadata"]["name"]
        item = {**body, "metadata": {"uid": name, "labels": {}, **body["metadata"]}}
        if kind == "pods":
            for container in body.get("spec", {}).get("containers", ()):
                compile(container["command"][-1], name, "exec")
            item["status"] = {"phase": "Running" if name.endswith("webhook") else "Succeeded", "podIP": "10.0.0.1"}
        if kind == "jobs":
            item["status"] = {"conditions": [{"type": "Complete"}]}
            metadata = {"name": name, "labels": {"batch.kubernetes.io/job-name": name}}
            self._make(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}", "pods", {"metadata": metadata})
        self._made[path] = item

    def execute(self, _: object, pod: str, namespace: str, *, command: Sequence[str], **more: object) -> str:
        """Stand in for `kubernetes.stream.stream`."""
        compile(command[-1], pod, "exec")
        self._note("execute in", pod, *re.findall(r"SIG(?:STOP|CONT|KILL)", command[-1])[:1])
        return self._executed.pop(0) if self._executed else ""

    def _note(self, *words: str) -> None:
        line = " ".join(words)
        for name in sorted(self._names, key=len, reverse=True):
            line = line.replace(name, self._names[name])
        if not line.startswith("iddpm runs") or line not in self.done[-1:]:  # one drive waits by looking at this list
            self.done.append(line)

    # -- commands ------------------------------------------------------------------------------------------------------

    def run(self, command: Sequence[str], **more: object) -> subprocess.CompletedProcess[str]:
        """Stand in for `subprocess.run`: what a command printed was noted in the order of the commands, or nothing of it was."""
        words = self._accepted(command)
        text = self._commands.pop(0) if self._commands else self._printed(words)
        output, _, code = text.partition(_EXIT_CODE)
        end = json.JSONDecoder().raw_decode(output)[1] if output[:1] in ("{", "[") else len(output)
        return subprocess.CompletedProcess(command, int(code or 0), output[:end], output[end:])

    def start(self, command: Sequence[str], *, stdout: IO[bytes], **more: object) -> _Process:
        """Stand in for `subprocess.Popen`: the command prints what was recorded, and ends when the Workflow first ends."""
        self._accepted(command)
        number = int(str(stdout.name).rpartition("-")[2].removesuffix(".txt"))
        output, _, code = self.record.texts["submit" if number == 1 else f"submit {number}"].rpartition(_EXIT_CODE)
        stdout.write(output.encode())
        states = self.record.workflows[number - 1]["states"]
        end = next(state["at"] for state in states if state["status"].get("phase") in ("Succeeded", "Failed", "Error"))
        return _Process(int(code), lambda: self.now >= end)

    def _accepted(self, command: Sequence[str]) -> list[str]:
        """Note a command and return its words; `iddpm` itself refuses options and arguments that it does not know."""
        words = list(command[3:])
        given = words[: words.index("--kfp-namespace")]
        self._note("iddpm", *(_asked(given) if given[0] in ("submit", "schedule") else given))
        parser: Any = typer.main.get_command(app)
        context = parser.make_context("iddpm", list(words))
        while hasattr(parser, "commands"):
            name, parser, words = parser.resolve_command(context, words)
            context = parser.make_context(name, list(words), parent=context)
        if given[0] == "submit":  # which also checks the parameters of its pipeline
            with context, pytest.raises(AcceptedError):
                parser.invoke(context)
        return given

    def _printed(self, words: Sequence[str]) -> str:
        """Return what a drive reads of a command whose output was not noted, as the recorded runs have it."""
        schedules = {run["run_id"]: str(run["recurring_run_id"]) for run in self.record.runs if "recurring_run_id" in run}
        if words[0] == "runs":
            found = [each["metadata"]["labels"]["pipeline/runid"] for each in self.workflows.values()]
            state = self.record.texts.get("runs", "running")
            return json.dumps([{"run_id": run_id, "state": state, "schedule_id": schedules.get(run_id, "")} for run_id in found])
        if words[0] == "submit":
            return json.dumps({"run_id": self.record.workflows[-1]["states"][-1]["labels"]["pipeline/runid"]})
        return {"create": json.dumps({"schedule_id": "".join(schedules.values())}), "delete": "deleted"}.get(words[1], "")

    # -- KFP and MLflow ------------------------------------------------------------------------------------------------

    def answer_for_kfp(self, server: FakeKfp, request: Request) -> None:
        """Let KFP know the runs as they are now; at their end it says what was recorded."""
        if request.method == "POST":
            self._note("KFP", request.path)
        ends = {run["run_id"]: run for run in self.record.runs}
        for recording in self.record.workflows:
            if item := self.workflows.get(recording["workflow"]):
                run_id = item["metadata"]["labels"]["pipeline/runid"]
                answer = {"run_id": run_id, **kfp_answer(item)}
                server.runs[run_id] = ends.get(run_id, answer) if recording["states"][-1]["at"] <= self.now else answer

    def ask_mlflow(self, method: str, url: str, json: Mapping[str, Any] | None = None, **more: object) -> SimpleNamespace:
        """Stand in for `requests.request`: MLflow's runs are there as they were at the end."""
        assert self._made[f"{_SERVICES}/deployments/mlflow"]["spec"]["replicas"], "MLflow was asked while it is away"
        path = url.partition("/api/2.0/mlflow/")[2]
        answer: dict[str, Any] = {}
        if path.startswith("experiments/get-by-name"):
            answer = {"experiment": {"experiment_id": "1"}}
        elif path == "runs/search":
            wanted = re.findall(r"'(\S+)'", (json or {}).get("filter", ""))
            answer = {"runs": self._tracked(wanted[0]) if wanted else self.record.mlflow}
        elif method != "GET" and json is not None:
            self._note(method, f"mlflow/{path}")
        return SimpleNamespace(json=lambda: answer)

    def _tracked(self, run_id: str) -> list[dict[str, Any]]:
        runs = self.record.mlflow or []
        found = [run for run in runs if {"key": "kfp.pipeline_run_id", "value": run_id} in run["data"]["tags"]]
        # A run that was evaluated again has the id of the second run of KFP; that it had the first one's was noted.
        evaluated_again = self.record.texts.get("same run", "").partition(" ")[0]
        found = found or [run for run in runs if run["info"]["run_id"] == evaluated_again]
        # A run that the drive deletes was not there at the end; its directory was noted.
        directory = json.loads(self.record.texts.get("directories", "{}")).get("given up")
        if found or directory is None or "POST mlflow/runs/delete" in self.done:
            return found
        return [{"info": {"run_id": "given up"}, "data": {"tags": [{"key": "iddpm.run_uri", "value": directory}]}}]


def _asked(words: Sequence[str]) -> list[str]:
    """Return the words of a command that starts a run which tell it from other runs, each not too long to read."""
    given = [value for option, value in itertools.pairwise(words) if option in ("--param", "--resources")]
    own = [value for value in given if not value.startswith(_OF_EVERY_RUN)]
    return [*words[:2], *(value.replace(RAYJOB, "RAYJOB").replace(RAYJOB[:-2], "RAYJOB")[:60] for value in own)]


def _logs(record: Record) -> dict[str, Lines]:
    """Return the logs of a recording's steps by pod: those that were noted, and another training's for trainings without one."""
    nodes = [node for number in range(len(record.workflows)) for node in record.nodes(number) if _EXECUTOR.search(node["name"])]
    nodes = sorted((node for node in nodes if node["type"] == "Pod" and node.get("startedAt")), key=_started)
    found: dict[str, Lines] = {}
    for lines in [_lines(log) for text in record.texts.values() for log in _LOG_BEGINS.split(text)[1:]]:
        begun = [_pod_name(node) for node in nodes if _started(node) <= lines[0][0] and _pod_name(node) not in found]
        found[begun[-1]] = lines
    for node in nodes:
        if is_try(node["name"], "train") and _pod_name(node) not in found:
            found[_pod_name(node)] = [(_started(node) + after, line) for after, line in _training(bool(record.rayjobs))]
    return found


@functools.cache
def _training(is_rayjob: bool) -> Lines:
    """Return the log of a recorded training, with seconds since its pod was made."""
    name, number = ("ray_worker_killed", 0) if is_rayjob else ("retry", 1)
    record = Record.load(_RECORDINGS, name)
    node = record.tries("train", number)[-1]
    return [(at - _started(node), line) for at, line in _logs(record)[_pod_name(node)]]


def _lines(text: str) -> Lines:
    """Return the lines of a log with their times; one without is there from the start."""
    lines: Lines = []
    for line in text.splitlines():
        stamp = re.match(r"(\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6})\d*Z ", line)
        lines.append((datetime.fromisoformat(f"{stamp[1]}+00:00").timestamp() if stamp else 0.0, line))
    return lines


def _started(node: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(node["startedAt"].replace("Z", "+00:00")).timestamp()


def _pod_name(node: Mapping[str, Any]) -> str:
    workflow, _, number = node["id"].rpartition("-")
    return f"{workflow}-{node['templateName']}-{number}"


def _names(record: Record) -> dict[str, str]:
    """Return the names of a recording's runs, RayJobs and pods, and how to call them in a test."""
    names = dict.fromkeys(record.rayjobs, "rayjob")
    for kind in ("ray-head", "ray-worker", "submitter"):
        names |= {name: f"{kind} {number}" for number, name in enumerate(record.pods_of(kind), start=1)}
    for number, workflow in enumerate(record.workflows):
        names[workflow["states"][-1]["labels"]["pipeline/runid"]] = run = f"run {number + 1}"
        for node in record.nodes(number):
            if node["type"] == "Pod" and (step := _EXECUTOR.search(node["name"])):
                names[_pod_name(node)] = f"{step[1]} {int(step[3]) + 1}" + f" of {run}" * (len(record.workflows) > 1)
    return names


def _merge(there: dict[str, Any], change: Mapping[str, Any]) -> None:
    """Change an object as a merge patch does."""
    for key, value in change.items():
        if isinstance(value, Mapping):
            _merge(there.setdefault(key, {}), value)
        elif value is None:
            there.pop(key, None)
        else:
            there[key] = value
