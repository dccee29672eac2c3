"""Fixtures and settings of all tests: few threads, shapes checked at run time, and real S3 and MLflow where a test asks for them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from pipelines.services.services import Services

# torch reads these when it is imported, which nothing above does: a test takes one core, and leaves the rest to others.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# A training gives its network all the cores that joblib counts: one. With two threads and one free core, each of a step's many parallel
# loops spins until the other thread has had its turn, which takes ten times the processor's time.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")
# Ray's workers would be last in the queue behind all other tests, and those that wait for them are the longest.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# A shell's background job ignores Ctrl-C, and so would every program that the tests start and stop by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine an example takes longer than Hypothesis allows.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

# Every call of these packages has its shapes and types checked, in their own tests only. None of ours is imported before.
_CHECKED_ROOMS = ("records", "features", "distances", "sampling", "likelihood")
_CHECKED = ["training.diffusion", "training.models", "training.config.spacing", *(f"evaluation.{room}" for room in _CHECKED_ROOMS)]
install_import_hook(_CHECKED, "beartype.beartype")
_OWN_TESTS = (
    "diffusion",
    "models",
    *(f"evaluation/{room}" for room in ("records", "features", "distances", "sampling", "test_likelihood.py")),
)
_CHECKING = tuple(Path(__file__).parent / "unit" / name for name in _OWN_TESTS)
assert all(path.exists() for path in _CHECKING), "tests of a checked package were moved"


# Files that the project may not ship. Tests that read them are selected where the environment names the file.
_FILES = {"inception_weights": "IDDPM_INCEPTION_WEIGHTS", "kuberay_schema": "IDDPM_RAYJOB_SCHEMA"}
_SCHEMA_BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "schemas" / "rayjob.schema.json.gz"
if _SCHEMA_BESIDE_THE_CHECKOUT.is_file():
    os.environ.setdefault("IDDPM_RAYJOB_SCHEMA", str(_SCHEMA_BESIDE_THE_CHECKOUT))


# Modules of more than a minute beside two others, the longest first. The run would wait for one that began last.
_LONGEST = (
    "test_training_faults",
    "test_ablations",
    "test_other_faults",
    "test_pipelines",
    "test_exported_program",
    "test_services",
    "test_studies",
    "test_redone_shards",
    "test_docs",
    "test_ray_jobs",
    "test_tuning",
    "test_cli",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests whose file is not here, and begin with the longest modules."""
    positions = {name: position for position, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: positions.get(item.path.stem, len(positions)))
    absent = {marker for marker, variable in _FILES.items() if variable not in os.environ}
    if not any(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        absent.add("postgresql")
    deselected = [item for item in items if any(item.get_closest_marker(marker) for marker in absent)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check shapes and types in the quick tests of the checked packages: elsewhere it takes a quarter of the time, for the same calls."""
    is_checked = any(item.path.is_relative_to(folder) for folder in _CHECKING) and item.get_closest_marker("slow") is None
    jaxtyping.config.update("jaxtyping_disable", not is_checked)


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """Real S3 and MLflow for this test session alone, with the client's environment set."""
    from pipelines.services import services as local_services

    home = Path(tempfile.mkdtemp(prefix="iddpm-tests-"))
    before = dict(os.environ)
    try:
        running = local_services.up(home)
        os.environ.update(running.env)
        yield running
    finally:
        os.environ.clear()
        os.environ.update(before)
        local_services.down(home)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def bucket_uri(services: Services) -> str:
    """A directory in S3 that no other test uses."""
    return f"{services.bucket_uri}/tests/{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module", autouse=True)
def no_ray_left() -> Iterator[None]:
    """Fail the module whose tests leave Ray running in this process: some of Ray's calls start it, and the next module's start fails."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
        pytest.fail("a test of this module left Ray running in the test process; it needs the fixture ray_cluster, or a ray_session")


@pytest.fixture(scope="module")
def ray_cluster(no_ray_left: None) -> Iterator[None]:
    """A local Ray cluster that the tests of a module share: `ray_session` joins it, as its start takes longer than their work."""
    from training.distributed.ray_session import ray_session

    with ray_session(num_cpus=3):
        yield
