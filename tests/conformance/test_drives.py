"""The drives of `make conformance` on recordings of a real cluster: each does what it is about, and sees what proves it.

A recording goes on whether or not a drive does its part, so each test compares what the drive did with what it should do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from subprocess import STDOUT, TimeoutExpired
from types import SimpleNamespace

import fake_kfp
import fake_kubernetes
import pytest
import requests
from conformance import run
from conformance.cluster import Cluster, Recorder, Settings
from recorded_cluster import AcceptedError, RecordedCluster

from pipelines.client.connection import Connection
from pipelines.client.kfp_client import connected

_RECEIVER = "POST pods/iddpm-conformance-webhook; POST secrets/iddpm-webhook"
_NO_RECEIVER = "DELETE secrets/iddpm-webhook; DELETE pods/iddpm-conformance-webhook"
_KINDS = ("resourceflavors", "clusterqueues", "localqueues")
_QUEUE = "; ".join(f"POST {kind}/iddpm-conformance" for kind in _KINDS)
_NO_QUEUE = "; ".join(f"DELETE {kind}/iddpm-conformance" for kind in reversed(_KINDS))
_WITH_ROOM = "PATCH clusterqueues/iddpm-conformance resourceGroups"
_NOWHERE = "data_source=s3://iddpm/conformance/test/nowhere.zip"
_FIRST_PODS = "; ".join(
    f"DELETE pods/{step} 1 of run 1" for step in ("settings", "preprocess", "reference", "train", "evaluate", "report", "close-run")
)
_SECOND_PODS = "; ".join(f"DELETE pods/{step} 1 of run 2" for step in ("settings", "preprocess", "close-run"))

DONE = {
    "doctor_before": "iddpm doctor --bucket s3://iddpm",
    "train_local": "iddpm submit train",
    "train_rayjob": "iddpm submit train train=RAYJOB",
    "rayjob_options": "POST priorityclasses/iddpm-conformance; POST runtimeclasses/iddpm-conformance; "
    'iddpm submit train train=RAYJOB, "labels": {"example.com/team": "vision"}, "ann; '
    "execute in ray-head 1; execute in ray-worker 1; "
    "DELETE runtimeclasses/iddpm-conformance; DELETE priorityclasses/iddpm-conformance",
    "runs_shown": "iddpm submit train; iddpm runs --json; iddpm runs; iddpm logs run 1 train; iddpm runs --json",
    "logs_kept": f"iddpm submit train train=RAYJOB; iddpm submit train {_NOWHERE} data_uri=s3://iddpm/conformance/test/data/never-made; "
    f"{_FIRST_PODS}; {_SECOND_PODS}; iddpm logs run 1 train; POST pods/iddpm-conformance-logs; DELETE pods/iddpm-conformance-logs",
    "bad_source": f"iddpm submit train {_NOWHERE}",
    "pod_refused": "POST limitranges/iddpm-conformance; iddpm submit train train.memory=30Gi; DELETE limitranges/iddpm-conformance",
    "sweep": 'iddpm submit ablation ablation_name=own-grid ablation_grid={"diffusion.vlb_weight": [0.001, 0.01]} '
    'experiment_preset=digits-tiny-hybrid-cosine ablation_options={"checkpoint": "last"}; iddpm logs run 1 train-trial (1)',
    "nightly": "POST pods/iddpm-conformance-webhook; iddpm submit train; POST mlflow/runs/log-metric; POST mlflow/runs/log-metric; "
    "POST mlflow/runs/log-metric; POST secrets/iddpm-webhook; "
    "iddpm schedule create model=s3://iddpm/conformance/1130-224121-7d31/runs/conforman; iddpm runs --json; "
    f"iddpm schedule pause; iddpm schedule delete; {_NO_RECEIVER}",
    "cancel": "iddpm submit train train=RAYJOB; iddpm cancel run 1; iddpm runs --json",
    "pod_drained": "iddpm submit train train=RAYJOB; POST pods/train 1/eviction",
    "ray_worker_killed": "iddpm submit train train=RAYJOB; DELETE pods/ray-worker 1",
    "ray_head_killed": "iddpm submit train train=RAYJOB; DELETE pods/ray-head 1",
    "deadline": 'iddpm submit train train=RAYJOB, "active_deadline_seconds": 240}}',
    "submitter_killed": "iddpm submit train train=RAYJOB; DELETE pods/submitter 1",
    "out_of_memory": "iddpm submit train; execute in train 1",
    "container_killed": "iddpm submit train; execute in train 1 SIGKILL",
    "submitted_twice": "iddpm submit train train=RAYJOB; iddpm submit train train=RAYJOB",
    "trained_twice": "iddpm submit train; iddpm submit train",
    "retry": "iddpm submit train train.memory=1536Mi; "
    "iddpm retry run 1 --image iddpm-pipelines:0.1.0-rebuilt --resources train.memory=4Gi --no-wait --json",
    "retry_from": "iddpm submit train; iddpm retry run 1 --from evaluate --no-wait --json; iddpm retry run 2 --from train --no-wait --json",
    "retry_button": "iddpm submit train data_source=s3://iddpm/conformance/test/late/digits.zip "
    'data_uri=s3://iddpm/conformance/test/late/data data_options={"num_test": 100}; '
    "POST pods/iddpm-conformance-images; KFP /runs/run 1:retry; DELETE pods/iddpm-conformance-images",
    "compare": f"iddpm submit train; iddpm submit train; {_RECEIVER}; "
    'iddpm submit compare models=["runs:/5ebebf7f3d8b4e028cf45f276078cf16", "runs:/34d num_samples=100; '
    f"{_NO_RECEIVER}",
    "tune": "iddpm submit tune experiment_preset=digits-tiny-hybrid-cosine tune_trials=3 "
    'tune_search=["optim.learning_rate=log:1e-5..1e-2"]',
    "model_leaves": "iddpm submit train; POST pods/iddpm-conformance-model; DELETE pods/iddpm-conformance-model",
    "kueue": f'{_QUEUE}; iddpm submit train train=RAYJOB}}, "queue": "iddpm-conformance-nowhere"}}; '
    f'iddpm submit train train=RAYJOB}}, "queue": "iddpm-conformance"}}; {_WITH_ROOM}; {_NO_QUEUE}',
    "kueue_preempted": f'{_QUEUE}; {_WITH_ROOM}; iddpm submit train train=RAYJOB}}, "queue": "iddpm-conformance"}}; '
    "PATCH clusterqueues/iddpm-conformance stopPolicy=HoldAndDrain; PATCH clusterqueues/iddpm-conformance stopPolicy=None; "
    f"{_NO_QUEUE}",
    "webhook": f"{_RECEIVER}; iddpm submit train {_NOWHERE}; iddpm submit nightly-fid; iddpm cancel run 2; {_NO_RECEIVER}",
    "told_again": f"{_RECEIVER}; iddpm submit train {_NOWHERE}; PATCH cronjobs/iddpm-reaper suspend=True; KFP /runs/run 1:retry; "
    f"PATCH cronjobs/iddpm-reaper suspend=False; PATCH cronjobs/iddpm-reaper suspend=False; {_NO_RECEIVER}",
    "hung": f"{_RECEIVER}; iddpm submit train; execute in train 1 SIGSTOP; execute in train 1 SIGCONT; {_NO_RECEIVER}",
    "garbage": "iddpm submit train; iddpm submit train; POST mlflow/runs/delete; iddpm submit train; "
    "POST pods/iddpm-conformance-gc-look; POST jobs/iddpm-conformance-gc; POST pods/iddpm-conformance-gc-verify; "
    "DELETE pods/iddpm-conformance-gc-verify; DELETE jobs/iddpm-conformance-gc; DELETE pods/iddpm-conformance-gc-look",
    "mlflow_away": "iddpm submit train; PATCH deployments/mlflow replicas=0; PATCH deployments/mlflow replicas=1; "
    "PATCH deployments/mlflow replicas=1",
    "s3_away": "iddpm submit train; PATCH statefulsets/seaweedfs replicas=0; PATCH statefulsets/seaweedfs replicas=1; "
    "PATCH statefulsets/seaweedfs replicas=1",
    "pod_deleted_twice": "iddpm submit train; DELETE pods/train 1; DELETE pods/train 2",
    "doctor_after": "iddpm doctor --bucket s3://iddpm",
}
"""Everything that a drive does to the cluster of its recording, in order, until all is put back."""


class _RecorderInStep(Recorder):
    """A recorder that looks at each recorded change, in place of every two seconds."""

    def __init__(self, cluster: Cluster, there: RecordedCluster) -> None:
        super().__init__(cluster)
        self._there = there

    def __enter__(self) -> _RecorderInStep:
        self._there.look = self.look
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self.look()
        self._there.look = lambda: None


def _accept(*arguments: object, **more: object) -> None:
    raise AcceptedError


@pytest.fixture
def there(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedCluster]:
    """The cluster of a recording, in place of all that a drive reaches: time, processes, Kubernetes, KFP and MLflow."""
    there = RecordedCluster(request.param)
    stands_in = {
        "_POLL_SECONDS": 5.0,
        "time": SimpleNamespace(sleep=there.sleep, monotonic=lambda: there.now, time=lambda: there.now),
        "subprocess": SimpleNamespace(run=there.run, Popen=there.start, STDOUT=STDOUT, TimeoutExpired=TimeoutExpired),
        "stream": there.execute,
        "requests": SimpleNamespace(request=there.ask_mlflow, ConnectionError=requests.ConnectionError),
    }
    for name, value in stands_in.items():
        monkeypatch.setattr(f"conformance.cluster.{name}", value)
    monkeypatch.setattr("pipelines.client.submit.submit", _accept)
    monkeypatch.setattr(run, "Recorder", lambda cluster: _RecorderInStep(cluster, there))
    with fake_kubernetes.serve(tmp_path, there) as (_, kubeconfig), fake_kfp.serve() as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        server.before = lambda asked: there.answer_for_kfp(server, asked)
        yield there


@pytest.mark.parametrize(("name", "there"), [(name, name) for name in run.SCENARIOS], indirect=["there"], ids=run.SCENARIOS)
def test_a_scenario_does_what_it_is_about_and_proves_it(name: str, there: RecordedCluster, tmp_path: Path) -> None:
    settings = Settings(
        namespace=fake_kubernetes.NAMESPACE,
        services_namespace="iddpm",
        image="iddpm-pipelines:0.1.0",
        other_image="iddpm-pipelines:0.1.0-rebuilt",
        bucket="s3://iddpm",
        gap_seconds=600,
        away_seconds=180,
        session="test",
        folder=tmp_path,
    )
    tracked = [param for found in there.record.mlflow or () for param in found["data"]["params"]]
    first_seed = min((int(param["value"]) for param in tracked if param["key"] == "seed"), default=1)
    with connected(Connection(endpoint=os.environ["KF_PIPELINES_ENDPOINT"]), print) as kfp:
        cluster = Cluster(settings, kfp, lambda: "http://mlflow", steps_per_second=10.0, _seeds=first_seed - 1)
        row = run.run_scenario(cluster, name)
    assert row.result == run.GREEN, row.reasons
    assert there.done == DONE[name].split("; ")


def test_every_scenario_is_driven() -> None:
    assert list(DONE) == list(run.SCENARIOS)
