"""Work is spread over all pods of a Ray cluster: two nodes with two cores each, as `rayjob-2xcpu` asks for, and a head without any."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table

from training.config.experiment import Resources
from training.distributed.ray_session import parallel_map
from training.launch.ray_train import scaling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_pods() -> Iterator[set[str]]:
    """The ids of the nodes that work."""
    for attempts_left in (2, 1, 0):
        try:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
            pods = {cluster.add_node(num_cpus=2).node_id for _ in range(2)}
            break
        except Exception as error:  # Ray's fixed limit of 30 s can be too short on a busy machine
            if not attempts_left or "timed out during startup" not in str(error):
                raise
    try:
        cluster.wait_for_nodes()
        ray.init(address=cluster.address)
        yield pods
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_two_workers_of_a_training_are_in_two_pods(two_pods: set[str]) -> None:
    asked = scaling(Resources(num_workers=2), has_scorer=True)
    group = placement_group([{"CPU": 1}] * 2, strategy=asked.placement_strategy)
    assert group.wait(30)
    assert set(placement_group_table(group)["bundles_to_node_id"].values()) == two_pods
    ray.util.remove_placement_group(group)


def test_two_tasks_of_a_step_are_in_two_pods(two_pods: set[str], tmp_path: Path) -> None:
    def node(name: str) -> str:
        (tmp_path / name).touch()
        while len(list(tmp_path.iterdir())) < 2:  # both run at once, or the second may take the first one's place
            time.sleep(0.1)
        return ray.get_runtime_context().get_node_id()

    assert set(parallel_map(node, ["one", "two"], num_workers=2)) == two_pods
