import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from training import storage
from training.checkpoints import checkpoint
from training.checkpoints.checkpoint import AsyncWriter, CheckpointError, size_and_sha256
from training.checkpoints.diffusers_folder import export_diffusers
from training.checkpoints.exported_program import export_program
from training.checkpoints.import_export import export_checkpoint
from training.config.presets import preset

EXPERIMENT = preset("digits-hybrid-cosine")


def files(value=1.0):
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, value)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "experiment.json": EXPERIMENT.to_json().encode(),
        "model.pt": model.state_dict(),
        "ema_0.99.pt": {"weight": torch.full((2, 3), value)},
        "ema_0.995.pt": {"weight": torch.full((2, 3), -value)},
        "optimizer.pt": optimizer.state_dict(),
        "state.json": {"step": 10, "scores": [1.5, None]},
    }


@pytest.fixture
def run(tmp_path):
    return str(tmp_path / "run")


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right) and left.dtype == right.dtype and left.stride() == right.stride()
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def test_what_is_saved_is_loaded_bit_for_bit(run):
    saved = files()
    uri = checkpoint.save(run, 10, saved)
    assert uri.endswith("/checkpoints/step=00000010")
    for name in ("model.pt", "optimizer.pt", "ema_0.99.pt", "state.json"):
        assert same(checkpoint.load(uri, name), dict(saved[name]))
    assert checkpoint.load_experiment(uri) == EXPERIMENT


def test_strides_survive_as_a_bitwise_resume_needs(run):
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    uri = checkpoint.save(run, 0, {"model.pt": {"weight": weight}})
    assert checkpoint.load(uri, "model.pt")["weight"].stride() == weight.stride()


def test_a_view_is_stored_without_the_buffer_around_it(run):
    buffer = torch.zeros(1_000_000)
    uri = checkpoint.save(run, 0, {"model.pt": {"part": buffer[10:20]}})
    assert storage.size(f"{uri}/model.pt") < 10_000


def test_the_first_average_is_the_default_weights(run):
    uri = checkpoint.save(run, 10, files(3.0))
    assert checkpoint.weights_names(uri) == ("ema_0.99", "ema_0.995", "model")
    assert checkpoint.load_model_state(uri)["weight"][0, 0] == 3.0
    assert checkpoint.load_model_state(uri, "ema_0.995")["weight"][0, 0] == -3.0
    with pytest.raises(CheckpointError, match=r"no weights 'ema_0\.9'; it has ema_0\.99, ema_0\.995, model"):
        checkpoint.load_model_state(uri, "ema_0.9")


def test_parts_of_averages_alone_are_no_weights_of_a_network(run, tmp_path):
    uri = checkpoint.save(run, 10, {"experiment.json": EXPERIMENT.to_json().encode(), "power_ema_0.05.pt": {"weight": torch.zeros(2)}})
    message = r"step=00000010: has no weights of a network; it has experiment\.json, power_ema_0\.05\.pt; name one of the run's"
    for read in (
        checkpoint.load_model_state,
        checkpoint.choose_weights,
        lambda uri: export_checkpoint(uri, str(tmp_path / "x.pt")),
        lambda uri: export_program(uri, str(tmp_path / "x.pt2")),
        lambda uri: export_diffusers(uri, str(tmp_path / "folder")),
    ):
        with pytest.raises(CheckpointError, match=message):
            read(uri)
    assert not list(tmp_path.glob("x.*"))


def test_the_latest_complete_checkpoint_counts_and_an_incomplete_one_does_not(run):
    assert checkpoint.latest(run) is None
    for step in (20, 10, 9):
        checkpoint.save(run, step, files())
    storage.write_bytes(f"{run}/checkpoints/step=00000030/model.pt", b"half")
    assert checkpoint.steps(run) == [9, 10, 20]
    assert checkpoint.latest(run) == checkpoint.checkpoint_uri(run, 20)
    with pytest.raises(CheckpointError, match=r"complete\.json is missing"):
        checkpoint.load(checkpoint.checkpoint_uri(run, 30), "model.pt")
    assert checkpoint.clean(run) == [30]
    assert storage.list_uris(checkpoint.checkpoint_uri(run, 30)) == []
    assert checkpoint.steps(run) == [9, 10, 20]


def test_a_run_that_starts_again_leaves_damaged_checkpoints_behind(run, capsys):
    for step in (10, 20, 30, 40):
        checkpoint.save(run, step, files())
    model = Path(checkpoint.checkpoint_uri(run, 40), "model.pt")
    model.write_bytes(model.read_bytes()[:-1])
    complete = Path(checkpoint.checkpoint_uri(run, 30), "complete.json")
    complete.write_bytes(complete.read_bytes()[:50])
    Path(checkpoint.checkpoint_uri(run, 10), "optimizer.pt").unlink()  # a run does not resume from this one
    assert checkpoint.clean(run) == [30, 40]
    assert checkpoint.latest(run) == checkpoint.checkpoint_uri(run, 20)
    printed = capsys.readouterr().out
    assert "model.pt: is damaged (size or sha256 differs)" in printed
    assert (
        "step=00000030: there is no complete checkpoint (complete.json is missing or damaged); complete are those of step 10, 20" in printed
    )


def test_the_first_callback_runs_before_the_checkpoint_is_written(run):
    there = []
    writer = AsyncWriter(run, first=lambda step, files: there.append((step, sorted(files), checkpoint.steps(run))))
    writer.save(7, {"state.json": {}, "model.pt": {}})
    writer.close()
    assert there == [(7, ["model.pt", "state.json"], [])]
    assert checkpoint.steps(run) == [7]


def test_only_the_named_steps_are_removed(run):
    for step in range(5):
        checkpoint.save(run, step, {"state.json": {}})
    checkpoint.remove(run, {0, 2, 3})
    assert checkpoint.steps(run) == [1, 4]
    assert len(storage.list_uris(run)) == 4


def test_the_same_content_again_is_not_written_again(run):
    torch.manual_seed(0)
    uri = checkpoint.save(run, 10, files())
    before = Path(uri, "model.pt").stat().st_mtime_ns
    torch.manual_seed(0)
    checkpoint.save(run, 10, files())
    assert Path(uri, "model.pt").stat().st_mtime_ns == before


def test_other_content_for_a_step_replaces_the_old(run):
    checkpoint.save(run, 10, files(1.0))
    uri = checkpoint.save(run, 10, files(2.0))
    assert checkpoint.load_model_state(uri)["weight"][0, 0] == 2.0


def test_other_content_for_a_step_is_refused_where_it_may_not_replace_the_old(run):
    uri = checkpoint.save(run, 10, {"state.json": {"step": 10}}, replace=False)
    assert checkpoint.save(run, 10, {"state.json": {"step": 10}}, replace=False) == uri, "the same content is found"
    with pytest.raises(CheckpointError, match=r"step=00000010: there is another checkpoint already; name a new run's directory"):
        checkpoint.save(run, 10, {"state.json": {"step": 11}}, replace=False)
    assert checkpoint.load(uri, "state.json") == {"step": 10}
    Path(uri, "complete.json").unlink()
    assert checkpoint.save(run, 10, {"state.json": {"step": 11}}, replace=False) == uri, "a part of one is none"


def test_a_flipped_bit_is_found(run):
    path = Path(checkpoint.save(run, 10, files()), "model.pt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.pt: is damaged \(size or sha256 differs\)"):
        checkpoint.load(str(path.parent), "model.pt")


def test_a_missing_file_and_an_unknown_name_are_named(run):
    uri = checkpoint.save(run, 10, files())
    Path(uri, "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: is missing"):
        checkpoint.load(uri, "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"has no file 'scaler\.pt'; it has .*model\.pt"):
        checkpoint.load(uri, "scaler.pt")
    with pytest.raises(CheckpointError, match="is not a checkpoint's directory"):
        checkpoint.load(run, "model.pt")


def test_a_value_that_would_need_code_is_refused_when_it_is_saved(run):
    with pytest.raises(CheckpointError, match=r"state\.pt:loss:0: a float64 is neither a tensor nor plain data"):
        checkpoint.save(run, 10, {"state.pt": {"loss": [np.float64(1.0)]}})
    assert checkpoint.latest(run) is None


def test_a_file_that_runs_code_when_unpickled_is_refused(run):
    uri = checkpoint.save(run, 10, {"model.pt": {}})
    torch.save({"weight": os.system}, Path(uri, "model.pt"))
    listing = json.loads(Path(uri, "complete.json").read_text())
    listing["files"]["model.pt"] = size_and_sha256(Path(uri, "model.pt"))
    Path(uri, "complete.json").write_text(json.dumps(listing))
    with pytest.raises(CheckpointError, match="can't be read as plain tensors"):
        checkpoint.load(uri, "model.pt")


def test_the_writer_saves_the_weights_at_the_time_of_the_call(run):
    weight = torch.ones(1000)
    writer = AsyncWriter(run)
    done = []
    writer.save(1, {"model.pt": {"weight": weight}}, done.append)
    weight.zero_()
    writer.close()
    assert done == [checkpoint.checkpoint_uri(run, 1)]
    assert checkpoint.load(done[0], "model.pt")["weight"].sum() == 1000


def refusing(*steps):
    """Return a callback by which the store takes nothing at these steps."""

    def first(step, files):
        if step in steps:
            raise storage.StorageError(f"no answer at step {step}")

    return first


def test_a_checkpoint_that_the_store_did_not_take_is_left_out_for_the_next(run, capsys):
    writer = AsyncWriter(run, first=refusing(2, 4))
    for step in range(1, 6):
        writer.save(step, {"state.json": {"step": step}})
    writer.close()
    assert checkpoint.steps(run) == [1, 3, 5], "the new state is written, where the old one's error would have lost it too"
    printed = capsys.readouterr().out
    assert "the checkpoint of step 2 was not written: no answer at step 2\n" in printed
    assert "the checkpoint of step 2 is left out; if that of step 3 can't be" in printed


def test_a_checkpoint_that_was_not_written_is_said_at_once_and_not_at_the_next(run, capsys):
    writer = AsyncWriter(run, first=refusing(1))
    writer.save(1, {"state.json": {}})
    writer._pool.shutdown()
    assert "the checkpoint of step 1 was not written: no answer at step 1\n" in capsys.readouterr().out
    with pytest.raises(storage.StorageError, match="no answer at step 1"):
        writer.wait()


def test_the_start_removes_the_unfinished_files_of_a_killed_writer(run):
    checkpoint.save(run, 1, {"state.json": {}})
    left = [Path(run, f"checkpoints/step=0000000{step}/.ema_0.99.pt.x.partial") for step in (1, 2)]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    checkpoint.clean(run)
    assert checkpoint.steps(run) == [1]
    assert not any(path.exists() for path in left)


def test_the_experiment_of_a_checkpoint_is_not_read_without_its_run_where_that_only_fails_for_now(run, monkeypatch):
    earlier = preset("digits-hybrid-cosine", ["evaluation.num_samples=300"])
    uri = checkpoint.save(run, 1, {"experiment.json": earlier.to_json().encode()})
    assert checkpoint.load_experiment(uri) == earlier, "complete without its run"
    changed = preset("digits-hybrid-cosine", ["evaluation.num_samples=400"])
    storage.write_bytes(f"{run}/experiment.json", changed.to_json().encode())
    assert checkpoint.load_experiment(uri) == changed

    read = storage.read_bytes

    def busy(asked):
        if asked == f"{run}/experiment.json":
            raise storage.StorageError("503", transient=True)
        return read(asked)

    monkeypatch.setattr(storage, "read_bytes", busy)
    with pytest.raises(storage.StorageError, match="503"):
        checkpoint.load_experiment(uri)
    monkeypatch.undo()
    storage.write_bytes(f"{run}/experiment.json", b"{")
    with pytest.raises(CheckpointError, match="is damaged or of another version"):
        checkpoint.load_experiment(uri)


def test_a_checkpoint_of_a_later_version_is_told_so(run):
    later = EXPERIMENT.to_dict()
    later["optim"]["momentum"] = 0.9
    uri = checkpoint.save(run, 1, {"experiment.json": json.dumps(later).encode()})
    with pytest.raises(CheckpointError, match=r"experiment\.json: optim\.momentum: .* take the version of this program that wrote it"):
        checkpoint.load_experiment(uri)


def test_the_run_of_a_checkpoint_is_found_from_its_own_directory(run, monkeypatch):
    changed = preset("digits-hybrid-cosine", ["evaluation.num_samples=400"])
    checkpoint.save(run, 1, {"experiment.json": preset("digits-hybrid-cosine").to_json().encode()})
    storage.write_bytes(f"{run}/experiment.json", changed.to_json().encode())
    monkeypatch.chdir(run)
    assert checkpoint.load_experiment("checkpoints/step=00000001") == changed
    with pytest.raises(CheckpointError, match=r"^checkpoints/step=00000002: there is no complete .*; complete are those of step 1$"):
        checkpoint.file_names("checkpoints/step=00000002")


def test_two_checkpoints_in_a_row_that_the_store_did_not_take_are_an_error(run):
    writer = AsyncWriter(run, first=refusing(1, 2))
    writer.save(1, {"state.json": {}})
    writer.save(2, {"state.json": {}})
    with pytest.raises(storage.StorageError, match="no answer at step 2"):
        writer.save(3, {"state.json": {}})
    writer.close()


def test_the_last_checkpoint_and_the_required_one_are_not_left_out(run):
    writer = AsyncWriter(run, first=refusing(1, 2), required_step=1)
    writer.save(1, {"state.json": {}})
    with pytest.raises(storage.StorageError, match="no answer at step 1"):
        writer.save(2, {"state.json": {}})
    writer.save(2, {"state.json": {}})
    with pytest.raises(storage.StorageError, match="no answer at step 2"):
        writer.close()


def test_another_failure_in_the_background_is_raised_by_the_next_call(run):
    def first(step, files):
        raise CheckpointError("the disk is full")

    writer = AsyncWriter(run, first=first)
    writer.save(1, {"state.json": {}})
    with pytest.raises(CheckpointError, match="the disk is full"):
        writer.save(2, {"state.json": {}})
    writer.close()


def test_a_checkpoint_removes_the_temporary_copies_of_killed_processes(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed, hour_ago = tmp_path / "iddpm-checkpoint-killed", time.time() - 3600
    (killed / "files").mkdir(parents=True)
    (killed / "lock").touch()

    def first(step, files):
        for directory in tmp_path.glob("iddpm-checkpoint-*"):
            os.utime(directory, (hour_ago, hour_ago))

    with storage.scratch_directory("checkpoint") as alive:
        writer = AsyncWriter(run, first=first)
        writer.save(1, {"state.json": {}})
        writer.close()
        assert list(tmp_path.glob("iddpm-checkpoint-*")) == [alive.parent], "what is in use stays"


def test_training_goes_on_while_a_checkpoint_is_written(run):
    release, released = threading.Event(), []
    writer = AsyncWriter(run)
    writer.save(1, {"state.json": {}}, lambda uri: released.append(release.wait(60)))
    release.set()
    writer.wait()
    assert released == [True], "save returned only once the checkpoint was written"
    assert checkpoint.steps(run) == [1]
    writer.close()


@pytest.mark.slow
def test_killed_at_any_moment_the_latest_checkpoint_is_whole(run):
    program = (
        "import sys, torch; from training.checkpoints import checkpoint\n"
        "for step in range(1, 100000):\n"
        "    value = torch.full((200_000,), float(step))\n"
        "    checkpoint.save(sys.argv[1], step, {'model.pt': {'w': value}, 'ema_0.99.pt': {'w': value}})\n"
        "    checkpoint.remove(sys.argv[1], {step - 1})\n"
    )
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", program, run], env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 60
        while checkpoint.latest(run) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3 + 0.11 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        uri = checkpoint.latest(run)
        for name in ("model.pt", "ema_0.99.pt"):
            assert (checkpoint.load(uri, name)["w"] == checkpoint.step_of(uri)).all()
        checkpoint.clean(run)
        storage.delete_prefix(run)
