"""Processors that a lost training has reserved in Ray are free for the scores of the next one."""

from __future__ import annotations

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from training.launch.ray_train import _free_reservations

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def test_what_a_lost_training_reserved_is_free_again_and_stays_so() -> None:
    """Ray's memory monitor killed, on a cluster, the training's controller together with the actor that would have cleaned up."""
    group = placement_group([{"CPU": 3}])
    ray.get(group.ready(), timeout=60)
    _free_reservations()
    _free_reservations()  # of what is removed already nothing is asked
    assert placement_group_table(group)["state"] == "REMOVED"
    score = ray.remote(num_cpus=3)(lambda: "scored")
    assert ray.get(score.remote(), timeout=60) == "scored"
