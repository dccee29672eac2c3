"""The cores of a container in place of the machine's."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

_SHOW = """
import json, os, sys
{before}
from training.distributed.cores import limit_threads
limit_threads()
import torch
print(json.dumps([torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")]))
"""


def _threads(before: str = "", **environment: str) -> list[object]:
    """Threads of torch, and what child processes are told, in a container of one core: joblib takes this variable for its limit."""
    given = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", _SHOW.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
        env={**given, "LOKY_MAX_CPU_COUNT": "1", **environment},
    )
    return list(json.loads(done.stdout))


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="this machine has one core")
@pytest.mark.parametrize("before", ["", "import torch"])
def test_torch_computes_with_the_cores_of_the_container_also_if_it_was_imported_before(before: str) -> None:
    assert _threads(before) == [1, "1"]


def test_a_number_of_threads_that_the_user_has_set_stays() -> None:
    assert _threads(OMP_NUM_THREADS="2")[1] == "2"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2, reason="needs Linux and two cores")
def test_cores_that_the_process_may_not_use_do_not_count() -> None:
    code = "import os; from training.distributed import cores\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "print(cores.available_cores())"
    unlimited = {name: value for name, value in os.environ.items() if name != "LOKY_MAX_CPU_COUNT"}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=unlimited).stdout == "1\n"
