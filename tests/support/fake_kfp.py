"""A stand-in for KFP's API server over real HTTP: what it checks, how it answers, how it refuses, and faults on demand.

As the server of 2.17 does it: uploads are parsed strictly, arguments are checked against the specification, names are
unique, lists come in pages, nothing that is empty is sent, and a run that has ended can't be terminated.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import itertools
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from recorded_workflows import kfp_answer

from components.cluster.workflows import attempts
from pipelines.compile_checks import parse_documents

API = "/apis/v2beta1"
_KINDS = {
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "STRING": str,
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 503: 14}


@dataclass(frozen=True)
class Request:
    """One request: its method, path below the API, query, body and `Authorization`."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    authorization: str


class Refusal(Exception):  # noqa: N818 - an answer
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class FakeKfp:
    """State of the server, and what it was asked.

    Attributes:
        tokens: Those that are good; empty asks for none.
        version: What the server says it is.
        namespaces: With several users, whose there are; None serves one user.
        script: States of its Workflow that a new run goes through, one at each look; the last one stays.
        workflow: The Workflow of every run, as a recording shows it; the server gives it in its older API.
        logs: Logs by pod, which the UI has. The API answers 200 always, but has only what Argo archived; with several users also the pods'.
        faults: By method and end of path, consumed one a request: a status, "drop" to hang up before acting, "lose" to
            hang up after it, or "page" to answer with a web page.
        page: A web page to answer everything with, as a log-in does.
        before: Called with each request before it is answered.
    """

    url: str = ""
    tokens: set[str] = field(default_factory=set)
    version: str = "2.17.0"
    namespaces: set[str] | None = None
    script: list[dict[str, Any]] = field(default_factory=list)
    workflow: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    faults: dict[tuple[str, str], list[int | str]] = field(default_factory=dict)
    page: str = ""
    before: Callable[[Request], None] = lambda request: None
    requests: list[Request] = field(default_factory=list)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def asked(self, method: str, ending: str) -> list[Request]:
        """The requests of that method to paths that end so."""
        return [each for each in self.requests if each.method == method and each.path.endswith(ending)]

    def add_experiment(self, name: str, namespace: str = "", **more: Any) -> str:
        ident = self._ident("experiment")
        kept = {"experiment_id": ident, "display_name": name, "created_at": self._now(), "storage_state": "AVAILABLE", **more}
        self.experiments[ident] = kept | ({"namespace": namespace} if namespace else {})
        return ident

    def has_archived(self, pod: str) -> bool:
        """Say whether KFP finds the log that Argo archived when the pod ended: its address is in a Workflow that is not compressed."""
        is_compressed = "compressedNodes" in self.workflow.get("status", {})
        return not is_compressed and any(
            each.pod == pod and each.phase in ("Succeeded", "Failed", "Error") for each in attempts(self.workflow)
        )

    def add_run(self, state: str, **more: Any) -> str:
        ident = more.get("run_id") or self._ident("run")
        self.runs[ident] = {
            "run_id": ident,
            "display_name": f"name of {ident}",
            "state": state,
            "created_at": self._now(),
            "looks": 0,
            **more,
        }
        return ident

    # -- answers -------------------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Any:
        first, *rest = request.path.strip("/").split("/")
        if request.path.startswith("/apis/v1beta1/runs/"):
            return {"run": {}, "pipeline_runtime": {"workflow_manifest": json.dumps(self.workflow)} if self.workflow else {}}
        if first == "healthz":
            return {"commit_sha": "unknown", "tag_name": self.version, "multi_user": self.namespaces is not None}
        handler = {
            "experiments": self._experiments,
            "pipelines": self._pipelines,
            "runs": self._runs,
            "recurringruns": self._recurring,
        }.get(first)
        if handler is None:
            raise Refusal(404, "Not Found")
        return handler(request, rest)

    def _experiments(self, request: Request, rest: list[str]) -> Any:
        if rest:
            return self.experiments[rest[0]]
        if request.method == "GET":
            self._require_namespace(request.query.get("namespace", ""))
            return self._list(request, "experiments", self.experiments)
        name, namespace = request.body["display_name"], request.body.get("namespace", "")
        self._require_namespace(namespace)
        if any(each["display_name"] == name for each in self.experiments.values()):
            raise Refusal(409, f"Failed to create a new experiment. The name {name} already exists. Please specify a new name")
        return self.experiments[self.add_experiment(name, namespace)]

    def _pipelines(self, request: Request, rest: list[str]) -> Any:
        if rest == ["upload_version"]:
            return self._upload_version(request)
        if rest and rest[0] not in self.pipelines:
            raise Refusal(404, f"Pipeline {rest[0]} not found")
        if rest[1:] == ["versions"]:
            there = {key: each for key, each in self.versions.items() if each["pipeline_id"] == rest[0]}
            return self._list(request, "pipeline_versions", there)
        if rest[1:2] == ["versions"]:
            if rest[2] not in self.versions:
                raise Refusal(404, f"PipelineVersion {rest[2]} not found")
            return self.versions[rest[2]]
        if rest:
            return self.pipelines[rest[0]]
        if request.method == "GET":
            return self._list(request, "pipelines", self.pipelines)
        body = request.body
        self._require_namespace(body.get("namespace", ""))
        if any(each["name"] == body["name"] for each in self.pipelines.values()):
            raise Refusal(409, f"Failed to create a new pipeline. The name {body['name']} already exists. Please specify a new name")
        ident = self._ident("pipeline")
        self.pipelines[ident] = {**body, "pipeline_id": ident, "created_at": self._now()}
        return self.pipelines[ident]

    def _upload_version(self, request: Request) -> Any:
        name, pipeline_id = request.query["name"], request.query["pipelineid"]
        documents = parse_documents(request.body)
        for document, message in zip(documents, (pipeline_spec_pb2.PipelineSpec(), pipeline_spec_pb2.PlatformSpec()), strict=False):
            try:
                json_format.ParseDict(document, message)
            except json_format.ParseError as error:
                raise Refusal(400, str(error)) from error
        if any(each["pipeline_id"] == pipeline_id and each["name"] == name for each in self.versions.values()):
            raise Refusal(409, "Failed to create a pipeline version")
        ident = self._ident("version")
        version = {"pipeline_id": pipeline_id, "pipeline_version_id": ident, "name": name, "display_name": name}
        both = {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        self.versions[ident] = {**version, "created_at": self._now(), "pipeline_spec": both}
        return {**self.versions[ident], "pipeline_spec": {"pipelineInfo": documents[0]["pipelineInfo"]}}

    def _runs(self, request: Request, rest: list[str]) -> Any:
        if request.method == "POST" and not rest:
            body = request.body
            self._require_arguments(body)
            ident = self.add_run("PENDING", **{key: value for key, value in body.items() if value is not None})
            self.runs[ident]["scripted"] = True
            return self._seen(self.runs[ident])
        if not rest:
            if "experiment_id" not in request.query:
                self._require_namespace(request.query.get("namespace", ""))
            return self._list(request, "runs", {key: self._seen(each) for key, each in self.runs.items()})
        ident, _, verb = rest[0].partition(":")
        run = self.runs.get(ident)
        if run is None:
            raise Refusal(404, f"run {ident} not found")
        if verb == "terminate":
            if run["state"] not in ("PENDING", "RUNNING", "PAUSED"):
                raise Refusal(400, f"Failed to terminate a run {ident}. Row not found")
            run["state"], run["scripted"], run["cancelled"] = "CANCELING", False, True
            return {}
        if run.get("scripted") and self.script:
            self.workflow = self.script[min(run["looks"], len(self.script) - 1)]
            run |= kfp_answer(self.workflow)
            run["looks"] += 1
        elif run["state"] == "CANCELING":
            run["state"] = "FAILED"  # recorded: 2.17 has no other end for a cancelled run
        return self._seen(run)

    def _seen(self, run: dict[str, Any]) -> dict[str, Any]:
        seen = {key: value for key, value in run.items() if key not in ("looks", "scripted", "cancelled")}
        ended = run["state"] in ("SUCCEEDED", "FAILED")
        if run.get("cancelled"):
            seen["state_history"] = [{"state": state} for state in ("PENDING", "RUNNING", "CANCELING", *(["FAILED"] if ended else []))]
        seen["finished_at"] = "2026-11-24T20:00:00Z" if ended else "1970-01-01T00:00:00Z"  # so says the server
        return seen

    def _recurring(self, request: Request, rest: list[str]) -> Any:
        if not rest and request.method == "GET":
            self._require_namespace(request.query.get("namespace", ""))
            return self._list(request, "recurringRuns", self.recurring)
        if not rest:
            body = request.body
            self._require_arguments(body)
            if not 1 <= int(body.get("max_concurrency") or 0) <= 10:
                raise Refusal(400, "Max concurrency of a recurring run must be at least 1 and at most 10.")
            ident = self._ident("recurring")
            kept = {key: value for key, value in body.items() if value not in (None, False, "")}
            self.recurring[ident] = {**kept, "recurring_run_id": ident, "created_at": self._now(), "status": "ENABLED"}
            return self.recurring[ident]
        ident, _, verb = rest[0].partition(":")
        if ident not in self.recurring:
            raise Refusal(404, f"recurring run {ident} not found")
        if request.method == "DELETE":
            del self.recurring[ident]
            return {}
        if verb:
            self.recurring[ident]["mode"] = {"enable": "ENABLE", "disable": "DISABLE"}[verb]
            return {}
        return self.recurring[ident]

    # -- checks --------------------------------------------------------------------------------------------------------

    def _require_arguments(self, body: dict[str, Any]) -> None:
        reference = body["pipeline_version_reference"]
        version = self.versions.get(reference["pipeline_version_id"])
        if version is None or version["pipeline_id"] != reference["pipeline_id"]:
            raise Refusal(404, "pipeline version not found")
        if body["experiment_id"] not in self.experiments:
            raise Refusal(404, "experiment not found")
        parameters = version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        for name, value in (body.get("runtime_config", {}).get("parameters") or {}).items():
            if name not in parameters:
                raise Refusal(400, f"parameter(s) provided are not required by pipeline: {name}")
            wanted = _KINDS[parameters[name]["parameterType"]]
            if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
                raise Refusal(400, f"input parameter {name} is not of its type")
            if parameters[name].get("literals") and value not in parameters[name]["literals"]:
                raise Refusal(400, f'input parameter "{name}" value does not match any of the allowed literal values')

    def _require_namespace(self, namespace: str) -> None:
        if self.namespaces is None:
            return
        if not namespace:
            raise Refusal(400, "Namespace cannot be empty in multi-user mode")
        if namespace not in self.namespaces:
            raise Refusal(403, f"User 'me' is not authorized with reason:  (namespace {namespace})")

    def _list(self, request: Request, key: str, there: dict[str, dict[str, Any]]) -> dict[str, Any]:
        found = list(there.values())
        query = request.query
        if query.get("experiment_id"):
            found = [each for each in found if each.get("experiment_id") == query["experiment_id"]]
        if query.get("filter"):
            for predicate in json.loads(query["filter"])["predicates"]:
                assert predicate["operation"] == 1
                found = [each for each in found if each.get(predicate["key"]) == predicate["stringValue"]]
        if query.get("sort_by") == "created_at desc":
            found.sort(key=lambda each: each["created_at"], reverse=True)
        start, size = int(query.get("page_token") or 0), int(query.get("page_size") or 20)
        answer: dict[str, Any] = {key: found[start : start + size], "total_size": len(found)} if found else {}
        if start + size < len(found):
            answer["next_page_token"] = str(start + size)
        return answer

    def _ident(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"

    def _now(self) -> str:
        return f"2026-11-24T18:{next(self._numbers) % 60:02d}:00Z"


def _handler(fake: FakeKfp) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # The head and the body are two writes: with Nagle, each answer would wait 40 ms for the client to confirm its head.
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            request = self._request()
            with fake.lock:
                fake.requests.append(request)
                fault = self._fault(request)
            fake.before(request)
            if fake.page:
                return self._send(200, fake.page.encode(), "text/html")
            if fault == "page":
                return self._send(200, b"<html><body>Log in</body></html>", "text/html")
            if fault == "drop":
                self.close_connection = True
                return None
            if fake.tokens and request.authorization.removeprefix("Bearer ") not in fake.tokens:
                return self._send(*_problem(401, "Request header error: there is no user identity header."))
            if isinstance(fault, int):
                return self._send(*_problem(fault, f"told to answer {fault}"))
            if request.path.startswith("/apis/v1alpha1/runs/"):
                pod = request.path.split("/")[-2]
                missing = json.dumps({"error_message": f"BadRequestError: Failed to read logs from archive {pod}"})
                found = fake.logs.get(pod, missing) if fake.namespaces is not None or fake.has_archived(pod) else missing
                return self._send(200, found.encode(), "text/plain")
            if request.path == "/k8s/pod/logs":
                ui_pod = request.query.get("podname", "")
                return self._send(200 if ui_pod in fake.logs else 404, fake.logs.get(ui_pod, "").encode(), "text/plain")
            try:
                with fake.lock:
                    answer = json.dumps(fake.answer(request)).encode()
            except Refusal as refusal:
                upload = request.path.endswith("upload_version")
                return self._send(*_problem(refusal.status, str(refusal), is_upload=upload))
            if fault == "lose":
                self.close_connection = True
                return None
            return self._send(200, answer, "application/json")

        def _request(self) -> Request:
            split = urlsplit(self.path)
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = self.headers.get("Content-Type", "")
            body: Any = None
            if kind.startswith("multipart/"):
                message = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + data, policy=email.policy.HTTP)
                (part,) = message.iter_parts()
                body = part.get_payload(decode=True).decode()
            elif data:
                body = json.loads(data)
            query = {key: values[0] for key, values in parse_qs(split.query).items()}
            path = unquote(split.path).removeprefix(API)
            return Request(self.command, path, query, body, self.headers.get("Authorization", ""))

        def _fault(self, request: Request) -> int | str | None:
            for (method, ending), queue in fake.faults.items():
                if queue and method == request.method and request.path.endswith(ending):
                    return queue.pop(0)
            return None

        def _send(self, status: int, data: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

        def log_message(self, format: str, *words: Any) -> None:
            pass

    return Handler


def _problem(status: int, message: str, *, is_upload: bool = False) -> tuple[int, bytes, str]:
    # The gateway's form, and the other one of what is uploaded beside the gateway.
    form = {"error_message": message, "error_details": message} if is_upload else {"code": _CODES.get(status, 2), "message": message}
    return status, json.dumps(form).encode(), "application/json"


@contextmanager
def serve(certificate: Path | None = None) -> Iterator[FakeKfp]:
    """Serves an empty KFP on loopback.

    Args:
        certificate: With one (and its key in the same file), over TLS.
    """
    fake = FakeKfp()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    fake.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
