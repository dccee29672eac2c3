"""The ratios of processor seconds that a busy machine leaves alone, held to 70 % of what `make bench` promises."""

from __future__ import annotations

import statistics

import bench_data
import pytest
from rows import ROWS

pytestmark = pytest.mark.slow

_SLACK = 0.7
_GOALS = {row.key: row.goals["cpu"] for row in ROWS if "cpu" in row.goals}


@pytest.mark.parametrize(("width", "height"), bench_data.SIZES)
def test_photographs_are_prepared_faster_than_by_the_released_method(width, height):
    found = bench_data.preparation_ratios(width, height)
    assert statistics.median(found.exact) >= _GOALS["data.prepare-exact"] * _SLACK
    assert statistics.median(found.reduced) >= _GOALS["data.prepare-reduced"] * _SLACK
    assert found.error <= 2.2


def test_loading_costs_a_fraction_of_a_data_loader_over_files():
    _, cpu = bench_data.loading_ratios(4096)
    assert cpu.value >= _GOALS["data.load-cpu"] * _SLACK
