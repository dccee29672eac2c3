import dataclasses
import fcntl
import functools
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training import storage
from training.config.errors import UserError
from training.config.experiment import DataConfig
from training.config.presets import preset
from training.config.validation import validate
from training.data.format.manifest import manifest_digest, read_manifest
from training.data.format.order import Purpose, permutation
from training.data.format.shards import rows_per_shard
from training.data.inspection.contact_sheet import contact_sheet, preview
from training.data.inspection.dataset import describe, verify
from training.data.loading.loader import Loader
from training.data.loading.row_groups import iterate
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare, prepare_sizes
from training.data.sources.catalog import SourceOptions, open_splits
from training.data.splits import prepare_experiment, prepare_splits
from training.distributed.ray_session import parallel_map

SMALL_SHARDS = Options(rows_per_shard=16)


def photo(seed, size=24):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size, size + seed % 7, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for seed in range(200):
        path = root / f"class{seed % 3}" / f"{seed:03d}.png"
        path.parent.mkdir(exist_ok=True)
        photo(seed).save(path)
    return root


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    return prepare(source_of(folder), str(tmp_path_factory.mktemp("whole")), image_size=16, options=SMALL_SHARDS)


def source_of(folder):
    return open_splits(str(folder), SourceOptions(name="photos"))["train"]


def copy_with(folder, target, files):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).symlink_to(path)
    for name, data in files.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(data)
    return source_of(target)


def encode(size, format):
    buffer = io.BytesIO()
    photo(1, size).save(buffer, format)
    return buffer.getvalue()


BROKEN = {
    "class3/empty.png": b"",
    "class3/text.png": b"dear diary",
    "class3/cut.jpg": encode(64, "JPEG")[:-400],
    "class3/tiny.png": encode(8, "PNG"),
    "class3/bomb.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x01\x00\x00\x00\x01\x00\x00\x08\x02\x00\x00\x00\x10\x84\xa4\xd5",
}

WHOLE = {"class3/whole.png": encode(24, "PNG")}
"""An image that keeps the class of the broken ones."""


def test_the_manifest_counts_images_shards_and_classes(undisturbed):
    assert (undisturbed.num_images, len(undisturbed.shards), undisturbed.class_counts) == (200, 13, (67, 67, 66))
    assert undisturbed.class_names == ("class0", "class1", "class2")
    assert [shard.num_rows for shard in undisturbed.shards] == [16] * 12 + [8]


@pytest.mark.slow
def test_a_program_that_is_killed_ten_times_makes_the_same_data_set(folder, undisturbed, tmp_path):
    uri = str(tmp_path / "data")
    program = (
        "import sys; from training.data.preparation import prepare; from training.data.sources import catalog\n"
        "source = catalog.open_splits(sys.argv[1], catalog.SourceOptions(name='photos'))['train']\n"
        "print('ready', flush=True)\n"
        "prepare.prepare(source, sys.argv[2], image_size=16, options=prepare.Options(rows_per_shard=16))\n"
    )
    clock = random.Random(3)
    finished: set[str] = set()
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", program, str(folder), uri], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(clock.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        records = {path.name: path.stat().st_mtime_ns for path in Path(uri, "_partial").glob("*.json")}
        assert all(records.get(name) == written for name, written in finished), "a finished shard was made again"
        finished = set(records.items())
        if Path(uri, "manifest.json").exists():
            break
        with pytest.raises(UserError, match="there is no data set"):
            read_manifest(uri)
    manifest = prepare(source_of(folder), uri, image_size=16, options=SMALL_SHARDS)
    assert manifest == undisturbed
    assert sorted(path.name for path in Path(uri).iterdir()) == sorted(["manifest.json", *(shard.file for shard in manifest.shards)])


def test_an_interrupted_preparation_is_continued(folder, tmp_path, undisturbed):
    uri = str(tmp_path / "data")
    partial = copy_with(folder, tmp_path / "photos", {})
    bad = tmp_path / "photos" / "class1"
    bad.unlink()
    bad.mkdir()
    for path in (folder / "class1").iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    whole = (bad / "100.png").read_bytes()
    (bad / "100.png").write_bytes(b"\0" * len(whole))  # of the same size, as a copy that is still under way may be
    with pytest.raises(UserError, match=r"class1/100\.png is not an image"):
        prepare(partial, uri, image_size=16, options=SMALL_SHARDS)
    made = {path.name: path.stat().st_mtime_ns for path in Path(uri).glob("*.parquet")}
    assert made
    (bad / "100.png").write_bytes(whole)
    assert prepare(partial, uri, image_size=16, options=SMALL_SHARDS) == undisturbed
    assert all(Path(uri, name).stat().st_mtime_ns == written for name, written in made.items())


def test_shards_that_other_options_left_behind_are_made_again(folder, undisturbed, tmp_path):
    other = copy_with(folder, tmp_path / "photos", {"class3/zzz.png": b"broken, so that this never ends"})
    with pytest.raises(UserError, match="zzz"):
        prepare(other, str(tmp_path / "data"), image_size=16, options=dataclasses.replace(SMALL_SHARDS, resize="lanczos", seed=1))
    assert list((tmp_path / "data" / "_partial").iterdir())
    assert prepare(source_of(folder), str(tmp_path / "data"), image_size=16, options=SMALL_SHARDS) == undisturbed


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_workers_do_not_change_the_data_set(folder, undisturbed, tmp_path):
    for num_workers in (2, 3):
        on_ray = functools.partial(parallel_map, num_workers=num_workers)
        uri = str(tmp_path / str(num_workers))
        assert prepare(source_of(folder), uri, image_size=16, options=SMALL_SHARDS, shard_map=on_ray) == undisturbed


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_an_error_in_a_worker_is_the_same_error(folder, tmp_path):
    source = copy_with(folder, tmp_path / "photos", {"class3/text.png": b"dear diary"})
    on_ray = functools.partial(parallel_map, num_workers=2)
    with pytest.raises(UserError, match=r"class3/text\.png is not an image of a known format"):
        prepare(source, str(tmp_path / "data"), image_size=16, options=SMALL_SHARDS, shard_map=on_ray)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_stops_the_work_and_nothing_is_published(folder, tmp_path, name):
    source = copy_with(folder, tmp_path / "photos", {name: BROKEN[name]})
    with pytest.raises(UserError, match=rf"{tmp_path}/photos: {name.replace('.', '[.]')} (is|has) .*--on-error skip"):
        prepare(source, str(tmp_path / "data"), image_size=16, options=SMALL_SHARDS)
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_broken_images_can_be_skipped_and_are_listed_with_their_reasons(folder, tmp_path, capsys):
    source = copy_with(folder, tmp_path / "photos", BROKEN | WHOLE)
    options = dataclasses.replace(SMALL_SHARDS, on_error="skip", max_errors=5)
    manifest = prepare(source, str(tmp_path / "data"), image_size=16, options=options)
    assert {error.source for error in manifest.errors} == set(BROKEN)
    assert manifest.num_images == 201
    reasons = {error.source: error.reason for error in manifest.errors}
    assert reasons["class3/empty.png"] == "is empty (0 bytes)"
    assert "smaller than 16" in reasons["class3/tiny.png"]
    assert verify(str(tmp_path / "data")) == manifest
    assert "5 unreadable images" in describe(manifest)["left out"]
    said = capsys.readouterr().out
    assert all(f"photos, train: left out {source}: it {reason}\n" in said for source, reason in reasons.items())


def test_a_file_too_large_for_any_image_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(2_000_000))
        archive.writestr("photo.png", encode(24, "PNG"))
    source = open_splits(str(tmp_path / "x.zip"))["train"]
    manifest = prepare(source, str(tmp_path / "data"), image_size=16, options=Options(on_error="skip", max_pixels=10_000))
    (error,) = manifest.errors
    assert (error.source, error.reason) == ("bomb.png", "is too large: 1.91 MiB, more than any image of 10,000 pixels")


def test_too_many_broken_images_stop_the_work(folder, tmp_path):
    source = copy_with(folder, tmp_path / "photos", BROKEN)
    with pytest.raises(UserError, match=r"more than 4 images can't be used: class3/.*max_errors"):
        prepare(source, str(tmp_path / "data"), image_size=16, options=dataclasses.replace(SMALL_SHARDS, on_error="skip", max_errors=4))
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_class_without_an_image_to_train_on_is_refused_by_its_name_and_leaves_nothing(folder, tmp_path):
    source = copy_with(folder, tmp_path / "photos", BROKEN)
    with pytest.raises(UserError, match=rf"^{tmp_path}/photos: no image can be used of the class 'class3'; repair one"):
        prepare(source, str(tmp_path / "data"), image_size=16, options=dataclasses.replace(SMALL_SHARDS, on_error="skip"))
    assert not (tmp_path / "data").exists()
    source.split = "test"
    assert prepare(source, str(tmp_path / "data"), image_size=16, options=Options(on_error="skip")).class_counts[3] == 0


def test_images_of_which_none_can_be_read_are_named_by_their_folder_and_leave_nothing(folder, tmp_path):
    for split in ("train", "test"):
        path = tmp_path / "images" / split / "class0" / f"{split}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no picture" if split == "test" else encode(24, "PNG"))
    data = DataConfig(name="photos", image_size=16, num_classes=0, resize="area")
    mine = tmp_path / "data" / "test" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("stays")
    with pytest.raises(UserError, match=f"^{tmp_path}/images/test: not one image could be read; check the source$"):
        prepare_splits(data, str(tmp_path / "data"), source=str(tmp_path / "images"), options=Options(on_error="skip"))
    assert read_manifest(str(tmp_path / "data" / "train")).num_images == 1
    assert list(mine.parent.iterdir()) == [mine]


@pytest.mark.parametrize("how", ["{}", "{}/", "{}/../photos", "file://{}"])
def test_a_data_set_is_not_made_among_its_own_images(folder, tmp_path, how):
    images = tmp_path / "photos"
    shutil.copytree(folder, images)
    before = sorted(images.rglob("*"))
    data = DataConfig(name="photos", image_size=16, num_classes=3, resize="area")
    with pytest.raises(UserError, match=r"is the folder of the images, .* name another directory for the data set"):
        prepare_splits(data, how.format(images), source=str(images))
    assert sorted(images.rglob("*")) == before
    for _ in range(2):
        prepare_splits(data, str(images / "below"), source=str(images))


SKIP = dataclasses.replace(SMALL_SHARDS, on_error="skip")


@pytest.mark.parametrize("options", [SMALL_SHARDS, dataclasses.replace(SKIP, max_errors=2)])
def test_images_that_an_earlier_run_skipped_count_for_a_stricter_one(folder, tmp_path, options):
    source, uri = copy_with(folder, tmp_path / "photos", BROKEN | WHOLE), str(tmp_path / "data")

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(meanwhile(source, stop, shard=12), uri, image_size=16, options=SKIP)
    assert len(list((tmp_path / "data" / "_partial").iterdir())) == 12
    with pytest.raises(UserError, match=r"photos: .*class3/.*(--on-error skip|max_errors)"):
        prepare(source, uri, image_size=16, options=options)
    assert len(list((tmp_path / "data" / "_partial").iterdir())) == 12, "it is refused before another shard is made"
    assert len(prepare(source, uri, image_size=16, options=SKIP).errors) == 5


def test_a_finished_data_set_stays_as_it_was_made_and_says_what_it_lacks(folder, tmp_path, capsys):
    """Trainings that use it were told once; the next one with default options goes on with it."""
    source, uri = copy_with(folder, tmp_path / "photos", BROKEN | WHOLE), str(tmp_path / "data")
    made = prepare(source, uri, image_size=16, options=SKIP)
    assert prepare(source, uri, image_size=16, options=SMALL_SHARDS) == made
    assert f"{uri}: {made.num_images} images are there already; 5 could not be used when they were prepared" in capsys.readouterr().out


def test_the_background_is_part_of_the_plan_and_of_the_manifest(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGBA", (16, 16), (9, 9, 9, 0)).save(tmp_path / "images" / "1.png")
    uri = str(tmp_path / "data")
    manifest = prepare(source_of(tmp_path / "images"), uri, image_size=16, options=Options(background="black"))
    assert manifest.background == "black"
    assert describe(manifest)["background"] == "black behind transparent pixels"
    (_, images, _) = next(iterate(uri, 1))
    assert not images.any()
    with pytest.raises(UserError, match="background 'black' there, 'white' here"):
        prepare(source_of(tmp_path / "images"), uri, image_size=16)


def test_small_images_are_enlarged_only_where_allowed_and_counted(folder, tmp_path):
    source = copy_with(folder, tmp_path / "photos", {"class3/tiny.png": BROKEN["class3/tiny.png"]})
    manifest = prepare(source, str(tmp_path / "data"), image_size=16, options=Options(allow_upscale=True))
    assert (manifest.num_images, manifest.num_upscaled) == (201, 1)


def test_several_sizes_from_one_decode_are_the_single_data_sets(folder, undisturbed, tmp_path):
    both = prepare_sizes(source_of(folder), {16: str(tmp_path / "16"), 8: str(tmp_path / "8")}, options=SMALL_SHARDS)
    assert both[16] == undisturbed
    alone = prepare(source_of(folder), str(tmp_path / "alone"), image_size=8, options=SMALL_SHARDS)
    assert both[8] == alone


def test_a_size_that_was_made_with_a_larger_one_is_found_when_it_is_requested_alone(folder, tmp_path):
    sizes = {200: str(tmp_path / "200"), 8: str(tmp_path / "8")}
    beside = prepare_sizes(source_of(folder), sizes, options=Options(allow_upscale=True))[8]
    assert len(beside.shards) == 1
    cut = Options(allow_upscale=True, rows_per_shard=64)
    assert prepare(source_of(folder), sizes[8], image_size=8, options=cut) == beside
    alone = prepare(source_of(folder), str(tmp_path / "alone"), image_size=8, options=cut)
    assert (alone.plan_sha256, len(alone.shards)) == (beside.plan_sha256, 4)
    assert torch.equal(load(tmp_path / "alone", tmp_path).batch(7).images, load(sizes[8], tmp_path).batch(7).images)


def test_shards_of_another_cut_are_made_again(folder, undisturbed, tmp_path):
    other = copy_with(folder, tmp_path / "photos", {"class3/zzz.png": b"broken, so that this never ends"})
    with pytest.raises(UserError, match="zzz"):
        prepare(other, str(tmp_path / "data"), image_size=16, options=Options(rows_per_shard=10))
    (tmp_path / "photos" / "class3" / "zzz.png").unlink()
    (tmp_path / "photos" / "class3").rmdir()
    assert prepare(other, str(tmp_path / "data"), image_size=16, options=SMALL_SHARDS) == undisturbed


def test_the_limit_for_bombs_is_part_of_the_plan(folder, tmp_path):
    with pytest.raises(UserError, match=r"is too large: 2[4-9]x24 is over 575 pixels.*raise max_pixels"):
        prepare(source_of(folder), str(tmp_path / "data"), image_size=16, options=Options(max_pixels=575))
    prepare(source_of(folder), str(tmp_path / "data"), image_size=16, options=Options(max_pixels=24 * 30))
    with pytest.raises(UserError, match="of other source files or options"):
        prepare(source_of(folder), str(tmp_path / "data"), image_size=16)


def test_another_source_or_option_in_the_same_place_is_refused(folder, tmp_path):
    uri = str(tmp_path / "data")
    prepare(source_of(folder), uri, image_size=16)
    with pytest.raises(UserError, match=r"resize 'area' there, 'adm' here"):
        prepare(source_of(folder), uri, image_size=16, options=Options(resize="adm"))
    with pytest.raises(UserError, match="of other source files or options"):
        prepare(_fewer(folder, tmp_path), uri, image_size=16)


def _fewer(folder, tmp_path):
    (tmp_path / "fewer").mkdir()
    (tmp_path / "fewer" / "class0").symlink_to(folder / "class0")
    (tmp_path / "fewer" / "class1").symlink_to(folder / "class1")
    return source_of(tmp_path / "fewer")


def test_shards_of_an_abandoned_plan_are_deleted(folder, undisturbed, tmp_path):
    Path(tmp_path, "shard-00099.parquet").write_bytes(b"left over")
    prepare(source_of(folder), str(tmp_path), image_size=16, options=SMALL_SHARDS)
    assert not (tmp_path / "shard-00099.parquet").exists()


def test_parquet_files_that_are_no_shards_of_the_data_set_stay(folder, tmp_path):
    others = [tmp_path / "mine.parquet", tmp_path / "8x8" / "shard-00099.parquet", tmp_path / "shard-1.parquet"]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"of another")
    prepare(source_of(folder), str(tmp_path), image_size=16, options=SMALL_SHARDS)
    assert all(other.read_bytes() == b"of another" for other in others)


def meanwhile(source, action, *, shard):
    """Calls a function once, when the work reaches that shard."""
    opened, read = [], source.open

    def open_and_act():
        opened.append(None)
        if len(opened) == shard + 1:
            action()
        return read()

    source.open = open_and_act
    return source


def test_a_run_never_writes_over_the_data_set_that_another_has_published_meanwhile(folder, undisturbed, tmp_path):
    uri = str(tmp_path / "data")
    other = dataclasses.replace(SMALL_SHARDS, seed=1)
    source = meanwhile(source_of(folder), lambda: prepare(source_of(folder), uri, image_size=16, options=other), shard=5)
    with pytest.raises(UserError, match="another run has made another data set there"):
        prepare(source, uri, image_size=16, options=SMALL_SHARDS)
    assert verify(uri).shuffle_seed == 1


def test_the_later_of_two_runs_that_make_the_same_data_set_finds_it(folder, undisturbed, tmp_path):
    uri = str(tmp_path / "data")
    source = meanwhile(source_of(folder), lambda: prepare(source_of(folder), uri, image_size=16, options=SMALL_SHARDS), shard=5)
    assert prepare(source, uri, image_size=16, options=SMALL_SHARDS) == undisturbed == verify(uri)


def test_shards_that_another_run_replaced_are_not_published(folder, tmp_path):
    uri = str(tmp_path / "data")
    broken = copy_with(folder, tmp_path / "photos", {"class3/z.png": b""})

    def begin_another():
        with pytest.raises(UserError, match="is empty"):
            prepare(broken, uri, image_size=16, options=dataclasses.replace(SMALL_SHARDS, seed=1))

    with pytest.raises(UserError, match="another run has replaced shards there"):
        prepare(meanwhile(source_of(folder), begin_another, shard=5), uri, image_size=16, options=SMALL_SHARDS)
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_the_scratch_files_of_killed_programs_are_deleted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uri, hour_ago = tmp_path / "data", time.time() - 3600
    killed = [tmp_path / f"iddpm-{kind}-killed" for kind in ("shard", "verify")]
    left = [uri / ".shard-00002.parquet.7f54c297e350.partial", *killed, tmp_path / "iddpm-shard-alive"]
    uri.mkdir()
    left[0].write_bytes(b"half")
    for directory in left[1:]:
        directory.mkdir()
        (directory / "lock").touch()
    for path in left:
        os.utime(path, (hour_ago, hour_ago))
    with (tmp_path / "iddpm-shard-alive" / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        prepare(source_of(folder), str(uri), image_size=16)
        verify(str(uri))
    assert [path.name for path in left if path.exists()] == ["iddpm-shard-alive"]
    assert len(list(tmp_path.glob("iddpm-shard-*"))) == 1


@pytest.mark.slow
def test_a_full_disk_stops_the_work_with_one_line_and_nothing_is_published(folder, tmp_path):
    program = (
        "import resource, signal, sys; from training.data.preparation import prepare; from training.data.sources import catalog\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "source = catalog.open_splits(sys.argv[1])['train']\n"
        "try:\n    prepare.prepare(source, sys.argv[2], image_size=16, options=prepare.Options(rows_per_shard=16))\n"
        "except (ValueError, OSError) as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder), str(tmp_path / "data")], capture_output=True, text=True, check=True)
    assert "UserError" in done.stdout
    assert "point TMPDIR elsewhere" in done.stdout
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_disk_without_room_for_the_data_is_refused_before_staging(undisturbed, folder, tmp_path, monkeypatch):
    uri = str(tmp_path / "data")
    prepare(source_of(folder), uri, image_size=16, options=SMALL_SHARDS)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"needs 160 KiB for a copy of the data, but 0.98 KiB are free"):
        Loader(uri, seed=0, global_batch_size=8, cache_dir=tmp_path / "cache")


@pytest.mark.slow
def test_a_disk_that_fills_up_while_staging_does_not_end_the_process(folder, tmp_path):
    uri = str(tmp_path / "data")
    prepare(source_of(folder), uri, image_size=16)
    program = (
        "import resource, signal, sys; from training.data.loading.loader import Loader\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    Loader(sys.argv[1], seed=0, global_batch_size=8, cache_dir=sys.argv[2])\n"
        "except (ValueError, OSError) as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, uri, str(tmp_path / "cache")], capture_output=True, text=True, check=True)
    assert "UserError" in done.stdout
    assert "set a disk budget to stream the data" in done.stdout
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


@pytest.fixture
def damaged(folder, tmp_path):
    uri = tmp_path / "data"
    prepare(source_of(folder), str(uri), image_size=16, options=SMALL_SHARDS)
    return uri


def load(uri, tmp_path, **options):
    return Loader(str(uri), seed=0, global_batch_size=8, cache_dir=tmp_path / "cache", **options)


def test_a_flipped_byte_in_a_shard_is_found_by_loader_and_verification(damaged, tmp_path):
    data = bytearray((damaged / "shard-00003.parquet").read_bytes())
    data[1000] ^= 1
    (damaged / "shard-00003.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"shard-00003\.parquet: its sha256 is not the manifest's"):
        load(damaged, tmp_path)
    with pytest.raises(UserError, match=r"shard-00003\.parquet"):
        verify(str(damaged))
    assert list((tmp_path / "cache").glob("*.partial")) == []


def test_a_missing_and_a_short_shard_are_named(damaged, tmp_path):
    (damaged / "shard-00003.parquet").unlink()
    with pytest.raises(UserError, match=r"shard-00003\.parquet: the shard is missing"):
        load(damaged, tmp_path)
    (damaged / "shard-00003.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"shard-00003\.parquet: has 4 bytes"):
        verify(str(damaged))


def test_what_a_damaged_data_set_asks_for_makes_it_whole(damaged, folder, undisturbed, tmp_path):
    shards = [damaged / f"shard-0000{number}.parquet" for number in (3, 4)]
    for shard in shards:
        shard.write_bytes(bytes(shard.stat().st_size))
    remedy = f"; delete {damaged} and prepare the data set again"
    for find in (lambda: load(damaged, tmp_path), lambda: verify(str(damaged)), lambda: list(iterate(str(damaged), 8))):
        with pytest.raises(UserError, match=re.escape(remedy)) as caught:
            find()
        assert str(caught.value).endswith(remedy)
        assert str(caught.value).count(remedy) == 1
    shutil.rmtree(damaged)
    assert prepare(source_of(folder), str(damaged), image_size=16, options=SMALL_SHARDS) == undisturbed == verify(str(damaged))


@pytest.mark.parametrize("as_address", [str, Path.as_uri, lambda path: f"{path.parent}//{path.name}/"])
@pytest.mark.parametrize(("left", "fault"), [(None, "the shard is missing"), (b"PAR1", "has 4 bytes, the manifest says")])
def test_a_data_set_without_a_whole_shard_is_not_there_already(damaged, folder, left, fault, as_address):
    uri = as_address(damaged)
    assert prepare(source_of(folder), uri, image_size=16, options=SMALL_SHARDS) == read_manifest(uri)
    shard = damaged / "shard-00003.parquet"
    (damaged / "8x8").mkdir()
    shard.rename(damaged / "8x8" / shard.name)  # that of another data set does not count
    if left is not None:
        shard.write_bytes(left)
    with pytest.raises(UserError, match=rf"shard-00003\.parquet: {fault}.*; delete {re.escape(uri)} and prepare the data set again"):
        prepare(source_of(folder), uri, image_size=16, options=SMALL_SHARDS)


def test_a_shard_with_rows_of_another_size_is_named(damaged, tmp_path):
    wide = tmp_path / "wide"
    shutil.copytree(damaged, wide)
    manifest = read_manifest(str(wide))
    narrow = dataclasses.replace(manifest, image_channels=1)
    (wide / "manifest.json").write_text(dataclasses.replace(narrow, content_digest=manifest_digest(narrow)).to_json())
    fault = r"a row has 768 bytes, but images of \(16, 16, 1\) have 256"
    for find in (lambda: load(wide, tmp_path), lambda: verify(str(wide)), lambda: list(iterate(str(wide), 8))):
        with pytest.raises(UserError, match=rf"shard-\d{{5}}\.parquet: .*{fault}.*; delete {wide} and prepare the data set again"):
            find()


def test_a_manifest_that_was_edited_does_not_pass(damaged):
    text = (damaged / "manifest.json").read_text()
    (damaged / "manifest.json").write_text(text.replace('"class0"', '"cats"'))
    with pytest.raises(UserError, match="content_digest contradicts"):
        verify(str(damaged))
    for field, value in {"num_images": 199, "shards": [], "class_names": ["class0"], "image_size": 0, "class_counts": [1]}.items():
        (damaged / "manifest.json").write_text(json.dumps({**json.loads(text), field: value}))
        with pytest.raises(UserError, match="contradicts the other fields; the manifest is damaged"):
            load(damaged, damaged / "cache")
    (damaged / "manifest.json").write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(UserError, match=r"schema version 2, but this program reads 1; a later release made it, so use that one"):
        read_manifest(str(damaged))
    (damaged / "manifest.json").write_text(text.replace('"schema_version": 1', '"schema_version": 0'))
    with pytest.raises(UserError, match=r"schema version 0, but this program reads 1; delete .* and prepare the data set again"):
        read_manifest(str(damaged))
    for broken in (text[:100], "[" * 100_000):
        (damaged / "manifest.json").write_text(broken)
        with pytest.raises(UserError, match=r"manifest\.json: is not JSON"):
            read_manifest(str(damaged))
    value = json.loads(text)
    del value["shards"]
    (damaged / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="shards: Field required"):
        read_manifest(str(damaged))


@pytest.mark.parametrize("name", ["../precious", "/precious", "..", ""])
def test_a_manifest_whose_shard_is_a_path_leads_no_reader_out_of_its_directory(damaged, tmp_path, name):
    value = json.loads((damaged / "manifest.json").read_text())
    precious = tmp_path / "precious"
    precious.write_text("work of years")
    value["shards"][0]["file"] = str(precious) if name == "/precious" else name
    (damaged / "manifest.json").write_text(json.dumps(value))
    for find in (lambda: load(damaged, tmp_path), lambda: verify(str(damaged))):
        with pytest.raises(UserError, match="which is no name of a file; the manifest is damaged"):
            find()
    assert precious.exists()


def test_an_unlabelled_data_set_has_no_labels(folder, tmp_path):
    source = open_splits(str(folder), SourceOptions(labels="none"))["train"]
    prepare(source, str(tmp_path / "data"), image_size=16)
    assert load(tmp_path / "data", tmp_path).batch(0).labels is None
    assert all(labels is None for _, _, labels in iterate(str(tmp_path / "data"), 50))


def test_a_staged_copy_that_was_interrupted_is_made_again(damaged, tmp_path):
    digest = read_manifest(str(damaged)).content_digest[:32]
    left = tmp_path / "cache" / f"{digest}.partial"
    left.mkdir(parents=True)
    (left / "images.npy").write_bytes(b"half")
    assert load(damaged, tmp_path).batch(0).images.shape == (8, 3, 16, 16)
    assert not left.exists()


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("left", [0, 0.5, None])
def test_a_staged_copy_that_a_crash_of_the_machine_damaged_is_made_again(damaged, tmp_path, name, left):
    whole = load(damaged, tmp_path).batch(3)
    (path,) = (tmp_path / "cache").glob(f"*/{name}")
    data = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(data[: int(len(data) * left)])
    assert torch.equal(load(damaged, tmp_path).batch(3).images, whole.images)


@pytest.mark.slow
def test_processes_of_a_node_stage_once(damaged, tmp_path):
    program = (
        "import sys; from training.data.loading.loader import Loader\n"
        "loader = Loader(sys.argv[1], seed=0, global_batch_size=8, cache_dir=sys.argv[2])\n"
        "print(int(loader.batch(5).images.sum()))\n"
    )
    command = [sys.executable, "-c", program, str(damaged), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = {process.communicate()[0] for process in processes}
    assert all(process.returncode == 0 for process in processes)
    assert sums == {f"{int(load(damaged, tmp_path).batch(5).images.sum())}\n"}


@pytest.mark.parametrize("size", [1, 8, 32, 64, 128, 144, 160, 192, 256, 288, 300, 512, 1024, 4096])
def test_a_shard_has_128_to_256_megabytes_for_images_of_any_size(size):
    assert 128e6 <= rows_per_shard(size * size * 3) * size * size * 3 <= 256e6


def test_the_contact_sheet_shows_the_first_images(damaged, tmp_path):
    preview(str(damaged), f"{tmp_path}/sheet.png", num_images=20)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    _, images, _ = next(iterate(str(damaged), 1))
    assert np.array_equal(sheet[4:68:4, 4:68:4], images[0].permute(1, 2, 0).numpy())


def test_a_contact_sheet_is_named_as_the_png_that_it_is(damaged, tmp_path):
    with pytest.raises(UserError, match=r"sheet\.jpg: a contact sheet is written as PNG"):
        preview(str(damaged), f"{tmp_path}/sheet.jpg")


def test_a_long_caption_is_shortened_to_its_image():
    black = np.zeros((8, 8, 3), dtype=np.uint8)
    sheet = np.asarray(contact_sheet([black] * 2, ["an uncommonly long name of a class", ""]))
    assert sheet[68:, :72].min() < 128
    assert sheet[68:, 72:].min() == 255, "the caption runs beneath the next image"


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2029"])
def test_a_caption_of_two_lines_is_drawn_in_one(end):
    black = np.zeros((8, 8, 3), dtype=np.uint8)
    sheets = [contact_sheet([black], [caption]) for caption in (f"a{end}b", "a b")]
    assert np.array_equal(*map(np.asarray, sheets))


def test_a_caption_may_have_other_letters_than_english():
    black = np.zeros((8, 8, 3), dtype=np.uint8)
    sheets = [np.asarray(contact_sheet([black], [word])) for word in "üßжλ"]
    assert len({sheet.tobytes() for sheet in sheets}) == 4, "letters that the font lacks all look alike"


def test_the_directory_of_the_splits_is_refused_with_the_names_of_the_splits(folder, tmp_path):
    prepare(source_of(folder), str(tmp_path / "data" / "train"), image_size=16)
    with pytest.raises(UserError, match=rf"contains the splits of a data set; name one of them: {tmp_path}/data/train$"):
        read_manifest(str(tmp_path / "data"))


def test_a_directory_below_a_data_set_is_refused_with_the_name_of_the_data_set(folder, tmp_path):
    prepare(source_of(folder), str(tmp_path / "train"), image_size=16)
    with pytest.raises(UserError, match=f"train/train/: there is no data set, but the directory above it is one; name {tmp_path}/train$"):
        read_manifest(f"{tmp_path}/train/train/")


def test_an_experiment_gets_both_splits_or_an_error_with_the_reason(folder, tmp_path):
    data = DataConfig(name="photos", image_size=16, num_classes=3, resize="area")
    options = SourceOptions(num_test=20)
    manifests = prepare_splits(data, str(tmp_path / "data"), source=str(folder), source_options=options)
    assert {split: manifest.num_images for split, manifest in manifests.items()} == {"train": 180, "test": 20}
    assert manifests["train"].class_names == manifests["test"].class_names
    with pytest.raises(UserError, match=r"photos\d: the train images have 3 labels, but the experiment has data\.num_classes=10"):
        prepare_splits(dataclasses.replace(data, num_classes=10), str(tmp_path / "other"), source=str(folder))
    with pytest.raises(UserError, match=r"the source is 'digits'; override data\.name=digits"):
        prepare_splits(data, str(tmp_path / "other"), source="digits")


@pytest.mark.parametrize(
    ("place", "num_classes", "message"),
    [
        ("{split}/{name}/{number}.png", 3, "source/train: the train images have 2 labels"),
        ("{split}/{name}/{test_only}{number}.png", 2, ""),
        ("{split}/{train_only}{number}.png", 2, "1 of 4 test images are in no class folder, like 9.png, but the training images are"),
        ("{split}/{test_only}{number}.png", 0, "the test images are in class folders, but the training images are not"),
        ("{split}/{test_or_name}/{number}.png", 2, "test: test-cat/.* has the label 'test-cat', which no training image has"),
    ],
)
def test_the_images_of_both_splits_are_looked_at_before_the_first_is_made(tmp_path, place, num_classes, message):
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "cat", "dog", "dog")):
            is_test = split == "test"
            given = {
                "train_only": "" if is_test and number == 3 else f"{name}/",
                "test_only": f"{name}/" if is_test else "",
                "test_or_name": f"test-{name}" if is_test else name,
            }
            path = tmp_path / "source" / place.format(split=split, name=name, number=9 if number == 3 else number, **given)
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(number).save(path)
    data = DataConfig(name="photos", image_size=16, num_classes=num_classes, resize="area")
    if not message:
        assert set(prepare_splits(data, str(tmp_path / "data"), source=str(tmp_path / "source"))) == {"train", "test"}
        return
    with pytest.raises(UserError, match=message):
        prepare_splits(data, str(tmp_path / "data"), source=str(tmp_path / "source"))
    assert not (tmp_path / "data").exists()


def test_a_wrong_number_of_labels_names_the_image_that_took_them_away(folder, tmp_path):
    copy_with(folder, tmp_path / "copy", {"logo.png": encode(24, "PNG")})
    data = DataConfig(name="photos", image_size=16, num_classes=3, resize="area")
    with pytest.raises(UserError, match=r"copy: the train images have 0 labels, .*; logo\.png is beside the folders and in none of them"):
        prepare_splits(data, str(tmp_path / "data"), source=str(tmp_path / "copy"))


def test_the_models_of_a_cascade_get_their_sizes_from_one_decoding(folder, tmp_path):
    data = DataConfig(name="photos", image_size=16, num_classes=3, resize="area")
    small = str(tmp_path / "8")
    prepare_splits(data, str(tmp_path / "16"), source=str(folder), source_options=SourceOptions(num_test=20), other_sizes={8: small})
    for split in ("train", "test"):
        one, other = read_manifest(f"{tmp_path}/16/{split}"), read_manifest(f"{small}/{split}")
        assert (one.image_size, other.image_size, one.num_images) == (16, 8, other.num_images)


def test_a_pipelines_step_makes_other_sizes_below_the_data_set_or_in_their_own_default_place(folder, tmp_path):
    named = ["data.name=photos", "data.image_channels=3", "data.num_classes=3", "data.resize=area"]
    large = [*named, "data.image_size=16", "model.attention_resolutions=[8]"]
    words = {"source": str(folder), "source_options": {"num_test": 20}}
    sizes = [8.0, 16.0]  # as JSON's numbers come
    prepare_experiment(preset("digits-hybrid-cosine", large), str(tmp_path / "here"), other_sizes=sizes, **words)
    assert read_manifest(f"{tmp_path}/here/8x8/test").image_size == 8
    root = str(tmp_path / "store")
    prepare_experiment(preset("digits-hybrid-cosine", large), "", storage_root_uri=root, other_sizes=sizes, **words)
    made = read_manifest(f"{root}/data/photos-8x8x3-area/train")
    small = prepare_experiment(preset("digits-hybrid-cosine", named), "", storage_root_uri=root, **words)
    assert small == f"{tmp_path}/store/data/photos-8x8x3-area"
    assert read_manifest(f"{small}/train") == read_manifest(f"{tmp_path}/here/8x8/train") == made


@pytest.mark.parametrize(
    "field",
    [
        {"rows_per_shard": 0},
        {"background": "pink"},
        {"max_errors": 0},
        {"image_channels": 2},
        {"on_error": "ignore"},
        {"max_pixels": 0},
        {"resize": "bilinear"},
        {"seed": -1},
    ],
)
def test_options_out_of_range_are_refused(field):
    with pytest.raises(UserError, match=next(iter(field))):
        validate(Options, field)


def test_the_shape_of_a_batch_is_that_of_the_manifest(damaged, tmp_path):
    batch = load(damaged, tmp_path).batch(3)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (8, 3, 16, 16)


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "tar.gz"])
def test_files_overwritten_at_the_same_size_between_a_stop_and_the_resume_are_not_mixed(tmp_path, form):
    """Bitmaps all have one size; the first of them is none, which stops the first run in the middle."""
    place = tmp_path / ("photos" if form == "folder" else f"photos.{form}")

    def write(first_seed, broken):
        folder = tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        for number in range(64):
            buffer = io.BytesIO()
            photo(first_seed + number).resize((16, 16)).save(buffer, "BMP")
            (folder / f"{number:02d}.bmp").write_bytes(bytes(len(buffer.getvalue())) if number == broken else buffer.getvalue())
        if form != "folder":
            kind = {"zip": "zip", "tar": "tar", "tar.gz": "gztar"}[form]
            shutil.make_archive(str(tmp_path / "photos"), kind, folder)

    options = Options(rows_per_shard=8)
    write(0, broken=0)
    with pytest.raises(UserError, match=r"00\.bmp is not an image"):
        prepare(source_of(place), str(tmp_path / "resumed"), image_size=16, options=options)
    assert list((tmp_path / "resumed" / "_partial").iterdir())
    write(1000, broken=None)
    resumed = prepare(source_of(place), str(tmp_path / "resumed"), image_size=16, options=options)
    assert resumed == prepare(source_of(place), str(tmp_path / "fresh"), image_size=16, options=options)


@pytest.fixture
def published(tmp_path):
    """A folder of bitmaps, which all have one size, and a function that prepares it in one place."""
    (tmp_path / "bitmaps").mkdir()
    for number in range(20):
        photo(number).resize((16, 16)).save(tmp_path / "bitmaps" / f"{number:02d}.bmp")

    def prepare_again():
        options = Options(rows_per_shard=8)
        return prepare(source_of(tmp_path / "bitmaps"), str(tmp_path / "data"), image_size=16, options=options)

    return prepare_again


def test_a_data_set_of_the_same_files_is_there_already(published, capsys, monkeypatch):
    first = published()
    capsys.readouterr()
    lists = []
    list_objects = storage.list_objects
    monkeypatch.setattr(storage, "list_objects", lambda uri: lists.append(uri) or list_objects(uri))
    assert published() == first
    assert capsys.readouterr().out.endswith("data: 20 images are there already\n")
    assert len(lists) == 1, "a data set of many shards must be found as quickly"


def test_a_source_overwritten_at_the_same_size_after_the_publication_is_refused(published, tmp_path):
    published()
    manifest = (tmp_path / "data" / "manifest.json").read_bytes()
    photo(77).resize((16, 16)).save(tmp_path / "bitmaps" / "01.bmp")
    with pytest.raises(UserError, match="files of its source were overwritten since it was made"):
        published()
    assert (tmp_path / "data" / "manifest.json").read_bytes() == manifest
    assert verify(str(tmp_path / "data")).num_images == 20


def test_a_source_that_was_only_copied_again_is_compared_once_and_there_already(published, tmp_path, capsys):
    first = published()
    for path in (tmp_path / "bitmaps").iterdir():
        path.touch()
    assert published() == first
    assert "so they are read again and compared" in capsys.readouterr().out
    assert published() == first
    assert "read again" not in capsys.readouterr().out


@pytest.mark.parametrize("num_rows", [3, 4, 8])
@pytest.mark.parametrize("broken", [[], [0, 1, 2, 3, 5, 19], [0, 9, 10]], ids=["all images", "without some", "some in each shard of 8"])
def test_a_source_that_was_copied_again_is_compared_by_the_division_of_the_data_set(tmp_path, broken, num_rows):
    order = permutation(20, 0, Purpose.SHUFFLE).tolist()
    (tmp_path / "bitmaps").mkdir()
    for place, number in enumerate(order):
        image = photo(number).resize((16, 16))
        image.save(tmp_path / "bitmaps" / f"{number:02d}.bmp")
        if place in broken:
            (tmp_path / "bitmaps" / f"{number:02d}.bmp").write_bytes(bytes(100))
    sizes = {16: str(tmp_path / "16"), 8: str(tmp_path / "8")}
    first = prepare_sizes(source_of(tmp_path / "bitmaps"), sizes, options=dataclasses.replace(SKIP, rows_per_shard=num_rows))
    for path in (tmp_path / "bitmaps").iterdir():
        path.touch()
    assert prepare(source_of(tmp_path / "bitmaps"), sizes[8], image_size=8, options=SKIP) == first[8]
    assert prepare_sizes(source_of(tmp_path / "bitmaps"), sizes, options=SKIP) == first
    photo(77).resize((16, 16)).save(tmp_path / "bitmaps" / f"{order[11]:02d}.bmp")
    with pytest.raises(UserError, match="files of its source were overwritten since it was made"):
        prepare_sizes(source_of(tmp_path / "bitmaps"), sizes, options=SKIP)


def test_what_an_earlier_release_made_from_an_unchanged_tar_is_found(tmp_path, capsys, monkeypatch):
    """An earlier release gave the tar another version, with the number of its disk and of the file on it."""
    (tmp_path / "photos").mkdir()
    for number in range(6):
        photo(number).save(tmp_path / "photos" / f"{number}.png")
    shutil.make_archive(str(tmp_path / "photos"), "tar", tmp_path / "photos")
    source, options = source_of(tmp_path / "photos.tar"), Options(rows_per_shard=2)
    made = []

    def stop_after_one(function, jobs):
        yield function(jobs[0])
        raise KeyboardInterrupt

    def note(function, jobs):
        made.extend(job.number for job in jobs)
        return map(function, jobs)

    with monkeypatch.context() as earlier:
        earlier.setattr("training.data.sources.files.source_version", storage.version)
        whole = prepare(source, str(tmp_path / "whole"), image_size=16, options=options)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, str(tmp_path / "half"), image_size=16, options=options, shard_map=stop_after_one)
    assert prepare(source, str(tmp_path / "whole"), image_size=16, options=options) == whole
    assert "read again" not in capsys.readouterr().out
    assert prepare(source, str(tmp_path / "half"), image_size=16, options=options, shard_map=note) == whole
    assert made == [1, 2]


def test_a_data_set_without_the_versions_of_its_files_is_there_already(published, tmp_path, capsys):
    published()
    manifest = tmp_path / "data" / "manifest.json"
    value = json.loads(manifest.read_text())
    del value["source_sha256"], value["background"]  # as an earlier release wrote it
    manifest.write_text(json.dumps(value))
    (tmp_path / "bitmaps" / "01.bmp").touch()
    capsys.readouterr()
    published()
    assert capsys.readouterr().out.endswith("data: 20 images are there already\n")
