"""A kill of a preparation on two Ray workers costs at most one shard for each worker."""

import collections
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.config.errors import UserError
from training.data.format.manifest import read_manifest
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.catalog import open_splits

pytestmark = pytest.mark.slow

NUM_SHARDS = 24
ROWS = 8

# The source writes down each shard that is begun, and by whom; a read takes a moment, so that a kill meets work.
PROGRAM = """
import contextlib, functools, os, sys, time
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.files import FolderSource
from training.distributed.ray_session import parallel_map

class Watched(FolderSource):
    log = sys.argv[3]

    @contextlib.contextmanager
    def open(self):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}\\n")
        with super().open() as read:
            yield lambda locator: (time.sleep(0.02), read(locator))[1]

if __name__ == "__main__":
    source = Watched(sys.argv[1], name="images", split="train")
    two_workers = functools.partial(parallel_map, num_workers=2)
    prepare(source, sys.argv[2], image_size=8, options=Options(rows_per_shard=8), shard_map=two_workers)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for seed in range(NUM_SHARDS * ROWS):
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed:03d}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    place = str(tmp_path_factory.mktemp("whole"))
    return prepare(open_splits(str(images))["train"], place, image_size=8, options=Options(rows_per_shard=ROWS))


def start(images, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(images), str(tmp_path / "data"), str(tmp_path / "begun")]
    return subprocess.Popen(command, start_new_session=True)


def begun(tmp_path):
    """The worker of each shard that was begun."""
    log = tmp_path / "begun"
    return log.read_text().split() if log.exists() else []


def has_begun(tmp_path, count):
    return len(begun(tmp_path)) >= count


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended before the kill"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid):
    return Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_after_the_whole_program_is_killed_at_most_one_shard_a_worker_is_redone(images, undisturbed, tmp_path):
    for kill in (1, 2):
        process = start(images, tmp_path)
        wait_for(functools.partial(has_begun, tmp_path, len(begun(tmp_path)) + 5), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with pytest.raises(UserError, match="there is no data set"):
            read_manifest(str(tmp_path / "data"))
        workers = set(begun(tmp_path))
        deadline = time.monotonic() + 60
        while any(map(alive, workers)) and time.monotonic() < deadline:  # Ray's own processes end a moment later
            time.sleep(0.05)
        done = len(list((tmp_path / "data" / "_partial").glob("*.json")))
        assert done
        assert len(begun(tmp_path)) - done <= 2 * kill
    assert start(images, tmp_path).wait() == 0
    assert len(begun(tmp_path)) - NUM_SHARDS <= 2 * 2
    assert read_manifest(str(tmp_path / "data")) == undisturbed


def test_after_a_worker_is_killed_only_its_shard_is_redone_and_the_program_goes_on(images, undisturbed, tmp_path):
    process = start(images, tmp_path)
    wait_for(functools.partial(has_begun, tmp_path, 6), process)
    victim = collections.Counter(begun(tmp_path)[-2:]).most_common(1)[0][0]
    os.kill(int(victim), signal.SIGKILL)
    assert process.wait(timeout=120) == 0
    assert NUM_SHARDS <= len(begun(tmp_path)) <= NUM_SHARDS + 1
    assert read_manifest(str(tmp_path / "data")) == undisturbed
