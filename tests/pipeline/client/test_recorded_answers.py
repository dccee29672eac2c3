"""The stand-in for KFP says of a recorded Workflow what the real server said of it."""

from collections import Counter
from typing import Any

import pytest
from recorded_workflows import kfp_answer, recorded, workflow_states

RUNS = {
    "train-local-succeeded": "run-succeeded",
    "rayjob-cancelled": "run-cancelled-rayjob",
    "plugin-env-collision-then-cancelled": "run-cancelled-with-pod-invalid",
    "bad-source-failed": "run-failed-bad-source",
    "worker-killed-then-step-pod-deleted": "run-failed-max-duration",
}


def _tasks(answer: dict[str, Any]) -> Counter[tuple[str, str | None, tuple[str, ...]]]:
    """Tasks with their states and children; the server adds one of its own that has no name."""
    return Counter(
        (each["display_name"], each.get("state"), tuple(sorted(child["pod_name"] for child in each.get("child_tasks") or ())))
        for each in answer["run_details"]["task_details"]
        if "display_name" in each
    )


@pytest.mark.parametrize(("workflow", "run"), RUNS.items())
def test_the_answer_about_a_finished_run_is_the_recorded_one(workflow: str, run: str) -> None:
    said, real = kfp_answer(workflow_states(workflow)[-1]), recorded("kfp-api", run)
    assert said["state"] == real["state"]
    assert [each["state"] for each in said["state_history"]] == [each["state"] for each in real["state_history"] if "state" in each]
    assert _tasks(said) == _tasks(real)
