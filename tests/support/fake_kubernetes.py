"""A small Kubernetes API over real HTTP: RayJobs, pods and their logs, tokens that expire, and faults on demand."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

NAMESPACE = "runs"
_RAYJOBS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs"
_WORKFLOWS = f"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/workflows"
_SILENT_SECONDS = 5.0
_NO_RIGHT = f'x is forbidden: User "system:serviceaccount:{NAMESPACE}:me" cannot do resource "x" in the namespace "{NAMESPACE}"'
"""The beginning and end of Kubernetes' words for a missing right (recorded: dry-runs/no-right)."""
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@dataclass
class FakeKubernetes:
    """State of the cluster, and the requests that it received.

    Attributes:
        script: Statuses that a RayJob goes through, one at each look; the last one stays.
        faults: By method, one consumed by each request: a status to answer, or a status and the server's words, "drop" to hang up before
            acting, "lose" to hang up after it, or "hang" to send no answer.
        before: Called with the method and path of each request before it is answered.
        on_look: Called with each RayJob that is read, before it is answered.
        seconds_to_create: How long a POST takes to act.
    """

    url: str = ""
    tokens: set[str] = field(default_factory=lambda: {"first-token"})
    script: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, list[int | str | tuple[int, str]]] = field(default_factory=dict)
    rayjobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    workflows: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    broken_logs: int = 0
    log_queries: list[dict[str, list[str]]] = field(default_factory=list)
    requests: list[tuple[float, str, str]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    has_kuberay: bool = True
    queues: dict[str, dict[str, Any]] | None = None
    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)
    looks_until_gone: int = 0
    seconds_to_create: float = 0.0
    on_look: Callable[[dict[str, Any]], None] = lambda rayjob: None
    before: Callable[[str, str], None] = lambda method, path: None
    lock: threading.RLock = field(default_factory=threading.RLock)
    _uids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def count(self, method: str, path: str = "") -> int:
        """Count the requests of that method to paths with that end."""
        return sum(1 for _, asked, where in self.requests if asked == method and where.endswith(path))

    def add_rayjob(self, manifest: dict[str, Any], status: dict[str, Any] | None = None) -> dict[str, Any]:
        """Add a RayJob as the API stores it."""
        kept = json.loads(json.dumps(manifest))
        kept["metadata"]["uid"] = f"uid-{next(self._uids)}"
        kept["looks"] = 0
        if status is not None:
            kept["status"] = status
        self.rayjobs[kept["metadata"]["name"]] = kept
        return kept

    def add_pod(self, name: str, labels: dict[str, str], **more: Any) -> None:
        """Add a pod."""
        self.pods[name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "uid": f"uid-of-{name}", "labels": labels, **more.pop("metadata", {})},
            "spec": {"containers": [{"name": "main", "image": "iddpm:test"}], **more.pop("spec", {})},
            "status": {"phase": "Running", **more.pop("status", {})},
        }

    # -- answers -------------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        self.before(method, path)
        if path == _RAYJOBS and method == "POST":
            time.sleep(self.seconds_to_create)
        with self.lock:
            if path == _RAYJOBS and method == "GET" and self.has_kuberay:
                return 200, {"apiVersion": "ray.io/v1", "kind": "RayJobList", **_page(self.rayjobs, query)}
            if path.startswith(_RAYJOBS):
                return self._rayjob(method, path, body)
            if path == _PODS:
                return 200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": _selected(self.pods, query)}
            if path.startswith("/apis/kueue.x-k8s.io") and self.queues is not None:
                return self._kueue(path, query)
            if path == _WORKFLOWS:
                return 200, {"apiVersion": "argoproj.io/v1alpha1", "kind": "WorkflowList", **_page(self.workflows, query)}
            if path.startswith(_WORKFLOWS + "/"):
                workflow = self.workflows.get(path.removeprefix(_WORKFLOWS + "/"))
                if workflow and method == "PATCH":
                    labels = {**workflow["metadata"].get("labels", {}), **body["metadata"]["labels"]}
                    workflow["metadata"]["labels"] = {key: value for key, value in labels.items() if value is not None}
                return (200, workflow) if workflow else _problem(404, "not found")
            if path.startswith(_PODS + "/"):
                pod = self.pods.get(path.removeprefix(_PODS + "/"))
                return (200, pod) if pod else _problem(404, "not found")
        return _problem(404, "no such path")

    def _kueue(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        """Kueue is not recorded: these are the objects of its API reference, v1beta1."""
        *_, kind, name = path.split("/")
        if name == "kueue.x-k8s.io":
            return 200, {"kind": "APIGroup", "preferredVersion": {"version": "v1beta1"}}
        if name == "workloads":
            return 200, {"items": _selected(self.workloads, query)}
        queue = (self.queues or {}).get(name) if kind == "localqueues" else None
        return _problem(404, f"{kind} {name} not found") if queue is None else (200, queue)

    def _rayjob(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if not self.has_kuberay:
            return _problem(404, "page not found")
        if method == "POST":
            name = body["metadata"]["name"]
            if name in self.rayjobs:
                return _problem(409, f"rayjobs.ray.io {name} already exists")
            kept = self.add_rayjob(body)
            self.created.append(kept)
            return 201, kept
        name = path.removeprefix(_RAYJOBS + "/")
        kept = self.rayjobs.get(name)
        if kept is None:
            return _problem(404, f"rayjobs.ray.io {name} not found")
        if method == "DELETE":
            wanted = ((body or {}).get("preconditions") or {}).get("uid")
            if wanted and wanted != kept["metadata"]["uid"]:
                return _problem(409, "the uid differs")
            kept["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            if self.looks_until_gone <= 0:
                del self.rayjobs[name]
            return 200, kept
        if "deletionTimestamp" in kept["metadata"]:
            self.looks_until_gone -= 1
            if self.looks_until_gone < 0:
                del self.rayjobs[name]
                return _problem(404, f"rayjobs.ray.io {name} not found")
        elif self.script and kept in self.created:
            kept["status"] = self.script[min(kept["looks"], len(self.script) - 1)]
            kept["looks"] += 1
        self.on_look(kept)
        return 200, kept


def recorded_statuses(name: str) -> list[dict[str, Any]]:
    """Return the statuses of a RayJob as a real cluster gave them, one after the other.

    Args:
        name: Beginning of the recording's file name: "4504db" succeeded, in "47d66d" the submitter was lost, in "967f1a" the head.
    """
    (path,) = (Path(__file__).parents[1] / "recordings" / "rayjobs").glob(f"*-{name}-*.json.gz")
    statuses = [each.get("object", each).get("status") or {} for each in json.loads(gzip.decompress(path.read_bytes()))]
    return [status for status, before in zip(statuses, [None, *statuses], strict=False) if status != before]


def _page(objects: dict[str, dict[str, Any]], query: dict[str, list[str]]) -> dict[str, Any]:
    """Return a page of a list, as the query asks, with the place where the next one begins."""
    found, start, size = _selected(objects, query), int(query.get("continue", ["0"])[0]), int(query.get("limit", ["0"])[0]) or None
    rest = {"continue": str(start + size)} if size and start + size < len(found) else {}
    return {"metadata": rest, "items": found[start : start + size if size else None]}


def _selected(objects: dict[str, dict[str, Any]], query: dict[str, list[str]]) -> list[dict[str, Any]]:
    parts = re.findall(r"[^,(]+(?:\([^)]*\))?", query.get("labelSelector", [""])[0])
    return [item for item in objects.values() if all(_has(item["metadata"].get("labels", {}), part) for part in parts)]


def _has(labels: dict[str, str], part: str) -> bool:
    """Return True if labels meet one part of a selector: "key=value", "key!=value", "key", "!key" or "key in (value,value)"."""
    if " in (" in part:
        key, _, values = part.rstrip(")").partition(" in (")
        return labels.get(key) in values.split(",")
    if part.startswith("!"):
        return part[1:] not in labels
    if part and "=" not in part:
        return part in labels
    key, _, value = part.replace("!=", "=").partition("=")
    return (labels.get(key) == value) != ("!=" in part)


def _problem(code: int, message: str) -> tuple[int, Any]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


def _handler(fake: FakeKubernetes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # The head and the body are two writes: with Nagle, each answer would wait 40 ms for the client to confirm its head.
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            split = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            with fake.lock:
                fake.requests.append((time.monotonic(), self.command, split.path))
                queue = fake.faults.get(self.command, [])
                fault = queue.pop(0) if queue else None
            if self.headers.get("Authorization", "").removeprefix("Bearer ") not in fake.tokens:
                return self._send(*_problem(401, "Unauthorized"))
            if fault == "hang":
                time.sleep(_SILENT_SECONDS)
            if fault in ("drop", "hang"):
                self.close_connection = True
                return None
            if isinstance(fault, int):
                return self._send(*_problem(fault, _NO_RIGHT if fault == 403 else f"told to answer {fault}"))
            if isinstance(fault, tuple):
                return self._send(*_problem(*fault))
            if split.path.endswith("/log"):
                return self._log(split.path.removeprefix(_PODS + "/").removesuffix("/log"), parse_qs(split.query))
            code, answer = fake.answer(self.command, split.path, parse_qs(split.query), body)
            if fault == "lose":
                self.close_connection = True
                return None
            return self._send(code, answer)

        def _send(self, code: int, answer: Any) -> None:
            with fake.lock:
                data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has ended meanwhile
                self.wfile.write(data)

        def _log(self, pod: str, query: dict[str, list[str]]) -> None:
            data = "".join(f"{line}\n" for line in fake.logs.get(pod, ())).encode(errors="surrogateescape")
            with fake.lock:
                fake.log_queries.append(query)
                breaks, fake.broken_logs = fake.broken_logs > 0, max(0, fake.broken_logs - 1)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Connection", "close")
            if breaks:  # in the middle of the answer, whose last chunk does not come
                self.send_header("Transfer-Encoding", "chunked")
                data = f"{len(data):x}\r\n".encode() + data + b"\r\n"
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = True

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's names

        def log_message(self, format: str, *words: Any) -> None:
            pass

    return Handler


@contextmanager
def serve(directory: Path, cluster: FakeKubernetes | None = None) -> Iterator[tuple[FakeKubernetes, Path]]:
    """Serve a cluster on loopback, an empty one if none is given, and write a kubeconfig for it into the directory."""
    fake = cluster or FakeKubernetes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    kubeconfig = directory / "kubeconfig.json"
    write_kubeconfig(kubeconfig, fake.url, "first-token")
    try:
        yield fake, kubeconfig
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_kubeconfig(path: Path, url: str, token: str) -> None:
    """Write a kubeconfig with one cluster and one user."""
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "fake",
                "clusters": [{"name": "fake", "cluster": {"server": url}}],
                "users": [{"name": "me", "user": {"token": token}}],
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me", "namespace": NAMESPACE}}],
            }
        )
    )
