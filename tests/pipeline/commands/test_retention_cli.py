"""`iddpm gc` and `iddpm verify` in a real S3 and with a real MLflow."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from training import storage
from training.checkpoints import checkpoint
from training.config.presets import preset
from training.tracking.client import connect
from training.tracking.registry import RegisteredModel, register
from training.tracking.runs import open_run

Command = Callable[..., "tuple[int, str, str]"]
EXPERIMENT = preset("digits-hybrid-cosine").to_json().encode()


def _run(root: str, name: str, steps: tuple[int, ...]) -> Any:
    """A run with checkpoints, the first of which was chosen; it is open in MLflow."""
    key = f"{name}-{uuid.uuid4().hex[:8]}"
    uri = f"{root}/runs/{key}"
    for step in steps:
        checkpoint.save(uri, step, {"experiment.json": EXPERIMENT, "model.pt": {"step": step}})
    storage.write_bytes(f"{uri}/experiment.json", EXPERIMENT)
    storage.write_json(f"{uri}/result.json", {"best_checkpoint_uri": checkpoint.checkpoint_uri(uri, steps[0])})
    storage.write_json(f"{uri}/evaluations/choice.json", {"checkpoint_uri": checkpoint.checkpoint_uri(uri, steps[0])})
    return uri, open_run(run_key=key, experiment_name="retention", run_name=key, tags={"iddpm.run_uri": uri}, params={})


@pytest.mark.slow
def test_gc_keeps_what_runs_and_what_is_named_and_verify_finds_each_damaged_file(bucket_uri: str, run_iddpm: Command) -> None:
    kept, tracked = _run(bucket_uri, "kept", (10, 20, 30, 40))
    assert tracked.finish("FINISHED")
    register(
        RegisteredModel(
            name=f"retention-{uuid.uuid4().hex[:8]}",
            run_id=tracked.run_id,
            checkpoint_uri=checkpoint.checkpoint_uri(kept, 30),
            weights="model",
            data_uri="",
            distance_name="FID",
            distance=1.0,
        ),
        loader_module="evaluation.sampling.pyfunc",
    )
    given_up, other = _run(bucket_uri, "given-up", (10, 20))
    assert other.finish("FINISHED")
    connect().delete_run(other.run_id)
    running, still = _run(bucket_uri, "running", (10, 20))
    storage.write_bytes(f"{running}/checkpoints/step=00000030/model.pt", b"half")
    assert still.flush()
    storage.write_bytes(f"{bucket_uri}/data/digits/train/shard", b"x")
    untouched = storage.list_objects(running)

    now = ("--days", "0", "--grace-hours", "0")
    status, out, _ = run_iddpm("gc", bucket_uri, *now)
    assert status == 0
    assert "may be deleted now" in out
    assert checkpoint.steps(given_up) == [10, 20]
    assert "nothing" not in run_iddpm("gc", bucket_uri)[1]
    found = json.loads(run_iddpm("gc", bucket_uri, "--delete", "--json")[1])
    assert (found["deleted"], found["deletable"]) == ([], [])  # everything was written to in the last 24 h
    found = json.loads(run_iddpm("gc", bucket_uri, "--delete", "--json", *now)[1])
    assert found["deleted"] == [f"runs/{given_up.rpartition('/')[2]}", f"runs/{kept.rpartition('/')[2]}/checkpoints/step=00000020"]
    assert storage.list_uris(given_up) == []
    assert checkpoint.steps(kept) == [10, 30, 40]
    assert storage.list_objects(running) == untouched
    assert storage.exists(f"{bucket_uri}/data/digits/train/shard")

    assert run_iddpm("verify", kept)[0] == 0
    assert "step=00000030: is incomplete" in run_iddpm("verify", running)[1]
    storage.write_bytes(f"{kept}/checkpoints/step=00000030/model.pt", b"x")
    storage.delete(f"{kept}/checkpoints/step=00000040/experiment.json")
    storage.write_bytes(f"{kept}/result.json", b"{")
    status, out, _ = run_iddpm("verify", kept)
    assert status == 1
    assert [line.removeprefix(f"{kept}/").split(":")[0] for line in out.splitlines()[:-1]] == [
        "checkpoints/step=00000030/model.pt",
        "checkpoints/step=00000040/experiment.json",
        "result.json",
    ]
    assert "has 1 bytes instead of" in out
    assert out.splitlines()[-1].startswith("3 damaged;")


def test_gc_refuses_a_size_that_is_none_and_a_root_without_runs(services: Any, bucket_uri: str, run_iddpm: Command) -> None:
    assert "--max-size 5XB: is not a size" in run_iddpm("gc", bucket_uri, "--max-size", "5XB")[2]
    assert "there are no runs and no sweeps below it" in run_iddpm("gc", bucket_uri)[2]
    assert "there is no run, checkpoint or data set there" in run_iddpm("verify", f"{bucket_uri}/none")[2]
