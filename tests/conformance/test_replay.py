"""The recorder and the looks of `make conformance` at a cluster, with the recordings of a real one served over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fake_kfp
import fake_kubernetes
import pytest
from conformance import run
from conformance.cluster import Cluster, Recorder, Settings
from conformance.record import Record, status_of
from fake_kfp import FakeKfp
from fake_kubernetes import FakeKubernetes
from recorded_workflows import workflow_states
from replay import Replay

from pipelines.client.connection import Connection
from pipelines.client.kfp_client import connected

RECORDINGS = Path(__file__).parents[1] / "recordings"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield fake


@pytest.fixture
def server() -> Iterator[FakeKfp]:
    with fake_kfp.serve() as fake:
        yield fake


@pytest.fixture
def cluster(api: FakeKubernetes, server: FakeKfp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    settings = Settings(
        namespace=fake_kubernetes.NAMESPACE,
        services_namespace="iddpm",
        image="iddpm-pipelines:0.1.0",
        other_image="iddpm-pipelines:0.1.0",
        bucket="s3://iddpm",
        gap_seconds=0,
        away_seconds=0,
        session="test",
        folder=tmp_path / "out",
    )
    settings.folder.mkdir()
    with connected(Connection(endpoint=server.url), print) as kfp:
        yield Cluster(settings=settings, kfp=kfp, mlflow_url=lambda: "")


def _play(api: FakeKubernetes, replay: Replay, at: float) -> None:
    api.workflows, api.pods, api.rayjobs = replay.workflows(at), replay.pods(at), {}
    for name, rayjob in replay.rayjobs(at).items():
        api.rayjobs[name] = rayjob


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recording"),
    [
        ("train_local", "train-local-succeeded"),
        ("train_rayjob", "train-rayjob-succeeded"),
        ("cancel", "rayjob-cancelled"),
        ("submitter_killed", "submitter-pod-lost"),
        ("ray_worker_killed", "worker-killed-then-step-pod-deleted"),
        ("mlflow_away", "mlflow-away"),
        ("bad_source", "bad-source-failed"),
    ],
)
def test_a_cluster_that_says_what_was_recorded_is_recorded_and_judged_as_that_was(
    cluster: Cluster, api: FakeKubernetes, name: str, recording: str
) -> None:
    before = Record.load(RECORDINGS, recording)
    cluster.record, cluster.run_ids = Record(name=recording), [before.workflows[0]["created"]["metadata"]["labels"]["pipeline/runid"]]
    replay, recorder = Replay(before), Recorder(cluster)
    for at in replay.times:
        _play(api, replay, at)
        recorder.look()
    judge = run.scenario(name)[2]
    assert [(claim.text, claim.holds) for claim in judge(cluster.record)] == [(claim.text, claim.holds) for claim in judge(before)]
    assert cluster.record.phase() == before.phase()


def test_a_rayjob_that_succeeds_is_seen_while_a_busy_api_lists_the_pods(
    cluster: Cluster, api: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conformance.cluster._POLL_SECONDS", 0.02)
    before = Record.load(RECORDINGS, "train-rayjob-succeeded")
    cluster.record = Record(name="x", workflows=before.workflows)
    replay, asked, answered = Replay(before), threading.Event(), threading.Event()
    (states,) = before.rayjobs.values()
    running, succeeded = (
        next(state["at"] for state in states if status_of(state).get("jobStatus") == status) for status in ("RUNNING", "SUCCEEDED")
    )

    def hold(method: str, path: str) -> None:
        if "/pods" in path:
            asked.set()
            answered.wait(30)

    def is_seen() -> bool:
        return "SUCCEEDED" in [status_of(state).get("jobStatus") for found in cluster.record.rayjobs.values() for state in found]

    _play(api, replay, running)
    api.before = hold
    with Recorder(cluster):
        assert asked.wait(30)
        _play(api, replay, succeeded)
        deadline = time.monotonic() + 30
        while not is_seen() and time.monotonic() < deadline:
            time.sleep(0.02)
        seen = is_seen()
        answered.set()
    assert seen


def test_a_workflow_belongs_to_the_record_in_which_it_was_asked_for(cluster: Cluster, api: FakeKubernetes) -> None:
    """The pace of a training is measured in a record of its own, which may end before a busy API answers."""
    before = Record.load(RECORDINGS, "train-local-succeeded")
    run_id = before.workflows[0]["created"]["metadata"]["labels"]["pipeline/runid"]
    pace, scenario = Record(name="pace"), Record(name="x")
    cluster.record, cluster.run_ids = pace, [run_id]
    replay = Replay(before)
    _play(api, replay, replay.times[-1])

    def end_of_pace(method: str, path: str) -> None:
        cluster.record, cluster.run_ids = scenario, []

    api.before = end_of_pace
    Recorder(cluster).look()
    assert scenario.workflows == []
    assert [each["what"] for each in pace.workflows] == ["pace"]


def test_a_scenario_finds_the_pods_that_it_disturbs(cluster: Cluster, api: FakeKubernetes) -> None:
    before = Record.load(RECORDINGS, "train-rayjob-succeeded")
    cluster.record = Record(name="x", workflows=before.workflows, rayjobs=before.rayjobs)
    replay = Replay(before)
    (states,) = before.rayjobs.values()
    _play(api, replay, next(state["at"] for state in states if status_of(state).get("jobStatus") == "RUNNING"))
    assert list(cluster.rayjobs()) == list(before.rayjobs)
    assert [len(cluster.ray_pods(kind)) for kind in ("head", "worker", "submitter", "")] == [1, 2, 1, 4]
    _play(api, replay, replay.times[-1])
    assert [pod for pod in cluster.ray_pods() if pod["status"]["phase"] == "Running"] == []


@pytest.mark.slow
def test_a_scenario_is_driven_recorded_and_judged(cluster: Cluster, api: FakeKubernetes, server: FakeKfp) -> None:
    """The command is real; KFP and Kubernetes answer as they did for the recorded run."""
    before = Record.load(RECORDINGS, "bad-source-failed")
    server.script = workflow_states("bad-source-failed")[-1:]
    server.logs[before.tries("preprocess")[0]["id"].replace("-2853953927", "-retry-system-container-impl-2853953927")] = (
        "training.config.errors.UserError: s3://iddpm/conformance/test/nowhere.zip does not exist\n"
    )

    def look(method: str, path: str) -> None:
        if server.runs and not api.workflows:
            replay = Replay(before, run_id=next(iter(server.runs)))
            _play(api, replay, replay.times[-1])

    api.before = look
    row = run.run_scenario(cluster, "bad_source")
    assert row.result == run.GREEN, row.reasons
    assert Record.load(cluster.settings.folder, "bad_source").texts["submit"].endswith("exit code 1")
