import functools
import gzip
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from training import storage
from training.checkpoints import checkpoint
from training.checkpoints.checkpoint import AsyncWriter
from training.config.errors import UserError
from training.config.presets import preset
from training.data.format.manifest import read_manifest
from training.data.inspection.contact_sheet import preview
from training.data.inspection.dataset import verify
from training.data.loading.loader import Loader
from training.data.loading.row_groups import iterate
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.catalog import SourceOptions, open_splits
from training.data.sources.published import digits
from training.data.splits import prepare_splits
from training.distributed.ray_session import parallel_map
from training.storage import StorageError

DIGITS = preset("digits-hybrid-cosine").data
COLOUR = Options(resize="none", image_channels=3, rows_per_shard=1024)


def write_images(target, form, count=24):
    """Small PNG files in two folders, in a folder or an archive."""
    folder = target if form == "folder" else target.with_name("packed")
    for seed in range(count):
        path = folder / f"class{seed % 2}" / f"{seed:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    if form != "folder":
        shutil.make_archive(str(target).removesuffix(f".{form}"), {"zip": "zip", "tar.gz": "gztar"}[form], folder)
    return str(target)


@pytest.fixture
def data_uri(bucket_uri):
    prepare_splits(DIGITS, f"{bucket_uri}/data")
    return f"{bucket_uri}/data"


def test_a_data_set_in_s3_is_the_one_on_disk(data_uri, tmp_path):
    local = prepare_splits(DIGITS, str(tmp_path / "data"))
    assert verify(f"{data_uri}/train") == local["train"]
    theirs = Loader(f"{data_uri}/train", seed=3, global_batch_size=32, cache_dir=tmp_path / "s3")
    ours = Loader(str(tmp_path / "data" / "train"), seed=3, global_batch_size=32, cache_dir=tmp_path / "disk")
    assert torch.equal(theirs.batch(50).images, ours.batch(50).images)
    assert [uri.rpartition("/")[2] for uri in storage.list_uris(f"{data_uri}/train")] == ["manifest.json", "shard-00000.parquet"]


def test_objects_overwritten_at_the_same_size_between_a_stop_and_the_resume_are_not_mixed(bucket_uri):
    def write(seed, broken):
        for number in range(32):
            buffer = io.BytesIO()
            Image.fromarray(np.random.default_rng(seed + number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "BMP")
            data = buffer.getvalue()
            storage.write_bytes(f"{bucket_uri}/images/{number:02d}.bmp", bytes(len(data)) if number == broken else data)

    source, options = f"{bucket_uri}/images", Options(rows_per_shard=4)
    write(0, broken=0)
    with pytest.raises(UserError, match=r"00\.bmp is not an image"):
        prepare(open_splits(source, SourceOptions(name="x"))["train"], f"{bucket_uri}/resumed", image_size=8, options=options)
    assert storage.list_uris(f"{bucket_uri}/resumed/_partial")
    write(1000, broken=None)
    train = open_splits(source, SourceOptions(name="x"))["train"]
    resumed = prepare(train, f"{bucket_uri}/resumed", image_size=8, options=options)
    assert resumed == prepare(train, f"{bucket_uri}/fresh", image_size=8, options=options)


def test_an_object_overwritten_at_the_same_size_after_the_publication_is_refused(bucket_uri):
    for number in range(4):
        storage.write_bytes(f"{bucket_uri}/images/{number}.ppm", b"P6 8 8 255\n" + bytes([number]) * 192)
    train = open_splits(f"{bucket_uri}/images")["train"]
    first = prepare(train, f"{bucket_uri}/data", image_size=8)
    assert prepare(train, f"{bucket_uri}/data", image_size=8) == first
    storage.write_bytes(f"{bucket_uri}/images/2.ppm", b"P6 8 8 255\n" + bytes([200]) * 192)
    with pytest.raises(UserError, match="files of its source were overwritten since it was made"):
        prepare(train, f"{bucket_uri}/data", image_size=8)


def test_row_groups_stream_out_of_s3(bucket_uri, tmp_path, monkeypatch):
    manifest = prepare(digits("train"), f"{bucket_uri}/colour", image_size=8, options=COLOUR)
    everything = torch.cat([images for _, images, _ in iterate(f"{bucket_uri}/colour", 500)])
    monkeypatch.setattr("training.data.loading.loader.GROUPS_PER_BLOCK", 1)
    monkeypatch.setattr("training.data.loading.streaming.GROUPS_PER_BLOCK", 1)
    monkeypatch.setattr("training.data.loading.streaming._BLOCKS_ON_DISK", 1)
    budget = 1024 * 200 + 1000
    assert manifest.num_images * manifest.image_bytes > budget
    loader = Loader(f"{bucket_uri}/colour", seed=3, global_batch_size=499, cache_dir=tmp_path / "stream", disk_budget_bytes=budget)
    seen = torch.cat([batch.images for batch in loader.batches(0, 3)])
    assert sorted(bytes(i.numpy()) for i in seen) == sorted(bytes(i.numpy()) for i in everything)


def test_streaming_waits_for_a_store_that_comes_back(bucket_uri, tmp_path, monkeypatch):
    prepare(digits("train"), f"{bucket_uri}/colour", image_size=8, options=COLOUR)
    for name in (
        "training.data.loading.loader.GROUPS_PER_BLOCK",
        "training.data.loading.streaming.GROUPS_PER_BLOCK",
        "training.data.loading.streaming._BLOCKS_ON_DISK",
    ):
        monkeypatch.setattr(name, 1)
    loader, refused = (
        Loader(f"{bucket_uri}/colour", seed=3, global_batch_size=8, cache_dir=tmp_path / name, disk_budget_bytes=1024 * 200 + 1000)
        for name in ("waits", "refused")
    )
    # The address of nothing, until the real one is put back under its other name, which comes before.
    monkeypatch.setattr("training.storage.s3._ATTEMPTS", 1)
    real = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    back = threading.Timer(1, monkeypatch.setenv, ("AWS_ENDPOINT_URL_S3", real))
    back.start()
    assert loader.batch(0).images.shape == (8, 3, 8, 8)
    back.join()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="refused the credentials"):
        refused.batch(0)


def test_a_byte_that_flips_in_s3_is_found(data_uri, tmp_path):
    uri = f"{data_uri}/train/shard-00000.parquet"
    data = bytearray(storage.read_bytes(uri))
    data[2000] ^= 4
    storage.write_bytes(uri, bytes(data))
    with pytest.raises(UserError, match="its sha256 is not the manifest's"):
        Loader(f"{data_uri}/train", seed=0, global_batch_size=8, cache_dir=tmp_path)
    storage.delete(uri)
    with pytest.raises(UserError, match="the shard is missing"):
        Loader(f"{data_uri}/train", seed=0, global_batch_size=8, cache_dir=tmp_path)


def test_a_bucket_that_does_not_exist_is_named(services):
    with pytest.raises(StorageError, match="no-such-bucket"):
        prepare_splits(DIGITS, "s3://no-such-bucket/data")
    with pytest.raises(StorageError, match="no-such-bucket"):
        read_manifest("s3://no-such-bucket/data")


@pytest.mark.parametrize("form", ["prefix", "zip", "tar.gz"])
def test_images_are_read_from_s3(bucket_uri, tmp_path, form, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    local = prepare(open_splits(write_images(tmp_path / "images", "folder"))["train"], str(tmp_path / "local"), image_size=8)
    if form == "prefix":
        for path in sorted((tmp_path / "images").rglob("*.png")):
            storage.upload(path, f"{bucket_uri}/images/{path.relative_to(tmp_path / 'images').as_posix()}")
        place = f"{bucket_uri}/images"
    else:
        place = f"{bucket_uri}/images.{form}"
        storage.upload(write_images(tmp_path / f"images.{form}", form), place)
    manifest = prepare(open_splits(place, SourceOptions())["train"], f"{bucket_uri}/data", image_size=8)
    assert manifest.content_digest == local.content_digest


@pytest.mark.parametrize("slashes", ["{bucket}//{key}", "{bucket}/{key}//"])
def test_a_slash_too_many_in_the_address_of_images_takes_no_class_from_them(bucket_uri, slashes):
    for name in ("cat/1.png", "dog/2.png"):
        storage.write_bytes(f"{bucket_uri}/{name}", b"")
    bucket, _, key = bucket_uri.removeprefix("s3://").partition("/")
    listing = open_splits("s3://" + slashes.format(bucket=bucket, key=key))["train"].listing()
    assert ([item.key for item in listing.items], listing.class_names) == (["cat/1.png", "dog/2.png"], ("cat", "dog"))


@pytest.mark.parametrize("form", ["tar", "tar.gz"])
def test_an_archive_that_is_overwritten_in_s3_by_one_of_its_size_is_copied_again(bucket_uri, tmp_path, form, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    digests = []
    for level in (1, 2):
        archive = io.BytesIO()
        # Stored pixels, and a compression that stores, so that both archives have the same size.
        packed = gzip.GzipFile(fileobj=archive, mode="wb", compresslevel=0, mtime=0) if form == "tar.gz" else archive
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name in ("a", "b"):
                pixels = b"P6 8 8 255\n" + bytes([level]) * 192
                entry = tarfile.TarInfo(f"{name}.ppm")
                entry.size = len(pixels)
                tar.addfile(entry, io.BytesIO(pixels))
        if packed is not archive:
            packed.close()
        storage.write_bytes(f"{bucket_uri}/images.{form}", archive.getvalue())
        source = open_splits(f"{bucket_uri}/images.{form}")["train"]
        uri = str(tmp_path / str(level))
        prepare(source, uri, image_size=8)
        digests.append((len(archive.getvalue()), int(next(iterate(uri, 1))[1][0, 0, 0, 0])))
    assert [pixel for _, pixel in digests] == [1, 2]
    assert digests[0][0] == digests[1][0]


@pytest.mark.parametrize("is_packed", [False, True])
def test_the_idx_files_of_fashion_mnist_are_read_below_an_s3_prefix(bucket_uri, is_packed):
    suffix, pixels = ".gz" if is_packed else "", {}
    for stem, rows in (("train", 7), ("t10k", 3)):
        pixels[stem] = np.random.default_rng(rows).integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", pixels[stem]), ("labels-idx1", np.arange(rows, dtype=np.uint8))):
            data = np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes() + array.tobytes()
            storage.write_bytes(f"{bucket_uri}/{stem}-{kind}-ubyte{suffix}", gzip.compress(data) if is_packed else data)
    splits = open_splits(f"fashion-mnist:{bucket_uri}")
    for split, stem in (("train", "train"), ("test", "t10k")):
        items = splits[split].listing().items
        with splits[split].open() as read:
            assert np.array_equal(np.stack([read(item.locator) for item in items]), pixels[stem][..., None])
        assert [item.label for item in items] == list(range(len(items)))


def test_the_contact_sheet_can_go_to_s3(data_uri, bucket_uri):
    preview(f"{data_uri}/test", f"{bucket_uri}/sheet.png", num_images=10)
    assert storage.read_bytes(f"{bucket_uri}/sheet.png").startswith(b"\x89PNG")


def test_checkpoints_in_s3_are_whole_or_not_there(bucket_uri):
    weights = {"weight": torch.randn(100, 100)}
    for step in (1, 2, 3):
        checkpoint.save(bucket_uri, step, {"model.pt": weights})
    storage.write_bytes(f"{bucket_uri}/checkpoints/step=00000004/model.pt", b"half")
    assert checkpoint.latest(bucket_uri) == f"{bucket_uri}/checkpoints/step=00000003"
    assert torch.equal(checkpoint.load(checkpoint.latest(bucket_uri), "model.pt")["weight"], weights["weight"])
    assert checkpoint.clean(bucket_uri) == [4]
    checkpoint.remove(bucket_uri, {2})
    assert checkpoint.steps(bucket_uri) == [1, 3]


def test_a_checkpoint_waits_for_a_store_that_comes_back(bucket_uri, services, monkeypatch):
    # The address of nothing, until the real one is put back: what a store that restarts looks like from here.
    real = os.environ["AWS_ENDPOINT_URL"]
    tries, has_failed = [], threading.Event()

    def begin(step, files):
        tries.append(threading.current_thread())
        if len(tries) == 2:  # the first has failed
            has_failed.set()

    writer = AsyncWriter(bucket_uri, first=begin, retry_seconds=120)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    writer.save(1, {"state.json": {}})
    assert has_failed.wait(120)
    assert threading.current_thread() not in tries, "training waited for the store"
    monkeypatch.setenv("AWS_ENDPOINT_URL", real)
    writer.close()
    assert checkpoint.steps(bucket_uri) == [1]


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_shard_and_nothing_else(bucket_uri, tmp_path):
    """Two Ray workers; the whole program killed -9 in the middle, then run again with three."""
    place = write_images(tmp_path / "images", "folder", count=400)
    whole = prepare(open_splits(place)["train"], str(tmp_path / "whole"), image_size=8, options=Options(rows_per_shard=8))
    program = (
        "import functools, sys; from training.data.preparation import prepare; from training.data.sources import catalog\n"
        "from training.distributed.ray_session import parallel_map\n"
        "source, two_workers = catalog.open_splits(sys.argv[1])['train'], functools.partial(parallel_map, num_workers=2)\n"
        "options = prepare.Options(rows_per_shard=8)\n"
        "prepare.prepare(source, sys.argv[2], image_size=8, options=options, shard_map=two_workers)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, place, f"{bucket_uri}/data"], start_new_session=True)
    deadline = time.monotonic() + 120
    while len(storage.list_uris(f"{bucket_uri}/data/_partial")) < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = set(storage.list_uris(f"{bucket_uri}/data/_partial"))
    assert done, "nothing was done before the kill"
    three_workers = functools.partial(parallel_map, num_workers=3)
    options = Options(rows_per_shard=8)
    assert prepare(open_splits(place)["train"], f"{bucket_uri}/data", image_size=8, options=options, shard_map=three_workers) == whole
