"""A disk that is really full, wherever the data code and an export write: one line with the remedy, and nothing half published."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.records import npz
from training import storage
from training.checkpoints import checkpoint
from training.checkpoints.diffusers_folder import export_diffusers
from training.checkpoints.exported_program import export_program
from training.checkpoints.import_export import export_checkpoint
from training.config.errors import UserError
from training.config.presets import preset
from training.data.loading.loader import Loader
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits
from training.models.unet import make_model

pytestmark = pytest.mark.slow

IDDPM = str(Path(sys.executable).with_name("iddpm"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """64x64 images of noise: 200 x 12 KiB, which is more than the disk."""
    folder = tmp_path_factory.mktemp("images")
    for seed in range(200):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{seed:03d}.png")
    return folder


def preprocess(images, data, tmp):
    words = ["data.name=photos", "data.image_channels=3", "data.num_classes=0", "data.image_size=64", "model.class_conditional=false"]
    overrides = [word for field in (*words, "model.attention_resolutions=[32]") for word in ("--set", field)]
    environment = {**os.environ, "TMPDIR": str(tmp), "IDDPM_HOME": str(Path(images).parent / "home")}
    command = [IDDPM, "preprocess", "digits-hybrid-cosine", str(data), "--source", str(images), *overrides]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def one_line(done):
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "unexpected" not in done.stderr
    return done.stderr


def test_a_disk_without_room_for_a_shard_is_named_and_nothing_is_published(images, small_disk, tmp_path):
    said = one_line(preprocess(images, tmp_path / "data", small_disk))
    assert str(small_disk) in said
    assert "free some space there, or point TMPDIR elsewhere" in said
    assert not (tmp_path / "data" / "train" / "manifest.json").exists()
    assert list(small_disk.iterdir()) == []
    assert preprocess(images, tmp_path / "data", tmp_path).returncode == 0


def test_a_disk_without_room_for_the_data_set_is_named_and_nothing_is_published(images, small_disk, tmp_path):
    said = one_line(preprocess(images, small_disk / "data", tmp_path))
    assert "the disk is full" in said
    assert f"{small_disk}/data/train" in said
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_a_node_without_room_for_an_archive_is_named_and_no_part_remains(images, bucket_uri, small_disk, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in images.iterdir():
            archive.write(path, path.name)
    storage.upload(tmp_path / "images.zip", f"{bucket_uri}/images.zip")
    said = one_line(preprocess(f"{bucket_uri}/images.zip", tmp_path / "data", small_disk))
    assert str(small_disk) in said
    assert "point TMPDIR elsewhere" in said
    assert [path for path in small_disk.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


@pytest.mark.parametrize("known", [True, False], ids=["told before", "filled meanwhile"])
def test_a_full_disk_is_named_when_staging_and_no_part_remains(images, small_disk, tmp_path, monkeypatch, known):
    assert preprocess(images, tmp_path / "data", tmp_path).returncode == 0
    if not known:
        elsewhere = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: elsewhere)  # as if there had been room at the beginning
    with pytest.raises(UserError, match=rf"^{small_disk}: .*free some space, choose another cache directory") as caught:
        Loader(f"{tmp_path}/data/train", seed=0, global_batch_size=8, cache_dir=small_disk)
    assert "\n" not in str(caught.value)
    assert {path.suffix for path in small_disk.iterdir()} == {".lock"}


def test_unused_data_is_evicted_from_a_full_disk(small_disk, tmp_path):
    for split in ("train", "test"):
        prepare(digits(split), str(tmp_path / split), image_size=8)
    room = 128 * 1024  # either of the data sets fits, but not both
    (small_disk / "other").write_bytes(bytes(2**20 - room))
    cache = small_disk / "cache"
    for split, num_images in (("train", 1497), ("test", 300), ("train", 1497)):
        assert Loader(str(tmp_path / split), seed=0, global_batch_size=8, cache_dir=cache).manifest.num_images == num_images
        assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_a_full_disk_is_named_when_images_are_written_into_one_file_and_no_part_remains(small_disk, tmp_path, monkeypatch):
    noise = torch.randint(0, 256, (200, 3, 64, 64), dtype=torch.uint8)
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(UserError, match=f"^{small_disk}/.*: the disk is full; free some space there, or point TMPDIR elsewhere"):
        npz.write_batches(str(tmp_path / "all.npz"), [(noise[:100], None), (noise[100:], None)], 200)
    assert list(small_disk.iterdir()) == []
    assert not (tmp_path / "all.npz").exists()


@pytest.mark.parametrize(
    ("export", "name"),
    [(export_checkpoint, "x.pt"), (export_checkpoint, "x.safetensors"), (export_program, "x.pt2"), (export_diffusers, "folder")],
)
def test_a_temporary_disk_without_room_for_an_export_is_named_and_nothing_is_left(small_disk, tmp_path, monkeypatch, export, name):
    experiment = preset("digits-tiny-hybrid-cosine")  # 1.2 MB of weights
    files = {checkpoint.EXPERIMENT: experiment.to_json().encode(), "model.pt": make_model(experiment).state_dict()}
    uri, target = checkpoint.save(str(tmp_path / "run"), 10, files), tmp_path / name
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(small_disk))
        with pytest.raises(UserError, match=f"^{small_disk}/.*: the disk is full; free some space there, or point TMPDIR elsewhere"):
            export(uri, str(target))
        assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    assert not target.exists()
    export(uri, str(target))
    assert target.exists()
