"""Jobs on Ray: each is done once, and its exception is raised unchanged."""

import pytest

from training.checkpoints.checkpoint import CheckpointError, checkpoint_uri, step_of
from training.distributed.ray_session import parallel_map

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_job_is_done_once(num_workers: int) -> None:
    jobs = [checkpoint_uri("run", step) for step in range(8)]
    assert sorted(parallel_map(step_of, jobs, num_workers=num_workers)) == list(range(8))


def test_the_exception_of_a_job_is_raised() -> None:
    with pytest.raises(CheckpointError, match="elsewhere: is not a checkpoint's directory"):
        list(parallel_map(step_of, ["elsewhere", checkpoint_uri("run", 1)], num_workers=2))
