"""The life of a RayJob, followed by the real Kubernetes client on a small API over real HTTP."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_kubernetes
import pytest
from fake_kubernetes import NAMESPACE, FakeKubernetes, recorded_statuses
from recorded_workflows import workflow_states

from components.cluster import connection, kubernetes_api
from components.cluster.connection import KubernetesError, current_namespace
from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.names import LAUNCH_LABEL, RUN_LABEL
from components.cluster.workflows import Owner
from components.launch.rayjob import logs
from components.launch.rayjob.follow import Pace, RayJobError, run_rayjob
from components.launch.rayjob.manifest import RayJob, render
from components.launch.rayjob.status import failure_message, pod_troubles, read_status, remedy_of
from components.launch.resources import RayJobOptions, StageResources

_SUCCEEDED = recorded_statuses("4504db")
_RUNNING = next(status for status in _SUCCEEDED if status.get("jobStatus") == "RUNNING")
_GOOD = _SUCCEEDED[-1]
_FAILED = recorded_statuses("47d66d")[-1]
# Not recorded: in KubeRay's words (1.7, checkActiveDeadlineAndUpdateStatusIfNeeded), which leave Ray's status as it was.
_PAST_DEADLINE = {
    **_RUNNING,
    "jobDeploymentStatus": "Failed",
    "reason": "DeadlineExceeded",
    "message": "The RayJob has passed the activeDeadlineSeconds. StartTime: 2026-12-01 01:30:00 +0000 UTC. ActiveDeadlineSeconds: 240",
}
_WORKFLOW = Owner("argoproj.io/v1alpha1", "train-x", "workflow-1")


class _Clock:
    """A clock that a test moves, so that waiting takes no time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.on_sleep()
        time.sleep(0.001)  # the threads of the API and of the log have a turn

    def pace(self, poll_seconds: float) -> Pace:
        return Pace(poll_seconds=poll_seconds, clock=lambda: self.seconds, sleep=self.sleep)


def _job(*, deadline: int = 48 * 3600, **changes: Any) -> RayJob:
    options = RayJobOptions(active_deadline_seconds=deadline)
    return RayJob(
        **{
            "run_key": "digits-0123456789",
            "run_uri": "s3://iddpm/runs/digits-0123456789",
            "entrypoint": ("python", "-m", "components.launch.driver", "s3://iddpm/x.json"),
            "namespace": NAMESPACE,
            "image": "iddpm:test",
            "resources": StageResources(ray_mode="rayjob", cpu="2", rayjob=options),
            "owner": _WORKFLOW,
            "launch": "launch-1",
            **changes,
        }
    )


_NAME = _job().name


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    with fake_kubernetes.serve(tmp_path) as (fake, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        fake.script = list(_SUCCEEDED)
        yield fake


def _run(
    job: RayJob | None = None,
    *,
    patience: float = 5.0,
    done: bool = True,
    clock: _Clock | None = None,
    poll_seconds: float = 60.0,
    progress: Callable[[], int] = lambda: 0,
) -> None:
    api = KubernetesApi(NAMESPACE, patience_seconds=patience, first_pause_seconds=0.02)
    run_rayjob(job or _job(), api, is_done=lambda: done, progress=progress, pace=(clock or _Clock()).pace(poll_seconds))


def test_a_job_is_created_once_and_watched_to_its_good_end(cluster, capsys):
    _run()
    assert cluster.count("POST") == 1
    assert cluster.created[0]["metadata"]["ownerReferences"][0]["name"] == "train-x"
    assert cluster.count("DELETE") == 1  # so that its GPUs are free at once
    printed = capsys.readouterr().out
    assert "is starting its cluster" in printed
    assert "head-svc 8265" in printed


def test_a_launcher_that_is_tried_again_finds_its_job_and_creates_none(cluster):
    cluster.created.append(cluster.add_rayjob(render(_job()), _RUNNING))
    cluster.script = [_RUNNING, _RUNNING, _GOOD]
    _run()
    assert cluster.count("POST") == 0


def test_a_job_that_succeeded_before_the_launcher_came_back_is_not_run_again(cluster):
    cluster.add_rayjob(render(_job()), _GOOD)
    _run()
    assert cluster.count("POST") == 0


def test_a_job_that_succeeded_but_whose_result_is_gone_is_run_again(cluster):
    cluster.add_rayjob(render(_job()), _GOOD)
    _run(done=False)
    assert cluster.count("POST") == 1


def test_a_failed_job_is_created_again_only_when_it_and_its_pods_are_gone(cluster):
    cluster.add_rayjob(render(_job()), _FAILED)
    cluster.looks_until_gone = 3
    cluster.add_pod("old-head", {RUN_LABEL: _NAME})
    cluster.add_pod("old-submitter", {RUN_LABEL: _NAME}, status={"phase": "Failed"})
    clock, alive_at_creation = _Clock(), []

    def remove_pod_later() -> None:
        if clock.seconds > 100 and "old-head" in cluster.pods:
            alive_at_creation.append(bool(cluster.created))
            del cluster.pods["old-head"]

    clock.on_sleep = remove_pod_later
    _run(clock=clock)
    assert alive_at_creation == [False]
    assert cluster.count("POST") == 1


def test_pods_that_never_go_are_named(cluster):
    cluster.add_pod("stuck-head", {RUN_LABEL: _NAME})
    with pytest.raises(RayJobError, match="stuck-head"):
        _run()
    assert cluster.count("POST") == 0


def test_a_job_that_is_never_removed_points_at_the_operator(cluster):
    cluster.add_rayjob(render(_job()), _FAILED)
    cluster.looks_until_gone = 10**6
    with pytest.raises(RayJobError, match="operator"):
        _run()


def test_a_job_of_the_same_name_for_another_directory_is_refused(cluster):
    cluster.add_rayjob(render(_job(run_uri="s3://elsewhere/runs/x")), _RUNNING)
    with pytest.raises(RayJobError, match="s3://elsewhere/runs/x"):
        _run()
    assert cluster.count("DELETE") == 0


def test_a_rayjob_that_is_not_ours_is_left_alone(cluster):
    manifest = render(_job())
    del manifest["metadata"]["labels"][RUN_LABEL]
    cluster.add_rayjob(manifest, _FAILED)
    with pytest.raises(RayJobError, match="did not make"):
        _run()
    assert cluster.count("DELETE") == 0


def test_two_launchers_of_one_run_share_one_job(cluster):
    cluster.seconds_to_create = 0.2  # so that all look, and find nothing, before one creates
    failures: list[BaseException] = []

    def launch() -> None:
        try:
            _run()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=launch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert cluster.count("POST") > 1
    assert len(cluster.created) == 1


# -- how it ends badly -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "reasons"),
    [
        (recorded_statuses("47d66d"), ["SubmissionFailed", "BackoffLimitExceeded"]),
        (recorded_statuses("967f1a"), ["SubmissionFailed", "BackoffLimitExceeded"]),
        ([_RUNNING, _PAST_DEADLINE], ["DeadlineExceeded", "has passed the activeDeadlineSeconds", "active_deadline_seconds"]),
    ],
    ids=["submitter lost", "head killed", "deadline"],
)
def test_a_lost_job_goes_on_from_the_last_checkpoint_on_a_new_one_once_its_pods_are_gone(cluster, capsys, statuses, reasons):
    clock, deleted_at = _Clock(), []
    cluster.script = statuses

    def pods_of_the_lost_job(rayjob: dict[str, Any]) -> None:
        if len(cluster.created) == 1 and rayjob.get("status") == cluster.script[-1]:
            cluster.add_pod("old-worker", {RUN_LABEL: _NAME})

    def end_pods_later() -> None:
        if "old-worker" in cluster.pods and not cluster.rayjobs:
            deleted_at.append(clock.seconds)
            if clock.seconds - deleted_at[0] > 100:
                assert len(cluster.created) == 1
                cluster.script = list(_SUCCEEDED)
                del cluster.pods["old-worker"]

    cluster.on_look, clock.on_sleep = pods_of_the_lost_job, end_pods_later
    _run(clock=clock, progress=lambda: 400)
    assert len(cluster.created) == 2
    printed = capsys.readouterr().out
    assert all(word in printed for word in (*reasons, "going on from step 400"))


@pytest.mark.parametrize(("steps", "jobs"), [([0, 0, 0, 0], 3), ([0, 200, 200, 400, 400, 400], 5)], ids=["no progress", "progress"])
def test_a_run_that_is_lost_three_times_without_progress_is_given_up(cluster, steps, jobs):
    cluster.script = recorded_statuses("967f1a")
    left = iter(steps)
    with pytest.raises(RayJobError, match=r"SubmissionFailed.*lost 3 times without a new checkpoint") as caught:
        _run(progress=lambda: next(left))
    assert len(cluster.created) == jobs
    assert "\n" not in str(caught.value)


def test_a_training_that_fails_by_itself_is_not_started_again(cluster):
    # Not recorded: the reason is KubeRay's for a driver that ends with an error.
    message = "Job entrypoint command failed with exit code 1, last available logs"
    cluster.script = [_RUNNING, {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": message}]
    with pytest.raises(RayJobError, match="AppFailed"):
        _run()
    assert len(cluster.created) == 1


@pytest.mark.parametrize("code", [-9, 137, 75])
def test_a_driver_that_was_killed_or_asks_for_another_try_gets_one(code):
    message = f"Job entrypoint command failed with exit code {code}, last available logs"
    assert read_status({"status": {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": message}}).is_lost


@pytest.mark.parametrize(
    "message",
    [
        "Submitter completed but Ray job not found in RayCluster.",
        "Job supervisor actor died: The actor died unexpectedly before finishing this task.\n\tclass_name: JobSupervisor\n"
        "The actor is dead because its node has died. Node Id: 1",
        "Unexpected error occurred: The actor was lost as its node was preempted",
    ],
)
def test_a_job_whose_node_died_gets_another_try(message):
    """Not recorded: the words are KubeRay's (1.7) and Ray's (2.60)."""
    assert read_status({"status": {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": message}}).is_lost


@pytest.mark.parametrize("log", ["TrainingError: training stopped: The node died. ...", "exit code 137", "a node's deadline"])
def test_a_drivers_own_last_lines_make_its_error_no_loss(log):
    message = f"Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\n{log}"
    assert not read_status({"status": {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": message}}).is_lost


def test_the_requests_of_a_followed_job_stay_under_six_tenths_of_one_a_minute(cluster):
    clock, hours = _Clock(), 24
    cluster.script = [*_SUCCEEDED[:2], _RUNNING]

    def end(rayjob: dict[str, Any]) -> None:
        if clock.seconds > hours * 3600:
            cluster.script = [_GOOD]

    cluster.on_look = end
    _run(clock=clock, poll_seconds=5.0)
    assert len(cluster.requests) / (hours * 60) < 0.6


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, ["STOPPED", "by hand"]),
        ({"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "an\nerror"}, ["AppFailed", "an error", "latest checkpoint"]),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, ["deadline", "latest checkpoint"]),
        ({"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded"}, ["did not come up in time"]),
        ({"jobDeploymentStatus": "Failed", "reason": "JobStatusCheckTimeoutExceeded"}, ["head more memory"]),
        ({"jobDeploymentStatus": "Failed", "reason": "JobDeploymentStatusTransitionGracePeriodExceeded"}, ["did not answer"]),
        ({"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "bad"}, ["refuses the manifest", "1.7"]),
        ({"jobDeploymentStatus": "Failed", "reason": "SomethingNew"}, ["SomethingNew"]),
    ],
)
def test_every_reason_of_kuberays_has_a_remedy(status, words):
    found = read_status({"status": status})
    assert found.failed
    assert all(word in f"{failure_message(_NAME, found)}; {remedy_of(found)}" for word in words)


def test_a_problem_of_a_pod_is_reported_once_and_is_in_the_final_error(cluster, capsys):
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}, "name": "ray-head"}
    status = {"phase": "Pending", "containerStatuses": [{**waiting, "image": "i", "imageID": "", "ready": False, "restartCount": 0}]}
    cluster.script = [*_SUCCEEDED[:4], {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded"}]
    # Not before the job: a pod with the run's label would be waited for.
    cluster.on_look = lambda rayjob: cluster.add_pod("head", {RUN_LABEL: _NAME, "ray.io/node-type": "head"}, status=status)
    with pytest.raises(RayJobError, match="ImagePullBackOff"):
        _run()
    assert capsys.readouterr().out.count("head: ImagePullBackOff") == 1


def test_pods_that_a_quota_refuses_are_reported_once_and_are_in_the_final_error(cluster, capsys):
    # The status is recorded; its last condition is not: KubeRay 1.7 adds it where it can't create a pod.
    (status, *_) = (each for each in _SUCCEEDED if (each.get("rayClusterStatus") or {}).get("conditions"))

    def refused(pod: str) -> dict[str, Any]:
        message = f'pods "{pod}" is forbidden: exceeded quota: iddpm-gpus, requested: requests.nvidia.com/gpu=8, used: 32, limited: 32'
        condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateWorkerPod", "message": message}
        ray = status["rayClusterStatus"]
        return {**status, "rayClusterStatus": {**ray, "conditions": [*ray["conditions"], condition]}}

    end = {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded"}
    cluster.script = [status, refused("x-workers-worker-a1b2c"), refused("x-workers-worker-d3e4f"), end]
    with pytest.raises(RayJobError, match="seen: pods are refused: a pod is forbidden: exceeded quota: iddpm-gpus"):
        _run()
    assert capsys.readouterr().out.count("pods are refused") == 1


def test_a_job_that_is_deleted_by_somebody_says_so(cluster):
    cluster.script = [_RUNNING]

    def delete_soon(rayjob: dict[str, Any]) -> None:
        if rayjob["looks"] == 3:
            cluster.rayjobs.pop(_NAME)

    cluster.on_look = delete_soon
    with pytest.raises(RayJobError, match="deleted while it ran"):
        _run(done=False)


def test_the_job_of_another_run_that_is_cancelled_is_made_anew(cluster, capsys):
    """Run B follows the job of run A; the end of A must not fail B."""
    theirs = render(_job(owner=Owner("argoproj.io/v1alpha1", "train-y", "workflow-2"), launch="launch-2"))
    cluster.created.append(cluster.add_rayjob(theirs, _RUNNING))
    cluster.script = [_RUNNING]

    def cancel(rayjob: dict[str, Any]) -> None:
        if len(cluster.created) == 1 and rayjob["looks"] == 3:
            cluster.rayjobs.pop(_NAME)
            cluster.script = list(_SUCCEEDED)

    cluster.on_look = cancel
    _run(done=False)
    assert [each["metadata"]["labels"][LAUNCH_LABEL] for each in cluster.created] == ["launch-2", "launch-1"]
    assert "of another run was deleted" in capsys.readouterr().out


def test_a_job_of_another_run_that_succeeds_without_our_result_is_followed_by_our_own(cluster, capsys):
    """A tuning that is submitted twice, or with more trials, has one directory and one job, and a result for each call."""
    theirs = render(_job(owner=Owner("argoproj.io/v1alpha1", "train-y", "workflow-2"), launch="launch-2"))
    cluster.created.append(cluster.add_rayjob(theirs, _RUNNING))
    cluster.script = [_RUNNING, _GOOD]
    api = KubernetesApi(NAMESPACE, patience_seconds=5.0, first_pause_seconds=0.02)
    run_rayjob(
        _job(),
        api,
        is_done=lambda: cluster.created[-1]["metadata"]["labels"][LAUNCH_LABEL] == "launch-1" and cluster.created[-1]["status"] == _GOOD,
        pace=_Clock().pace(60.0),
    )
    assert [each["metadata"]["labels"][LAUNCH_LABEL] for each in cluster.created] == ["launch-2", "launch-1"]
    assert "succeeded without this run's result" in capsys.readouterr().out


def test_a_run_that_is_done_does_not_follow_the_job_that_replaced_its_own(cluster):
    cluster.script = [_RUNNING, _RUNNING, _GOOD]

    def replace(rayjob: dict[str, Any]) -> None:
        if len(cluster.created) == 1 and rayjob["looks"] == 3:
            cluster.rayjobs.pop(_NAME)
            cluster.add_rayjob(render(_job(launch="launch-2", owner=Owner("argoproj.io/v1alpha1", "train-y", "w-2"))), _RUNNING)
            rayjob["metadata"] = {**rayjob["metadata"], "uid": "uid-of-the-next"}

    cluster.on_look = replace
    _run()
    assert cluster.rayjobs[_NAME]["metadata"]["labels"][LAUNCH_LABEL] == "launch-2"


def test_a_job_that_another_run_has_deleted_when_it_was_done_is_done(cluster):
    """Two runs of one training follow one job: on a slow node the second had not seen the end before the first deleted it."""
    cluster.script = [_RUNNING]
    cluster.on_look = lambda rayjob: cluster.rayjobs.pop(_NAME) if rayjob["looks"] == 3 else None
    _run()


def test_a_job_that_outlives_its_deadline_is_deleted_and_goes_on_on_a_new_one(cluster, capsys):
    """KubeRay's operator was away for ten minutes after the deadline."""
    cluster.script = [_RUNNING]

    def come_back(rayjob: dict[str, Any]) -> None:
        if len(cluster.created) == 2:
            cluster.script = [_RUNNING, _GOOD]

    cluster.on_look = come_back
    _run(_job(deadline=1), progress=lambda: 400)
    assert len(cluster.created) == 2
    printed = capsys.readouterr().out
    assert "outlived its deadline of 1.0 s, and it is deleted; is KubeRay's operator running" in printed
    assert "going on from step 400" in printed


def test_a_job_that_outlives_its_deadline_three_times_without_progress_is_given_up(cluster):
    cluster.script = [_RUNNING]
    with pytest.raises(RayJobError, match=r"outlived its deadline.*lost 3 times without a new checkpoint"):
        _run(_job(deadline=1))
    assert len(cluster.created) == 3
    assert _NAME not in cluster.rayjobs


def _job_of_another_run(cluster: FakeKubernetes, *, deadline: int) -> None:
    theirs = render(_job(owner=Owner("argoproj.io/v1alpha1", "train-y", "workflow-2"), launch="launch-2", deadline=deadline))
    cluster.created.append(cluster.add_rayjob(theirs, _RUNNING))


def test_a_job_of_another_run_is_followed_to_that_ones_deadline(cluster):
    _job_of_another_run(cluster, deadline=6 * 3600)
    cluster.script = [*[_RUNNING] * 30, _GOOD]
    clock = _Clock()
    _run(_job(deadline=1), clock=clock, poll_seconds=300.0)
    assert 3600 < clock.seconds < 6 * 3600
    assert cluster.count("DELETE") == 0


def _waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (_waiting("PodInitializing"), []),
        (_waiting("ContainerCreating"), []),
        (_waiting("ErrImageNeverPull", "image is not present with pull policy of Never"), ["image is not present"]),
        (_waiting("RunContainerError", "nvidia-container-cli: initialization error"), ["RunContainerError: nvidia-container-cli"]),
        (
            {"phase": "Failed", "reason": "Evicted", "message": 'Usage of EmptyDir volume "scratch" exceeds the limit "50Gi".'},
            ['worker: Evicted: Usage of EmptyDir volume "scratch" exceeds'],
        ),
        (
            {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed due to requested number of devices"},
            ["UnexpectedAdmissionError: Allocate failed"],
        ),
        ({"phase": "Failed"}, []),
    ],
)
def test_what_keeps_a_pod_from_running_is_named_in_kubernetes_words(status, said):
    troubles = pod_troubles([{"metadata": {"labels": {"ray.io/node-type": "worker"}}, "status": status}] * 2)
    assert len(troubles) == len(said)
    assert all(words in trouble for words, trouble in zip(said, troubles, strict=True))


@pytest.mark.parametrize("status", [_RUNNING, {}], ids=["outlived", "unseen"])
def test_a_job_of_another_run_that_kuberay_should_have_ended_is_given_up_and_left_alone(cluster, status):
    _job_of_another_run(cluster, deadline=1)
    cluster.script = [status]
    with pytest.raises(RayJobError, match="it is left to the run that made it"):
        _run()
    assert cluster.count("DELETE") == 0
    assert _NAME in cluster.rayjobs


def test_time_in_the_queue_does_not_count_also_when_the_queue_takes_a_running_job_back(cluster):
    # Not recorded, for want of Kueue: these are the two states that KubeRay's schema has for it.
    suspended = [{"jobDeploymentStatus": "Suspending"}, *[{"jobDeploymentStatus": "Suspended"}] * 20]
    cluster.script = [_RUNNING, *suspended, _RUNNING, _GOOD]
    _run(_job(deadline=1), done=False)
    assert cluster.count("DELETE") == 0


@pytest.mark.parametrize(("queues", "words"), [(None, "needs Kueue"), ({}, r"no LocalQueue 'training' in namespace runs")])
def test_a_queue_that_is_not_there_is_an_error_at_once(cluster, queues, words):
    cluster.queues = queues
    with pytest.raises(RayJobError, match=words):
        _run(_job(resources=StageResources(ray_mode="rayjob", cpu="2", queue="training")))
    assert cluster.created == []


def test_a_queue_that_may_not_be_asked_for_is_not_checked(cluster, capsys):
    """Not every cluster lets an account look at its API groups."""
    cluster.queues = {"training": {}}
    api = KubernetesApi(NAMESPACE)
    cluster.faults = {"GET": [403]}
    assert api.queue_problem("training") == ""
    assert "queue training is not checked" in capsys.readouterr().out
    cluster.faults = {"GET": [403]}
    assert api.queue_reasons("uid-1") == []


def test_a_job_in_a_queue_says_what_it_waits_for(cluster, capsys):
    cluster.queues = {"training": {}}
    cluster.script = [*[{"jobDeploymentStatus": "Suspended"}] * 3, *_SUCCEEDED[2:]]
    clock, said_after = _Clock(), []

    def admit_later(rayjob: dict[str, Any]) -> None:
        labels = {"kueue.x-k8s.io/job-uid": rayjob["metadata"]["uid"]}
        message = "couldn't assign flavors to pod set workers: insufficient unused quota for nvidia.com/gpu"
        conditions = [{"type": "QuotaReserved", "status": "False", "message": message}]
        cluster.workloads["w"] = {"metadata": {"name": "w", "labels": labels}, "status": {"conditions": conditions}}
        said_after.append(clock.seconds)

    cluster.on_look = admit_later
    _run(_job(resources=StageResources(ray_mode="rayjob", cpu="2", queue="training")), clock=clock, poll_seconds=5.0)
    printed = capsys.readouterr().out
    assert printed.count("queue: couldn't assign flavors") == 1
    assert said_after[0] < 30


def test_a_job_that_kuberay_does_not_see_is_given_up_and_deleted(cluster):
    cluster.script = [{}]
    with pytest.raises(RayJobError, match="has not looked at"):
        _run()
    assert cluster.rayjobs == {}


# -- an API with bad minutes -------------------------------------------------------------------------------------------


def test_server_errors_and_lost_connections_are_survived(cluster):
    cluster.faults = {"GET": [503, "drop", 500, 429, "drop", 502], "POST": [500, "drop"]}
    _run()
    assert len(cluster.created) == 1


def test_a_request_that_gets_no_answer_is_sent_again(cluster, monkeypatch):
    monkeypatch.setattr(kubernetes_api, "_TIMEOUT", (0.2, 0.2))
    cluster.faults = {"GET": ["hang"], "POST": ["hang"]}
    _run()
    assert cluster.faults == {"GET": [], "POST": []}
    assert len(cluster.created) == 1


def test_a_create_whose_answer_is_lost_makes_one_job(cluster):
    cluster.faults = {"POST": ["lose"]}
    _run()
    assert cluster.count("POST") == 2
    assert len(cluster.created) == 1


def test_a_token_that_expires_is_read_anew(cluster, tmp_path):
    def rotate(rayjob: dict[str, Any]) -> None:
        if rayjob["looks"] == 2:
            cluster.tokens = {"second-token"}
            fake_kubernetes.write_kubeconfig(tmp_path / "kubeconfig.json", cluster.url, "second-token")

    cluster.on_look = rotate
    _run()
    assert cluster.tokens == {"second-token"}
    assert len(cluster.created) == 1


def test_an_api_that_stays_away_is_given_up_and_the_job_left_running(cluster, capsys):
    cluster.script = [_RUNNING]

    def break_down(rayjob: dict[str, Any]) -> None:
        cluster.faults["GET"] = [503] * 10**4

    cluster.on_look = break_down
    with pytest.raises(KubernetesError, match=r"did not .* for 0\.3 s .it answered 503"):
        _run(patience=0.3)
    assert cluster.count("DELETE") == 0
    said = "it answered 503: told to answer 503; trying again for 0.3 s"
    assert said in capsys.readouterr().out, "without the answer's headers and body"


def test_a_missing_permission_names_the_role(cluster):
    cluster.faults = {"GET": [403]}
    with pytest.raises(KubernetesError, match="k8s/base/runs"):
        _run()


def test_a_quota_that_refuses_a_job_is_not_called_a_missing_permission(cluster):
    words = 'rayjobs.ray.io "x" is forbidden: exceeded quota: jobs, requested: count/rayjobs.ray.io=1, used: 5, limited: 5'
    cluster.faults = {"POST": [(403, words)]}
    with pytest.raises(KubernetesError) as refused:
        _run()
    assert str(refused.value) == f"the Kubernetes API refused to create RayJob {_NAME} (403): {words}"


def test_an_admission_webhook_that_is_away_is_named_in_the_first_line_and_in_the_last(cluster, capsys):
    words = 'Internal error occurred: failed calling webhook "mrayjob.kb.io": connection refused'
    cluster.faults = {"POST": [(500, words)] * 10**4}
    with pytest.raises(KubernetesError) as given_up:
        _run(patience=0.3)
    assert f"it answered 500: {words}; trying again for 0.3 s" in capsys.readouterr().out
    assert str(given_up.value) == f"the Kubernetes API did not create RayJob {_NAME} for 0.3 s (it answered 500: {words})"


def test_a_cluster_without_kuberay_says_what_to_install(cluster):
    cluster.has_kuberay = False
    with pytest.raises(KubernetesError, match="install KubeRay"):
        _run()


def test_a_refusal_of_the_manifest_is_reported_in_the_servers_words(cluster):
    cluster.faults = {"POST": [422]}
    with pytest.raises(KubernetesError, match=r"422.*told to answer 422"):
        _run()


def test_a_token_that_is_refused_when_it_is_new_is_an_error_at_once(cluster):
    cluster.tokens = set()
    with pytest.raises(KubernetesError, match=r"401.*renew the kubeconfig's token"):
        _run()
    assert len(cluster.requests) == 2


def test_a_pod_waits_for_the_kubelet_to_renew_a_token_that_has_expired(cluster, monkeypatch):
    monkeypatch.setattr(kubernetes_api, "in_cluster", lambda: True)
    cluster.tokens = set()
    threading.Timer(0.3, cluster.tokens.add, ["first-token"]).start()
    _run()
    assert len(cluster.created) == 1


@pytest.mark.parametrize("text", [None, "not: [a, kubeconfig"], ids=["missing", "broken"])
@pytest.mark.parametrize("look", [current_namespace, lambda: KubernetesApi(NAMESPACE)], ids=["its namespace", "the API"])
def test_without_a_cluster_the_error_says_what_to_set(monkeypatch, tmp_path, look, text):
    if text is not None:
        (tmp_path / "kubeconfig").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with pytest.raises(KubernetesError, match="set KUBECONFIG"):
        look()


def test_a_pod_without_a_token_is_told_what_to_set(monkeypatch, tmp_path):
    """A notebook's pod is one: its account's token is not mounted."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setattr(connection, "_NAMESPACE_FILE", tmp_path / "namespace")
    with pytest.raises(KubernetesError, match=r"no cluster is known here: .*namespace.*set KUBECONFIG"):
        current_namespace()


# -- logs --------------------------------------------------------------------------------------------------------------


_LOG = [
    "2026-11-26 06:49:12,345\tINFO cli.py:41 -- \x1b[37mJob submission server address\x1b[39m: \x1b[1mhttp://head:8265\x1b[22m",
    "iddpm| step 1",
    "iddpm| step 2",
]


def _with_log(cluster: FakeKubernetes) -> Callable[[dict[str, Any]], None]:
    def add(rayjob: dict[str, Any]) -> None:
        if rayjob["looks"] == 2:
            cluster.add_pod("submitter", {RUN_LABEL: _NAME}, spec={"containers": [{"name": "ray-job-submitter", "image": "i"}]})
            cluster.logs["submitter"] = [f"2026-01-01T00:00:0{second}Z {line}" for second, line in enumerate(_LOG)]

    return add


def test_the_drivers_log_is_shown_once_line_by_line(cluster, capsys):
    cluster.on_look = _with_log(cluster)
    _run()
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "step" in line] == _LOG[1:]
    assert "cli.py" not in printed


def test_a_second_submitter_repeats_no_line_and_its_own_are_shown(cluster, capsys):
    first = _with_log(cluster)

    def add_second(rayjob: dict[str, Any]) -> None:
        first(rayjob)
        if rayjob["looks"] == 6:
            cluster.add_pod("submitter-2", {RUN_LABEL: _NAME}, spec={"containers": [{"name": "ray-job-submitter", "image": "i"}]})
            cluster.logs["submitter-2"] = [*cluster.logs["submitter"], "2026-01-01T00:01:00Z iddpm| step 3"]

    cluster.on_look = add_second
    _run()
    assert [line for line in capsys.readouterr().out.splitlines() if "step" in line] == [*_LOG[1:], "iddpm| step 3"]


def test_a_connection_that_breaks_goes_on_where_it_broke_though_the_kubelet_has_rotated_the_log(cluster, capsys, monkeypatch):
    monkeypatch.setattr(logs, "_PAUSE_SECONDS", 0.05)
    first = _with_log(cluster)

    def rotate(rayjob: dict[str, Any]) -> None:
        first(rayjob)
        if rayjob["looks"] == 2:
            cluster.broken_logs = 1
        elif rayjob["looks"] > 2 and not cluster.broken_logs and len(cluster.logs["submitter"]) == len(_LOG):
            cluster.logs["submitter"] = [cluster.logs["submitter"][-1], "2026-01-01T00:01:00Z iddpm| step 3"]

    cluster.on_look = rotate
    cluster.script = [*_SUCCEEDED[:2], *[_RUNNING] * 20, _GOOD]
    _run(poll_seconds=0.05)
    assert [line for line in capsys.readouterr().out.splitlines() if "step" in line] == [*_LOG[1:], "iddpm| step 3"]
    assert [bool(query.get("sinceSeconds")) for query in cluster.log_queries[:2]] == [False, True]
    assert 60 <= int(cluster.log_queries[1]["sinceSeconds"][0]) <= 180


def test_the_last_lines_of_a_job_that_has_ended_come_from_a_slow_api_too(cluster, capsys, monkeypatch):
    monkeypatch.setattr(logs, "_SECONDS_WHEN_STOPPED", 0.1)
    cluster.on_look = _with_log(cluster)
    cluster.before = lambda method, path: time.sleep(1.0 if path.endswith("/log") else 0.0)
    _run()
    assert [line for line in capsys.readouterr().out.splitlines() if "step" in line] == _LOG[1:]


def test_a_log_that_breaks_off_harms_nothing(cluster, capsys):
    cluster.on_look = _with_log(cluster)
    cluster.logs["submitter"] = ["no stamp"]
    _run()
    assert "Traceback" not in capsys.readouterr().err


# -- SIGTERM -----------------------------------------------------------------------------------------------------------

_LAUNCHER = """
import sys
from components.cluster.kubernetes_api import KubernetesApi
from components.cluster.workflows import Owner
from components.launch.rayjob.follow import Pace, run_rayjob
from components.launch.rayjob.manifest import RayJob
from components.launch.resources import StageResources
owner, poll_seconds, launch = sys.argv[1], float(sys.argv[2]), sys.argv[3]
job = RayJob(
    run_key="digits-0123456789", run_uri="s3://iddpm/runs/digits-0123456789", entrypoint=("true",), namespace="runs",
    image="iddpm:test", resources=StageResources(ray_mode="rayjob", cpu="2"), launch=launch,
    owner=Owner("argoproj.io/v1alpha1", "w", owner) if owner else None,
)
run_rayjob(job, KubernetesApi("runs"), is_done=lambda: True, pace=Pace(poll_seconds=poll_seconds))
"""


def _launch_and_stop(
    cluster: FakeKubernetes,
    workflow: str,
    ready: Callable[[], bool],
    *,
    poll_seconds: float = 0.02,
    before_end: Callable[[], None] | None = None,
) -> int:
    """Start a launcher in a process of its own, send it SIGTERM once it is ready, and return its exit code."""
    child = subprocess.Popen([sys.executable, "-c", _LAUNCHER, workflow, str(poll_seconds), "launch-2"], stdout=subprocess.DEVNULL)
    try:
        while not ready():
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        if before_end:
            before_end()
        return child.wait(timeout=60)
    finally:
        child.kill()
        child.wait()


_CANCELLED, _GOES_ON = (workflow_states("rayjob-cancelled")[index] for index in (-1, 0))


def _workflow(cluster: FakeKubernetes, state: dict[str, Any] | None) -> None:
    """Put the launcher's Workflow into a recorded state; None deletes it."""
    cluster.workflows.clear()
    if state:
        cluster.workflows["w"] = {**state, "metadata": {**state["metadata"], "name": "w", "uid": "workflow-1"}}


def _cancelled_states() -> list[dict[str, Any]]:
    return [state for state in workflow_states("rayjob-cancelled") if state["spec"].get("activeDeadlineSeconds") == 0]


@pytest.mark.parametrize("state", [_cancelled_states()[0], _CANCELLED, None], ids=["being cancelled", "ended", "deleted"])
@pytest.mark.parametrize("poll_seconds", [0.02, 3000.0], ids=["in the middle of requests", "while it waits"])
def test_sigterm_of_a_cancelled_run_deletes_the_job_before_anything_else(cluster, poll_seconds, state):
    cluster.script = [_RUNNING]
    _workflow(cluster, state)
    looks = len(cluster.requests)

    def is_followed() -> bool:
        nonlocal looks
        before, looks = looks, len(cluster.requests)
        time.sleep(0.5 if poll_seconds > 1 else 0.0)
        return cluster.count("GET", _NAME) >= 2 and (before == looks == len(cluster.requests) or poll_seconds < 1)

    assert _launch_and_stop(cluster, "workflow-1", is_followed, poll_seconds=poll_seconds) == 143
    assert cluster.count("DELETE") >= 1
    assert cluster.rayjobs == {}
    if poll_seconds > 1:
        assert [method for _, method, _ in cluster.requests[looks : looks + 2]] == ["GET", "DELETE"]


@pytest.mark.parametrize("answers", [[], ["drop"], [403]], ids=["drained", "no answer", "refused"])
def test_sigterm_of_a_run_that_goes_on_leaves_the_job_and_the_next_try_follows_it(cluster, answers):
    cluster.script = [_RUNNING]
    _workflow(cluster, _GOES_ON)
    looks = len(cluster.requests)

    def is_followed() -> bool:
        nonlocal looks
        before, looks = looks, len(cluster.requests)
        time.sleep(0.5)
        if cluster.count("GET", _NAME) >= 2 and before == looks == len(cluster.requests):
            cluster.faults["GET"] = list(answers)
            return True
        return False

    assert _launch_and_stop(cluster, "workflow-1", is_followed, poll_seconds=3000.0) == 143
    assert cluster.count("DELETE") == 0
    (left,) = cluster.rayjobs.values()
    cluster.script = [_RUNNING, _GOOD]
    _run()
    assert len(cluster.created) == 1
    assert cluster.created[0]["metadata"]["uid"] == left["metadata"]["uid"]


def test_sigterm_while_the_job_is_being_created_leaves_none_behind(cluster):
    cluster.seconds_to_create = 0.5
    assert _launch_and_stop(cluster, "workflow-1", lambda: cluster.count("POST") == 1) == 143
    assert len(cluster.created) == 1
    assert cluster.rayjobs == {}


def test_sigterm_while_the_job_is_being_created_leaves_that_of_a_faster_launcher_alone(cluster):
    cluster.seconds_to_create = 0.5
    faster = render(_job())
    assert faster["metadata"]["labels"][LAUNCH_LABEL] == "launch-1"

    def create_faster() -> None:
        cluster.add_rayjob(faster, _RUNNING)

    assert _launch_and_stop(cluster, "workflow-2", lambda: cluster.count("POST") == 1, before_end=create_faster) == 143
    assert cluster.count("DELETE") == 0
    assert _NAME in cluster.rayjobs


@pytest.mark.parametrize(("theirs", "ours"), [(_WORKFLOW, "workflow-2"), (None, "")], ids=["another workflow", "another person"])
def test_sigterm_leaves_a_job_alone_that_somebody_else_started(cluster, theirs, ours):
    cluster.script = [_RUNNING]
    cluster.created.append(cluster.add_rayjob(render(_job(owner=theirs)), _RUNNING))
    assert _launch_and_stop(cluster, ours, lambda: cluster.count("GET", _NAME) >= 3) == 143
    assert cluster.count("DELETE") == 0
    assert _NAME in cluster.rayjobs


def test_sigterm_ends_the_job_of_an_earlier_try_of_the_same_workflow(cluster):
    cluster.script = [_RUNNING]
    _workflow(cluster, _CANCELLED)
    cluster.created.append(cluster.add_rayjob(render(_job()), _RUNNING))
    assert _launch_and_stop(cluster, "workflow-1", lambda: cluster.count("GET", _NAME) >= 3) == 143
    assert cluster.rayjobs == {}
