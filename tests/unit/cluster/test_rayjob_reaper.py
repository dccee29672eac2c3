"""RayJobs that outlive the pipeline run that started them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_kubernetes
import pytest
from fake_kubernetes import FakeKubernetes, recorded_statuses
from recorded_workflows import workflow_states

from components.cluster.connection import KubernetesError
from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.workflows import Owner
from components.launch.rayjob.manifest import RayJob, render
from components.launch.resources import StageResources
from components.reaper import rayjobs as rayjob_reaper

_STARTED, *_, _DONE = (status for status in recorded_statuses("4504db") if status)
_RUNNING = next(status for status in recorded_statuses("4504db") if status.get("jobStatus") == "RUNNING")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield fake


def _manifest(owner_uid: str = "w-1") -> dict[str, Any]:
    owner = Owner("argoproj.io/v1alpha1", "train-x", owner_uid) if owner_uid else None
    return render(
        RayJob(
            run_key="digits-0",
            run_uri="s3://iddpm/runs/digits-0",
            entrypoint=("true",),
            namespace=fake_kubernetes.NAMESPACE,
            image="iddpm:1",
            resources=StageResources(ray_mode="rayjob", cpu="4"),
            owner=owner,
        )
    )


def _workflow(cluster: FakeKubernetes, phase: str) -> None:
    cluster.workflows["train-x"] = {"metadata": {"name": "train-x", "uid": "w-1"}, "status": {"phase": phase}}


def _reap() -> list[str]:
    return rayjob_reaper.delete_finished_rayjobs(KubernetesApi(fake_kubernetes.NAMESPACE))


@pytest.mark.parametrize("phase", ["Succeeded", "Failed", "Error"])
@pytest.mark.parametrize("status", [_RUNNING, _STARTED, None])
def test_a_job_whose_workflow_has_ended_without_it_is_deleted(cluster, capsys, phase, status):
    kept = cluster.add_rayjob(_manifest(), status)
    _workflow(cluster, phase)
    assert _reap() == [kept["metadata"]["name"]]
    assert cluster.rayjobs == {}
    assert f"its Workflow train-x has ended or is cancelled ({phase})" in capsys.readouterr().out


@pytest.mark.parametrize("phase", ["Running", "Pending", ""])
def test_a_job_whose_workflow_goes_on_is_left_alone(cluster, phase):
    cluster.add_rayjob(_manifest(), _RUNNING)
    _workflow(cluster, phase)
    assert _reap() == []
    assert cluster.count("DELETE") == 0


def test_a_job_of_a_cancelled_run_is_deleted_before_its_workflow_has_ended(cluster):
    cluster.add_rayjob(_manifest(), _RUNNING)
    cancelled = [state for state in workflow_states("rayjob-cancelled") if state["spec"].get("activeDeadlineSeconds") == 0]
    assert cancelled[0]["status"]["phase"] == "Running"
    cluster.workflows["train-x"] = {**cancelled[0], "metadata": {"name": "train-x", "uid": "w-1"}}
    assert len(_reap()) == 1


def test_sixty_jobs_that_go_on_cost_the_cluster_two_lists_in_pages(cluster):
    for number in range(60):
        manifest = _manifest(owner_uid=f"w-{number}")
        manifest["metadata"]["name"] = f"job-{number}"
        cluster.add_rayjob(manifest, _RUNNING)
        cluster.workflows[f"train-{number}"] = {
            "metadata": {"name": f"train-{number}", "uid": f"w-{number}"},
            "status": {"phase": "Running"},
        }
    assert _reap() == []
    assert cluster.count("GET", "/rayjobs") == cluster.count("GET", "/workflows") == 3  # of 25 each
    assert cluster.count("GET") == 6


def test_a_list_whose_next_page_has_expired_is_asked_for_again_and_gives_each_item_once(cluster):
    names = [f"train-{number}" for number in range(60)]
    cluster.workflows.update({name: {"metadata": {"name": name, "uid": f"uid-{name}"}} for name in names})
    found = []
    for workflow in KubernetesApi(fake_kubernetes.NAMESPACE).workflows(""):
        if len(found) == 30:  # in the second page, as if the work so far had taken minutes
            cluster.faults["GET"] = [410]
        found.append(workflow["metadata"]["name"])
    assert found == names
    assert cluster.count("GET", "/workflows") == 3 + 3


def test_a_finished_job_stays_for_its_log(cluster):
    cluster.add_rayjob(_manifest(), _DONE)
    _workflow(cluster, "Succeeded")
    assert _reap() == []


def test_a_job_that_belongs_to_no_workflow_or_to_another_of_the_name_is_left_alone(cluster):
    _workflow(cluster, "Failed")
    cluster.add_rayjob(_manifest(owner_uid=""), _RUNNING)
    assert _reap() == []
    cluster.add_rayjob(_manifest(owner_uid="an-earlier-one"), _RUNNING)
    assert _reap() == []


def test_a_rayjob_of_somebody_else_is_not_even_looked_at(cluster):
    manifest = _manifest()
    manifest["metadata"]["labels"] = {}
    cluster.add_rayjob(manifest, _RUNNING)
    _workflow(cluster, "Failed")
    assert _reap() == []


def test_a_missing_permission_is_reported_in_one_line(cluster):
    cluster.faults["GET"] = [403]
    with pytest.raises(KubernetesError, match="may not list RayJobs"):
        _reap()


def test_a_cluster_without_kuberay_has_nothing_to_reap(cluster):
    cluster.has_kuberay = False
    assert _reap() == []
