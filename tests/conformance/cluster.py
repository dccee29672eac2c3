"""The cluster that the scenarios run on: its API, `iddpm` as a user calls it, MLflow, and a recorder of all that it says.

Everything that a scenario changes is put back when it ends, also by Ctrl-C: `Cluster.undo` holds how.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import requests
import tenacity
import urllib3
from conformance.record import NODE_NAME, Record, is_try, nodes_of, pod_spec_patches, short_nodes
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from components.cluster.connection import connect
from components.cluster.names import MANAGED_BY
from pipelines.client.kfp_client import Kfp
from pipelines.client.runs import terminate

T = TypeVar("T")

_POLL_SECONDS, _EVENTS_SECONDS = 2.0, 30.0
_REPLICAS = "iddpm-conformance/replicas"
_SUSPENDED = "iddpm-conformance/suspended"
_BEFORE = "iddpm-conformance/before"
"""Annotations for a session that was killed: the number of replicas to go back to, the suspension, and the Secret that was there."""
_LABEL = "iddpm-conformance"
_WORKFLOW = "workflows.argoproj.io/workflow"
_STEP_LINE = re.compile(r"^(\S+) .*\bstep ([\d,]+)/[\d,]+ ", re.MULTILINE)

EXPERIMENT = """\
base = "digits-tiny-hybrid-cosine"
name = "conformance"

[evaluation]
num_samples = 200
scoring_num_samples = 100
likelihood_num_images = 20
likelihood_steps = 10
"""
"""The smallest sizes that show the effect: 8x8 digits, a network of two levels, 100 samples a score."""

RAYJOB = json.dumps(
    {
        "profile": "rayjob-2xcpu",
        "num_workers": 1,
        "num_threads": 1,
        "memory": "2Gi",
        "rayjob": {"head_cpu": "500m", "head_memory": "3Gi", "scratch_size": "4Gi"},
    }
)
"""Train resources of the smallest Ray cluster: 2 cores for the worker, half a core each for head, submitter and step.

One thread: two are little faster on so small a network, and many times slower where they wait for each other on busy cores.
"""


_RECEIVER_KEY = "key-of-the-conformance-receiver"
_RECEIVER_NAME = "iddpm-conformance-webhook"
_RECEIVER = f"""
import base64, collections, hmac, http.server
refused = collections.Counter()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        ident = self.headers["webhook-id"]
        signed = f"{{ident}}.{{self.headers['webhook-timestamp']}}.".encode() + body
        signature = "v1," + base64.b64encode(hmac.new(b"{_RECEIVER_KEY}", signed, "sha256").digest()).decode()
        refused[ident] += 1
        verdict = "refused" if refused[ident] <= REFUSALS else "signed" if signature == self.headers["webhook-signature"] else "forged"
        print(verdict, body.decode(), flush=True)
        self.send_response(503 if verdict == "refused" else 200)
        self.end_headers()
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


class NotSeenError(RuntimeError):
    """An event that a scenario waited for did not come; the message names it."""


class NotHereError(RuntimeError):
    """The cluster can't show what the scenario is about; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a session.

    Attributes:
        namespace: Namespace of the pods of runs.
        services_namespace: Namespace of MLflow and, if it is on the cluster, S3.
        image: The project's image, as the nodes know it.
        other_image: Another name or build of it, for what changes the image of a run.
        bucket: Where data and runs are written, below a folder of the session's own.
        gap_seconds: Time between the two deletions of a step's pod.
        away_seconds: How long MLflow and S3 are away.
        session: Name of this session.
        folder: Where the table, recordings and outputs of commands are written.
    """

    namespace: str
    services_namespace: str
    image: str
    other_image: str
    bucket: str
    gap_seconds: float
    away_seconds: float
    session: str
    folder: Path

    @property
    def storage_root_uri(self) -> str:
        """Folder of the session in S3."""
        return f"{self.bucket}/conformance/{self.session}"

    @property
    def tracking_experiment(self) -> str:
        """MLflow's experiment of the session."""
        return f"conformance-{self.session}"


@dataclass
class Run:
    """A run that `iddpm submit` started and follows.

    Attributes:
        run_id: KFP's id.
        process: The command.
        output: File with its output.
    """

    run_id: str
    process: subprocess.Popen[bytes]
    output: Path


@dataclass
class Cluster:
    """One cluster in one session.

    Attributes:
        settings: The settings.
        kfp: Connection to KFP.
        mlflow_url: Returns MLflow's address, after it has opened the way to it.
        record: What the running scenario has seen.
        undo: Puts back what the running scenario has changed.
        steps_per_second: Pace of a training here; 0 until it was measured.
    """

    settings: Settings
    kfp: Kfp
    mlflow_url: Callable[[], str]
    record: Record = field(default_factory=lambda: Record(name=""))
    undo: ExitStack = field(default_factory=ExitStack)
    steps_per_second: float = 0.0
    run_ids: list[str] = field(default_factory=list)
    _seeds: int = field(default_factory=lambda: int(time.time()) % 10**8)
    _api: client.ApiClient = field(default_factory=connect)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def wait(self, what: str, look: Callable[[], T], seconds: float) -> T:
        """Look until there is something, and return it.

        Raises:
            NotSeenError: The time is over.
        """
        print(f"    waiting until {what}", flush=True)
        end = time.monotonic() + seconds
        while True:
            if found := look():
                return found
            if time.monotonic() > end:
                raise NotSeenError(f"after {seconds:.0f} s it was not seen that {what}")
            time.sleep(_POLL_SECONDS)

    def last(self, seconds: float, what: str) -> None:
        """Let a disturbance last for a time that the scenario is about."""
        print(f"    {what} for {seconds:.0f} s", flush=True)
        time.sleep(seconds)

    # -- Kubernetes ----------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: str) -> dict[str, Any] | None:
        """Send a request to the Kubernetes API, again while the server does not answer; None if the object is not there."""

        def send() -> Any:
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            return self._api.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": kind},
                body=body,
                auth_settings=["BearerToken"],
                response_type="object",
                _return_http_data_only=True,
                _request_timeout=(5.0, 60.0),
            )

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass), stop=tenacity.stop_after_delay(180), wait=tenacity.wait_fixed(2), reraise=True
        )
        try:
            answer: dict[str, Any] = retrying(send)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return answer

    def items(self, path: str, **query: str) -> list[dict[str, Any]]:
        """Return the objects of a list."""
        return list((self.call("GET", path, None, **query) or {}).get("items", []))

    def path_of(self, kind: str) -> str:
        """Return the API's path of the pods, RayJobs, ... of the namespace."""
        groups = {"workflows": "/apis/argoproj.io/v1alpha1", "rayjobs": "/apis/ray.io/v1"}
        groups |= dict.fromkeys(("jobs", "cronjobs"), "/apis/batch/v1")
        return f"{groups.get(kind, '/api/v1')}/namespaces/{self.settings.namespace}/{kind}"

    def workflow(self, run_id: str) -> dict[str, Any] | None:
        """Return the Workflow of a run, or None."""
        found = self.items(self.path_of("workflows"), labelSelector=f"pipeline/runid={run_id}")
        return found[0] if found else None

    def try_of(self, run_id: str, task: str, *, after: str = "") -> dict[str, Any] | None:
        """Return the pod in which a step runs, or None.

        Args:
            run_id: The run.
            task: The step.
            after: Name of a pod that must not be returned: an earlier try.
        """
        for pod in self.items(self.path_of("pods"), labelSelector=f"pipeline/runid={run_id}"):
            metadata = pod["metadata"]
            is_here = pod["status"]["phase"] == "Running" and not metadata.get("deletionTimestamp")
            if is_here and metadata["name"] != after and is_try((metadata.get("annotations") or {}).get(NODE_NAME, ""), task):
                return pod
        return None

    def rayjobs(self) -> dict[str, dict[str, Any]]:
        """Return the RayJobs of the scenario's runs."""
        owners = {each["workflow"] for each in self.record.workflows}
        found = self.items(self.path_of("rayjobs"), labelSelector=MANAGED_BY)
        return {
            each["metadata"]["name"]: each
            for each in found
            if any(owner["name"] in owners for owner in each["metadata"].get("ownerReferences") or ())
        }

    def ray_pods(self, node_type: str = "") -> list[dict[str, Any]]:
        """Return the pods of these RayJobs: all, or those of type "head", "worker" or "submitter"."""
        names = set(self.record.rayjobs)
        found = [each for each in self.items(self.path_of("pods"), labelSelector=MANAGED_BY) if _ray_owner(each) in names]
        return [each for each in found if not node_type or _kind(each).removeprefix("ray-") == node_type]

    def make(self, path: str, item: Mapping[str, Any]) -> None:
        """Make an object, which is deleted when the scenario ends; one that a session left is taken over.

        Args:
            path: The API's path of such objects.
            item: The object.
        """
        name = item["metadata"]["name"]
        self.undo.callback(self.call, "DELETE", f"{path}/{name}")
        try:
            self.call("POST", path, item)
        except ApiException as error:
            if error.status != 409:
                raise
            self.call("PATCH", f"{path}/{name}", item)

    def delete_pod(self, name: str) -> None:
        """Delete a pod as `kubectl delete pod` does."""
        print(f"    deleting pod {name}", flush=True)
        self.call("DELETE", f"{self.path_of('pods')}/{name}")

    def lose_ray_pod(self, node_type: str) -> None:
        """Delete the one pod of that type under a training that has a checkpoint, wait for the run's end, and note its steps' logs."""
        run = self.submit("--resources", f"train={RAYJOB}", *self.lasting(150))
        pod = self.training(run, step=100)
        self.first_score(pod)
        (lost,) = self.ray_pods(node_type)
        self.delete_pod(lost["metadata"]["name"])
        self.finish(run)
        self.record.texts["log"] = "\n".join(self.log(name) for name in self.record.pods_of("executor"))

    def evict_pod(self, name: str) -> None:
        """Evict a pod as `kubectl drain` does."""
        print(f"    evicting pod {name}", flush=True)
        metadata = {"name": name, "namespace": self.settings.namespace}
        path = f"{self.path_of('pods')}/{name}/eviction"
        self.call("POST", path, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata})

    def execute(self, pod: str, code: str, container: str = "main") -> str:
        """Run Python in a container of a pod, and return its output, also if the container ends meanwhile."""
        with contextlib.suppress(ApiException, OSError, ValueError):
            return str(
                stream(
                    client.CoreV1Api(connect()).connect_get_namespaced_pod_exec,
                    pod,
                    self.settings.namespace,
                    container=container,
                    command=["python", "-c", code],
                    stderr=True,
                    stdin=False,
                    stdout=True,
                    tty=False,
                    _request_timeout=120,
                )
            )
        return "the container ended"

    def log(self, pod: str, container: str = "main") -> str:
        """Return the log of a pod, with times; empty while there is none."""
        try:
            return str(
                client.CoreV1Api(self._api).read_namespaced_pod_log(
                    pod, self.settings.namespace, container=container, timestamps=True, _request_timeout=(5.0, 60.0)
                )
            )
        except (ApiException, urllib3.exceptions.HTTPError, OSError):
            return ""

    def scale_to_zero(self, kind: str, name: str) -> Callable[[], None]:
        """Take a service away, and return a function that brings it back. It is also called when the scenario ends.

        Args:
            kind: "deployments" or "statefulsets".
            name: Its name, in the namespace of the services.

        Raises:
            NotHereError: It is not on this cluster.
        """
        path = f"/apis/apps/v1/namespaces/{self.settings.services_namespace}/{kind}/{name}"
        found = self.call("GET", path)
        if found is None:
            raise NotHereError(f"there is no {kind[:-1]} {name} on this cluster")
        replicas = found["spec"]["replicas"]
        back = {"metadata": {"annotations": {_REPLICAS: None}}, "spec": {"replicas": replicas}}

        def restore() -> None:
            self.call("PATCH", path, back)
            self.wait(f"{name} is back", lambda: self._ready(path) >= replicas, 600)

        self.undo.callback(restore)
        self.call("PATCH", path, {"metadata": {"annotations": {_REPLICAS: str(replicas)}}, "spec": {"replicas": 0}})
        self.wait(f"{name} is away", lambda: self._ready(path) == 0, 300)
        return restore

    def suspend(self, cronjob: str) -> Callable[[], None]:
        """Let a CronJob start nothing, wait until what it has started is done, and return a function that lets it go on.

        The function is also called when the scenario ends.

        Raises:
            NotHereError: The CronJob is not on this cluster, or suspended already.
        """
        path = f"{self.path_of('cronjobs')}/{cronjob}"
        found = self.call("GET", path)
        if found is None or found["spec"].get("suspend"):
            raise NotHereError(f"CronJob {cronjob} of namespace {self.settings.namespace} is {'suspended' if found else 'not there'}")

        def resume() -> None:
            self.call("PATCH", path, {"metadata": {"annotations": {_SUSPENDED: None}}, "spec": {"suspend": False}})

        self.undo.callback(resume)
        self.call("PATCH", path, {"metadata": {"annotations": {_SUSPENDED: "true"}}, "spec": {"suspend": True}})
        self.wait(f"{cronjob} rests", lambda: not ((self.call("GET", path) or {}).get("status") or {}).get("active"), 300)
        return resume

    def _ready(self, path: str) -> int:
        return int(((self.call("GET", path) or {}).get("status") or {}).get("readyReplicas") or 0)

    def repair(self) -> None:
        """Put back what a session that was killed has left: replicas, suspended CronJobs, pods, Secret."""
        for kind in ("deployments", "statefulsets"):
            for each in self.items(f"/apis/apps/v1/namespaces/{self.settings.services_namespace}/{kind}"):
                replicas = (each["metadata"].get("annotations") or {}).get(_REPLICAS)
                if replicas is not None:
                    path = f"/apis/apps/v1/namespaces/{self.settings.services_namespace}/{kind}/{each['metadata']['name']}"
                    self.call("PATCH", path, {"metadata": {"annotations": {_REPLICAS: None}}, "spec": {"replicas": int(replicas)}})
                    self.wait(f"{each['metadata']['name']} is back", lambda path=path: self._ready(path) > 0, 600)  # type: ignore[misc]
        for each in self.items(self.path_of("cronjobs")):
            if _SUSPENDED in (each["metadata"].get("annotations") or {}):
                path = f"{self.path_of('cronjobs')}/{each['metadata']['name']}"
                self.call("PATCH", path, {"metadata": {"annotations": {_SUSPENDED: None}}, "spec": {"suspend": False}})
        for each in self.items(self.path_of("pods"), labelSelector=f"{_LABEL}=true"):
            path = f"{self.path_of('pods')}/{each['metadata']['name']}"
            self.call("DELETE", path, {"gracePeriodSeconds": 0})  # or its name would be taken for half a minute
        for each in self.items(self.path_of("secrets"), labelSelector=f"{_LABEL}=true"):
            self._put_back(each)

    def start_pod(self, name: str, code: str, *, cpu: str = "500m", memory: str = "512Mi") -> dict[str, Any]:
        """Start a pod of the project's image that runs Python with the credentials of a step; it is deleted when the scenario ends.

        Args:
            name: Its name.
            code: The Python program.
            cpu: Cores that it may use; it asks for a twentieth of one.
            memory: Memory that it may use; it asks for 256 MiB.
        """
        path = f"{self.path_of('pods')}/{name}"
        container = {
            "name": "main",
            "image": self.settings.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-u", "-c", code],
            "envFrom": [{"secretRef": {"name": "iddpm-s3", "optional": True}}, {"configMapRef": {"name": "iddpm-services"}}],
            "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": cpu, "memory": memory}},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        spec = {
            "containers": [container],
            "restartPolicy": "Never",
            "serviceAccountName": "pipeline-runner",
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        }
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {_LABEL: "true"}}, "spec": spec}
        if self.call("GET", path) is not None:  # before its deletion is noted: it may be another's
            raise NotHereError(
                f"pod {name} is there already: another conformance run works in namespace {self.settings.namespace}; wait for its end, "
                f"or delete what one left that was killed: kubectl -n {self.settings.namespace} delete pod -l {_LABEL}=true"
            )
        self.undo.callback(self.call, "DELETE", path, {"gracePeriodSeconds": 0})
        self.call("POST", self.path_of("pods"), body)

        def look() -> dict[str, Any]:
            pod = self.call("GET", path) or {}
            return pod if (pod.get("status") or {}).get("phase") in ("Running", "Succeeded", "Failed") else {}

        return self.wait(f"pod {name} runs", look, 300)

    def set_secret(self, name: str, values: Mapping[str, str]) -> None:
        """Create a Secret, in place of the one that may be there, for the time of the scenario."""
        path = f"{self.path_of('secrets')}/{name}"
        before = self.call("GET", path)
        metadata: dict[str, Any] = {"name": name, "labels": {_LABEL: "true"}}
        if before is not None:
            kept = {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": before["type"],
                "data": before.get("data") or {},
                "metadata": {"name": name},
            }
            metadata["annotations"] = {_BEFORE: json.dumps(kept)}
        ours = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": dict(values)}
        self.undo.callback(self._put_back, ours)
        if before is not None:
            self.call("DELETE", path)
        self.call("POST", self.path_of("secrets"), ours)

    def _put_back(self, ours: Mapping[str, Any]) -> None:
        """Delete a Secret of a scenario, and create the one that was there before."""
        self.call("DELETE", f"{self.path_of('secrets')}/{ours['metadata']['name']}")
        if before := (ours["metadata"].get("annotations") or {}).get(_BEFORE):
            self.call("POST", self.path_of("secrets"), json.loads(before))

    def start_webhook(self, *events: str, refusals: int = 0, hung_minutes: float | None = None) -> None:
        """Start a receiver of the webhook's messages, and tell the runs of the scenario to send them there.

        Args:
            *events: The events that are told.
            refusals: How often the receiver refuses each message before it takes it.
            hung_minutes: How long a training may log nothing; None leaves the hour.
        """
        receiver = self.start_pod(_RECEIVER_NAME, _RECEIVER.replace("REFUSALS", str(refusals)))
        address = f"http://{receiver['status']['podIP']}:8000/hook"
        hung = {} if hung_minutes is None else {"hung-minutes": f"{hung_minutes:g}"}
        self.set_secret("iddpm-webhook", {"url": address, "key": _RECEIVER_KEY, "events": " ".join(events), **hung})

    def webhook_log(self) -> str:
        """Return what the receiver got: a line a message, which begins with "signed", "forged" or "refused"."""
        return self.log(_RECEIVER_NAME)

    def told(self, run_id: str) -> list[str]:
        """Return the messages about a run that the receiver took."""
        return messages_about(self.webhook_log(), run_id)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def iddpm(self, *words: str, seconds: float = 300, note: str = "", tracked: bool = False) -> str:
        """Run a command on this cluster to its end, and return what it printed.

        Args:
            *words: The command.
            seconds: The longest time it may take.
            note: Name under which its output and exit code are recorded; empty records nothing.
            tracked: Tell it where the cluster's MLflow is.
        """
        environment = self._environment() | ({"MLFLOW_TRACKING_URI": self.mlflow_url()} if tracked else {})
        done = subprocess.run(self._command(words), capture_output=True, text=True, timeout=seconds, env=environment, check=False)
        if note:
            self.record.texts[note] = f"{done.stdout}{done.stderr}\nexit code {done.returncode}"
        return done.stdout

    def new_seed(self) -> int:
        """Return a seed that no run has had, so that nothing of it is done already."""
        self._seeds += 1
        return self._seeds

    def submit(self, *words: str, pipeline: str = "train", seed: int | None = None) -> Run:
        """Start a run by `iddpm submit`, which goes on to follow it.

        Args:
            *words: Further options.
            pipeline: The pipeline; "train" trains the session's experiment.
            seed: The training's seed; None takes a new one.
        """
        options = ["submit", pipeline, *words, "--param", f"storage_root_uri={self.settings.storage_root_uri}"]
        if pipeline != "compare":  # a comparison stands in the experiment of the first model
            options += ["--param", f"tracking_experiment={self.settings.tracking_experiment}"]
        if pipeline == "train":
            file = self.settings.folder / "conformance.toml"
            file.write_text(EXPERIMENT)
            options += ["--param", f"experiment_file={file}", "--param", f"seed={self.new_seed() if seed is None else seed}"]
        number = len(self.run_ids) + 1
        output = self.settings.folder / "output" / f"{self.record.name}-submit-{number}.txt"
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("wb") as written:
            process = subprocess.Popen(self._command(options), stdout=written, stderr=subprocess.STDOUT, env=self._environment())
        self.undo.callback(_end, process)

        def started() -> str:
            found = re.search(r"^run +(\S+)", output.read_text(), re.MULTILINE)
            if found is None and process.poll() is not None:
                raise NotSeenError(f"iddpm submit ended with {process.returncode}: {output.read_text()[-600:]}")
            return found[1] if found else ""

        run_id = self.wait("the run is submitted", started, 600)
        self.follow(run_id)
        return Run(run_id, process, output)

    def follow(self, run_id: str) -> None:
        """Record a run, and end it with the scenario."""
        self.run_ids.append(run_id)
        self.undo.callback(self._terminate, run_id)

    def finish(self, run: Run, seconds: float = 3600) -> None:
        """Wait until `iddpm submit` has ended, and note what it printed as "submit" (the second as "submit 2")."""
        self.wait("the run has ended", lambda: run.process.poll() is not None, seconds)
        number = self.run_ids.index(run.run_id) + 1
        self.record.texts["submit" if number == 1 else f"submit {number}"] = f"{run.output.read_text()}\nexit code {run.process.returncode}"

    def press_retry(self, run_id: str) -> None:
        """Do what the button Retry of KFP's page of a run does."""
        print(f"    KFP's Retry of {run_id}", flush=True)
        self.kfp.call_silently(self.kfp.client._run_api.run_service_retry_run, run_id)

    def end_of(self, run_id: str, seconds: float = 3600) -> None:
        """Wait until a run's Workflow has ended."""
        ended = ("Succeeded", "Failed", "Error")
        self.wait(
            "the Workflow has ended",
            lambda: (found := self.workflow(run_id)) and (found.get("status") or {}).get("phase") in ended,
            seconds,
        )

    def training(self, run: Run, *, step: int = 1, after: str = "", seconds: float = 1200) -> str:
        """Wait until a training is past a step, and return the pod of its step.

        Args:
            run: The run.
            step: Updates that it must have made.
            after: A pod that it must no longer run in.
            seconds: The longest time to wait.
        """

        def look() -> str:
            if run.process.poll() is not None:
                raise NotSeenError(f"the run ended before: {run.output.read_text()[-600:]}")
            pod = self.try_of(run.run_id, "train", after=after)
            return pod["metadata"]["name"] if pod and self.step_of(pod["metadata"]["name"]) >= step else ""

        return self.wait(f"the training is past step {step:,}" + (f" in another pod than {after}" if after else ""), look, seconds)

    def first_score(self, pod: str) -> None:
        """Wait until a training has a scored checkpoint, from which it can go on."""
        self.wait("a checkpoint was scored", lambda: "scored step" in self.log(pod), 900)

    def step_of(self, pod: str) -> int:
        """Return the last step that the log of a training's pod shows; 0 if there is none."""
        return max((step for _, step in self._progress(pod)), default=0)

    def lasting(self, seconds: float) -> list[str]:
        """Return options of a training that takes about so long here, with a checkpoint about every twenty seconds.

        With more of them a run on two cores ends long after its training, as it waits for the score of each checkpoint.
        """
        pace = self.steps_per_second or self._measure_pace()
        interval = max(20, int(pace * 20))
        steps = max(3, round(pace * seconds / interval)) * interval
        return ["--set", f"optim.num_steps={steps}", "--set", f"optim.checkpoint_interval={interval}"]

    def _measure_pace(self) -> float:
        """Measure how many updates a second a training makes here, by one that is cancelled."""
        print("    measuring the pace of a training here", flush=True)
        record, self.record, run_ids, self.run_ids = self.record, Record(name="pace"), self.run_ids, []
        outer, self.undo = self.undo, ExitStack()
        try:
            with self.undo:
                run = self.submit("--set", "optim.num_steps=1000000", "--set", "optim.checkpoint_interval=100000")
                pod = self.training(run)
                self.steps_per_second = self.wait("its pace is known", lambda: self.note_pace(pod), 300)
        finally:
            self.record, self.run_ids, self.undo = record, run_ids, outer
        return self.steps_per_second

    def note_pace(self, pod: str) -> float:
        """Note the pace of a training by its log; 0 if that has too little of it."""
        lines = self._progress(pod)
        seconds = lines[-1][0] - lines[0][0] if lines else 0.0
        if seconds >= 20:
            self.steps_per_second = (lines[-1][1] - lines[0][1]) / seconds
            print(f"    a training makes {self.steps_per_second:.1f} updates a second", flush=True)
        return self.steps_per_second

    def _progress(self, pod: str) -> list[tuple[float, int]]:
        return [
            (datetime.fromisoformat(time_[:26].rstrip("Z") + "+00:00").timestamp(), int(step.replace(",", "")))
            for time_, step in _STEP_LINE.findall(self.log(pod))
        ]

    def _terminate(self, run_id: str) -> None:
        workflow = self.workflow(run_id)
        if workflow and (workflow.get("status") or {}).get("phase") not in ("Succeeded", "Failed", "Error"):
            terminate(self.kfp, run_id)
            self.end_of(run_id, 600)
        for name in self.rayjobs():
            self.call("DELETE", f"{self.path_of('rayjobs')}/{name}")
        self.wait("no Ray pod is left", lambda: not self.ray_pods(), 300)

    def _command(self, words: Sequence[str]) -> list[str]:
        way = [] if os.environ.get("KF_PIPELINES_ENDPOINT") else ["--port-forward"]
        way += ["--kfp-namespace", self.settings.namespace]
        return [sys.executable, "-m", "pipelines.cli.main", *words, *way]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "IDDPM_IMAGE": self.settings.image, "IDDPM_PARALLEL_TRIALS": "1"}

    # -- KFP and MLflow ------------------------------------------------------------------------------------------------

    def kfp_run(self, run_id: str) -> dict[str, Any]:
        """Return KFP's answer about a run."""
        answer = self.kfp.client._run_api.run_service_get_run(run_id, _preload_content=False)
        return dict(json.loads(answer.data))

    def mlflow(self, path: str, body: Mapping[str, Any] | None = None, *, method: str = "") -> dict[str, Any]:
        """Call MLflow's REST API: with a body by POST, else by GET, or as said. It is asked again where the port to it was lost."""
        user, password = os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", "")

        def send() -> requests.Response:
            return requests.request(
                method or ("GET" if body is None else "POST"),
                f"{self.mlflow_url()}/api/2.0/mlflow/{path}",
                json=body,
                auth=(user, password) if user else None,
                timeout=60,
            )

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(requests.ConnectionError),
            stop=tenacity.stop_after_delay(180),
            wait=tenacity.wait_fixed(2),
            reraise=True,
        )
        return dict(retrying(send).json())

    def mlflow_runs(self, run_id: str = "") -> list[dict[str, Any]]:
        """Return MLflow's runs of the session's experiment: all, or those of one run of KFP."""
        found = self.mlflow(f"experiments/get-by-name?experiment_name={self.settings.tracking_experiment}")
        if "experiment" not in found:
            return []
        search = {"experiment_ids": [found["experiment"]["experiment_id"]], "max_results": 1000}
        if run_id:
            search["filter"] = f"tags.`kfp.pipeline_run_id` = '{run_id}'"
        return list(self.mlflow("runs/search", search).get("runs", []))


class Recorder:
    """Looks at the runs of a scenario every two seconds, and keeps each state that is new.

    At RayJobs it looks in between, too: one that has succeeded is deleted within seconds, and a busy API takes as long for the rest.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._seen: dict[str, str] = {}
        self._versions: dict[str, Any] = {}
        self._next_events = 0.0
        self._stop = threading.Event()
        self._rayjobs = threading.Lock()
        self._threads = [threading.Thread(target=self._repeat, args=(look,), daemon=True) for look in (self.look, self._look_at_rayjobs)]

    def __enter__(self) -> Recorder:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.look()

    def _repeat(self, look: Callable[[], None]) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            with contextlib.suppress(ApiException, urllib3.exceptions.HTTPError, OSError):  # the next look sees more
                look()

    def look(self) -> None:
        """Look once. What is found belongs to the record of this moment: until the API answers, the scenario may be back from its pace."""
        cluster, record = self._cluster, self._cluster.record
        for run_id in list(cluster.run_ids):
            if workflow := cluster.workflow(run_id):
                self._workflow(record, workflow)
        owners = {each["workflow"] for each in record.workflows}
        self._look_at_rayjobs()
        pods = cluster.items(cluster.path_of("pods"), labelSelector=f"{_WORKFLOW} in ({','.join(sorted(owners))})") if owners else []
        pods += cluster.items(cluster.path_of("pods"), labelSelector=MANAGED_BY) if record.rayjobs else []
        ours = {each["metadata"]["name"]: each for each in pods if _owner(each) in {*owners, *record.rayjobs}}
        self._objects(record.pods, ours)
        if time.monotonic() > self._next_events or self._stop.is_set():  # rarely: the API can't select those of these objects
            self._next_events = time.monotonic() + _EVENTS_SECONDS
            names = owners | set(record.rayjobs) | set(record.pods)
            self._events(record, [each for each in cluster.items(cluster.path_of("events")) if each["involvedObject"].get("name") in names])

    def _look_at_rayjobs(self) -> None:
        with self._rayjobs:  # the later answer is the later state
            record = self._cluster.record
            self._objects(record.rayjobs, self._cluster.rayjobs())

    def _is_new(self, item: Mapping[str, Any]) -> bool:
        metadata = item["metadata"]
        known, self._versions[metadata["uid"]] = self._versions.get(metadata["uid"]), metadata.get("resourceVersion")
        return bool(known != metadata.get("resourceVersion"))

    def _workflow(self, record: Record, item: dict[str, Any]) -> None:
        if not self._is_new(item):
            return
        metadata = item["metadata"]
        recording = next((each for each in record.workflows if each["workflow"] == metadata["name"]), None)
        event = "MODIFIED"
        if recording is None:
            event = "ADDED"
            recording = {"workflow": metadata["name"], "what": record.name, "created": item, "driver_pod_spec_patches": {}}
            recording["states"] = []
            record.workflows.append(recording)
        status = dict(item.get("status") or {})
        nodes = nodes_of(status)
        recording["driver_pod_spec_patches"].update(pod_spec_patches(nodes.values()))
        spec = {key: item["spec"][key] for key in ("activeDeadlineSeconds", "shutdown") if key in item["spec"]}
        kept = {key: value for key, value in status.items() if key in ("phase", "message", "startedAt", "finishedAt", "progress")}
        kept["nodes"] = short_nodes(nodes)
        recording["states"].append({"at": _now(), "event": event, "spec": spec, "labels": metadata.get("labels", {}), "status": kept})

    def _objects(self, recorded: dict[str, list[dict[str, Any]]], found: Mapping[str, dict[str, Any]]) -> None:
        for name, item in found.items():
            if not self._is_new(item):
                continue
            more = {"kind": _kind(item), "owner": _owner(item)} if item.get("spec", {}).get("containers") else {}
            if name not in recorded:
                recorded[name] = [{"at": _now(), "event": "ADDED", **more, "object": item}]
                continue
            wanted = ("labels", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion")
            metadata = {key: item["metadata"].get(key) for key in wanted}
            recorded[name].append({"at": _now(), "event": "MODIFIED", **more, "metadata": metadata, "status": item.get("status") or {}})
        for name, states in recorded.items():
            if name not in found and states[-1]["event"] != "DELETED":
                states.append({**{key: states[0][key] for key in ("kind", "owner") if key in states[0]}, "at": _now(), "event": "DELETED"})

    def _events(self, record: Record, items: Sequence[dict[str, Any]]) -> None:
        for each in items:
            if self._is_new(each):
                involved = each["involvedObject"]
                kept = {key: each.get(key) for key in ("type", "reason", "message", "count")}
                source = (each.get("source") or {}).get("component")
                about = [involved["kind"], involved["name"]]
                record.events.append({"at": _now(), **kept, "object": about, "source": source})


def messages_about(log: str, run_id: str) -> list[str]:
    """Return the messages about a run that the receiver of the webhook took, of its log."""
    return [line for line in log.splitlines() if " signed {" in line and run_id in line]


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, ApiException):
        return error.status in (0, 408, 429) or (error.status or 0) >= 500
    return isinstance(error, (urllib3.exceptions.HTTPError, OSError))


def _ray_owner(pod: Mapping[str, Any]) -> str:
    return str((pod["metadata"].get("labels") or {}).get("iddpm/run", ""))


def _owner(pod: Mapping[str, Any]) -> str:
    return _ray_owner(pod) or str((pod["metadata"].get("labels") or {}).get(_WORKFLOW, ""))


def _kind(pod: Mapping[str, Any]) -> str:
    labels, name = pod["metadata"].get("labels") or {}, pod["metadata"]["name"]
    if node_type := labels.get("ray.io/node-type"):
        return f"ray-{node_type}"
    if labels.get("batch.kubernetes.io/job-name"):
        return "submitter"
    for kind in ("dag-driver", "container-driver"):
        if f"-system-{kind}-" in name:
            return kind
    return "executor"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def _now() -> float:
    return round(time.time(), 2)
