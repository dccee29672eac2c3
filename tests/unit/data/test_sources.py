import dataclasses
import errno
import functools
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torchvision
from PIL import Image

from training import storage
from training.config.errors import UserError
from training.config.experiment import DataConfig
from training.data.format.order import Purpose, permutation
from training.data.images.decode import ImageError
from training.data.inspection.folder import inspect_folder
from training.data.preparation.prepare import prepare
from training.data.sources.catalog import SourceOptions, list_splits, open_splits
from training.data.sources.files import file_source
from training.data.sources.labels import assign_labels
from training.data.sources.published import digits
from training.data.sources.source import RandomSplit, is_digest_of, items_digest, read_items
from training.storage import StorageError


@pytest.fixture(autouse=True)
def own_node_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()


def png(seed, size=8):
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, size)).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(seed, size=8):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data))) if isinstance(data, bytes) else data


def contents(source):
    """Key to label and pixels, read through the source's own reader."""
    listing = source.listing()
    with source.open() as read:
        return {item.key: (item.label, decoded(read(item.locator))) for item in listing.items}, listing.class_names


FILES = {"cat/1.png": png(1), "cat/2.PNG": png(2), "dog/deep/3.png": png(3)}
NOISE = {"README.txt": b"hello", ".hidden/4.png": png(4), "__MACOSX/cat/1.png": b"resource fork", "cat/._1.png": b"x"}


def write_folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def tar_bytes(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path, files):
    data = tar_bytes(files)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.fixture(params=["folder", "zip", "tar", "tar.gz"])
def anything(request, tmp_path):
    files = {**FILES, **NOISE}
    if request.param == "folder":
        return write_folder(tmp_path / "images", files)
    if request.param == "zip":
        return write_zip(tmp_path / "images.zip", files)
    return write_tar(tmp_path / f"images.{request.param}", files)


def test_a_folder_a_zip_and_a_tar_are_the_same_source(anything):
    source = open_splits(anything, SourceOptions(name="pets"))["train"]
    found, class_names = contents(source)
    assert class_names == ("cat", "dog")
    assert {key: label for key, (label, _) in found.items()} == {"cat/1.png": 0, "cat/2.PNG": 0, "dog/deep/3.png": 1}
    for seed, key in enumerate(FILES, start=1):
        assert np.array_equal(found[key][1], pixels(seed))


def test_their_listings_agree_so_their_data_sets_do(tmp_path):
    paths = [write_folder(tmp_path / "images", FILES), write_zip(tmp_path / "i.zip", FILES), write_tar(tmp_path / "i.tar", FILES)]
    assert len({open_splits(path)["train"].listing().digest() for path in paths}) == 1


def test_a_link_to_a_folder_above_is_not_followed_again(tmp_path):
    root = write_folder(tmp_path / "images", FILES)
    (tmp_path / "images" / "cat" / "up").symlink_to(tmp_path / "images")
    assert len(open_splits(root)["train"].listing().items) == 3


def test_a_name_that_is_not_utf8_is_escaped(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    (root / "caf\udce9.png").write_bytes(png(7))
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(root, ".")
    for address in (root, archive):
        source = open_splits(str(address))["train"]
        found, _ = contents(source)
        assert np.array_equal(found["caf\\xe9.png"][1], pixels(7))
        assert source.listing().digest()


@pytest.mark.parametrize("prefix", ["/", "/photos/", "../", "./", ""])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_a_zip_has_the_names_and_classes_that_it_unpacks_to(tmp_path, prefix, separator):
    files = {"dog/2.png" if key.startswith("dog") else (prefix + key).replace("/", separator): png(1) for key in FILES}
    listing = open_splits(write_zip(tmp_path / "i.zip", files))["train"].listing()
    below = "photos/" if "photos" in prefix else ""
    assert [item.key for item in listing.items] == sorted([f"{below}cat/1.png", f"{below}cat/2.PNG", "dog/2.png"])
    assert len(listing.class_names) == 2


def test_links_of_a_tar_are_images_of_their_own_as_in_a_folder(tmp_path):
    links = {"dog/hard.png": (tarfile.LNKTYPE, "./cat/1.png"), "dog/soft.png": (tarfile.SYMTYPE, "../dog/hard.png")}
    buffer = io.BytesIO(tar_bytes({"./cat/1.png": png(1)}))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for name, (kind, target) in {**links, "dog/broken.png": (tarfile.SYMTYPE, "no.png")}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    (tmp_path / "inner.tar").write_bytes(buffer.getvalue())
    (tmp_path / "outer.tar").write_bytes(tar_bytes({"pets.tar": buffer.getvalue()}))
    for name in ("inner.tar", "outer.tar"):
        source = open_splits(str(tmp_path / name))["train"]
        listing = source.listing()
        read = {item.key.removeprefix("pets/"): (item.label, data) for item, data in read_items(source, listing.items)}
        broken = read.pop("dog/broken.png")
        assert isinstance(broken[1], ImageError)
        assert read == {"cat/1.png": (0, png(1)), "dog/hard.png": (1, png(1)), "dog/soft.png": (1, png(1))}


def test_a_sparse_file_in_a_tar_is_refused_as_its_bytes_are_not_in_one_piece(tmp_path):
    with (tmp_path / "1.bmp").open("wb") as file:
        file.truncate(1 << 20)
    subprocess.run(["tar", "-C", tmp_path, "--sparse", "-cf", tmp_path / "i.tar", "1.bmp"], check=True)
    with pytest.raises(UserError, match=r"i.tar: 1.bmp is stored without its zeros; make the archive without --sparse"):
        open_splits(str(tmp_path / "i.tar"))["train"].listing()


def test_a_link_to_a_folder_above_the_root_does_not_list_every_image_twice(tmp_path):
    root = write_folder(tmp_path / "above" / "images", FILES)
    (tmp_path / "above" / "images" / "cat" / "up").symlink_to(tmp_path / "above")
    (tmp_path / "link").symlink_to(root)
    for address in (root, str(tmp_path / "link")):
        assert [item.key for item in open_splits(address)["train"].listing().items] == sorted(FILES)


def test_classes_of_a_split_may_be_links(tmp_path):
    pool = Path(write_folder(tmp_path / "pool", FILES))
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for name in ("cat", "dog"):
            (tmp_path / "data" / split / name).symlink_to(pool / name)
    (tmp_path / "data" / "val").mkdir()
    splits = open_splits(str(tmp_path / "data"))
    labels = {split: [item.label for item in source.listing().items] for split, source in splits.items()}
    assert labels == {"train": [0, 0, 1], "test": [0, 0, 1]}


def test_a_split_without_a_file_is_none(tmp_path):
    root = write_folder(tmp_path / "data", {f"train/{key}": data for key, data in FILES.items()})
    (tmp_path / "data" / "test" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "test" / "round").symlink_to(tmp_path / "data" / "test")
    assert set(open_splits(root)) == {"train"}


def test_a_folder_that_may_not_be_read_is_named_with_the_remedy(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "data", {f"{split}/{key}": data for split in ("train", "test") for key, data in FILES.items()})
    scandir = os.scandir

    def refuse(path):
        if str(path) == f"{root}/train":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match=r"data \(.*data/train\): Permission denied; give this user the right to it"):
        open_splits(root)


@pytest.mark.parametrize("name", ["shots.tar", "shots.zip"])
def test_a_folder_may_be_named_like_an_archive(tmp_path, name):
    assert contents(open_splits(write_folder(tmp_path / name, FILES))["train"])[1] == ("cat", "dog")


def test_a_link_to_a_folder_is_followed_whichever_comes_first_on_the_disk(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "images", {"cat/1.png": png(1)})
    (tmp_path / "images" / "dog").symlink_to("cat")
    walk = os.walk
    for order in (sorted, lambda names: sorted(names)[::-1]):
        monkeypatch.setattr(os, "walk", functools.partial(_walk_in_order, walk, order))
        assert [item.key for item in open_splits(root)["train"].listing().items] == ["cat/1.png", "dog/1.png"]


def _walk_in_order(walk, order, *args, **options):
    for entry in walk(*args, **options):
        entry[1][:] = order(entry[1])
        yield entry


@pytest.mark.timeout(30)
def test_a_pipe_among_the_images_is_named_and_not_waited_for(tmp_path):
    root = Path(write_folder(tmp_path / "images", FILES))
    os.mkfifo(root / "cat" / "9.png")
    (root / "cat" / "8.png").symlink_to("9.png")
    (root / "cat" / "7.png").symlink_to("1.png")
    source = file_source(str(root), name="x", split="train")
    found = {item.key: str(data) for item, data in read_items(source, source.listing().items) if isinstance(data, ImageError)}
    assert found == dict.fromkeys(["cat/8.png", "cat/9.png"], "is a pipe, a socket or a device and not a file; remove it from the folder")


@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
def test_files_beside_the_images_are_told_with_an_archive_as_the_example(tmp_path, write, capfd):
    suffix = {write_folder: "", write_zip: ".zip", write_tar: ".tar"}[write]
    uri = write(tmp_path / f"outer{suffix}", {**FILES, "a.txt": b"x", "labels.csv": b"x", ".DS_Store": b"x", "more/b.zip": b"x"})
    listing = file_source(uri, name="x", split="train", labels="none").listing()
    assert listing.others == ("more/b.zip", "a.txt", "labels.csv")
    whole = file_source(uri, name="x", split="train", labels="none")
    splits = [RandomSplit(whole, split=split, num_test=1, seed=0) for split in ("train", "test")]
    sentence = "3 files are not images and are left out, like more/b.zip"
    assert [each.listing().left_out() for each in splits] == [sentence, ""]
    prepare(splits[0], str(tmp_path / "prepared"), image_size=1)
    assert f"{uri}: {sentence}\n" in capfd.readouterr().out


@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
def test_images_in_hidden_folders_are_told_but_not_what_archivers_and_editors_leave(tmp_path, write):
    suffix = {write_folder: "", write_zip: ".zip", write_tar: ".tar"}[write]
    left = {"cat/._1.png": b"x", "__MACOSX/cat/1.png": b"x", ".thumbnails/._1.png": b"x", ".git/index": b"x"}
    listing = file_source(write(tmp_path / f"a{suffix}", {**FILES, **left}), name="x", split="train").listing()
    assert (len(listing.items), listing.left_out()) == (len(FILES), "")
    uri = write(tmp_path / f"b{suffix}", {**FILES, ".birds/2.png": png(1), "more/.fish/1.png": png(1)})
    splits = [RandomSplit(file_source(uri, name="x", split="train"), split=split, num_test=1, seed=0) for split in ("train", "test")]
    sentence = (
        "2 images are in hidden folders and left out, like .birds/2.png; take the dot from the folder's name if they belong to the others"
    )
    assert [each.listing().left_out() for each in splits] == [sentence, ""]
    with pytest.raises(UserError, match=r"contains images in hidden folders alone, like \.birds/1\.png; take the dot"):
        file_source(write(tmp_path / f"c{suffix}", {".birds/1.png": png(1)}), name="x", split="train").listing()


@pytest.mark.parametrize(
    ("names", "subject", "them"),
    [(["logo.png"], "all/logo.png is", "it"), (["logo.png", "a.png"], "2 images, like all/a.png, are", "them")],
)
def test_images_beside_the_classes_are_told_once_as_they_take_the_labels_from_all(tmp_path, capfd, names, subject, them):
    root = write_folder(
        tmp_path / "images", {f"all/{key}": data for key, data in FILES.items()} | {f"all/{name}": png(1) for name in names}
    )
    whole = file_source(root, name="x", split="train")
    splits = [RandomSplit(whole, split=split, num_test=1, seed=0) for split in ("train", "test")]
    for each in splits:
        prepare(each, str(tmp_path / "prepared" / each.split), image_size=1)
    sentence = (
        f"{subject} beside the folders and in none of them, so the folders are not taken for classes; move {them} into one of them or "
        "away, or set labels to 'none' if they are no classes"
    )
    assert capfd.readouterr().out.count(f"{root}: {sentence}\n") == 1


def test_nothing_is_told_where_there_would_be_no_classes(tmp_path):
    root = write_folder(tmp_path / "images", {**FILES, "logo.png": png(1)})
    assert file_source(root, name="x", split="train", labels="none").listing().without_labels() == ""
    flat = write_folder(tmp_path / "flat", {"1.png": png(1), "more/2.png": png(2)})
    assert file_source(flat, name="x", split="train").listing().without_labels() == ""


def test_the_table_of_labels_is_not_told_as_a_file_that_is_left_out(tmp_path):
    table = "".join(f"{key},{number}\n" for number, key in enumerate(FILES))
    root = write_folder(tmp_path / "images", {**FILES, "labels.csv": table.encode()})
    listing = file_source(root, name="x", split="train", labels=f"{root}/labels.csv").listing()
    assert (len(listing.items), listing.left_out()) == (len(FILES), "")


@pytest.mark.parametrize("write", [write_folder, write_zip, write_tar])
def test_archives_without_an_image_beside_them_are_to_be_unpacked(tmp_path, write):
    suffix = {write_folder: "", write_zip: ".zip", write_tar: ".tar"}[write]
    files = {f"{name}.{kind}": b"x" for name, kind in zip("abcd", ("zip", "tar.gz", "ZIP", "7z"), strict=True)}
    uri = write(tmp_path / f"outer{suffix}", {**files, "__MACOSX/0.zip": b"x"})
    with pytest.raises(UserError, match=r"contains no image but archives \(a\.zip, b\.tar\.gz, c\.ZIP, \.\.\.\); unpack them"):
        file_source(uri, name="x", split="train").listing()


def test_a_photo_in_a_format_that_is_not_decoded_is_not_lost_without_a_word(tmp_path):
    root = write_folder(tmp_path / "images", {"1.jfif": png(1), "2.HEIC": b"\0\0\0\x18ftypheic", "3.avif": png(3)})
    assert [item.key for item in open_splits(root)["train"].listing().items] == ["1.jfif", "2.HEIC", "3.avif"]


@pytest.mark.parametrize("train", ["Train", "training", "TRAIN"])
@pytest.mark.parametrize("test", ["Test", "testing", "Validation"])
def test_splits_by_another_name_are_not_taken_for_two_classes(tmp_path, train, test):
    root = write_folder(tmp_path / "images", {f"{train}/cat/1.png": png(1), f"{test}/cat/2.png": png(2)})
    with pytest.raises(UserError, match="contains training and test images"):
        open_splits(root)["train"].listing()


def test_train_and_val_folders_are_two_splits_with_the_same_labels(tmp_path):
    root = write_folder(
        tmp_path / "data", {f"train/{key}": data for key, data in FILES.items()} | {"val/dog/9.png": png(9), "val/cat/8.png": png(8)}
    )
    splits = open_splits(root)
    assert {split: len(source.listing().items) for split, source in splits.items()} == {"train": 3, "test": 2}


def test_images_beside_the_folders_of_the_splits_are_told_as_left_out(tmp_path, capfd):
    keys = ["train/1.png", "test/2.png", "val/3.png", "val/4.png", "extra/5.png", "6.png", ".hidden/7.png", "notes.txt"]
    root = write_folder(tmp_path / "data", {key: png(1) for key in keys})
    splits = open_splits(root)
    told = "4 images are beside the folders of the training and the test images and left out: 2 in val, 1 in no folder, 1 in extra"
    assert [source.listing().left_out() for source in splits.values()] == [told, ""]
    prepare(splits["train"], str(tmp_path / "prepared"), image_size=1)
    assert f"{root}/train: {told}\n" in capfd.readouterr().out
    shutil.copy(f"{root}/train/1.png", f"{root}/train/2.png")  # a training takes two
    assert inspect_folder(root).left_out == told


def test_held_out_images_are_disjoint_complete_and_drawn_by_the_seed(tmp_path):
    root = write_folder(tmp_path / "images", {f"{i}.png": png(i) for i in range(20)})
    splits = {seed: open_splits(root, SourceOptions(num_test=5, split_seed=seed)) for seed in (1, 2)}
    keys = {seed: {split: {item.key for item in s.listing().items} for split, s in both.items()} for seed, both in splits.items()}
    assert len(keys[1]["test"]) == 5
    assert keys[1]["train"] | keys[1]["test"] == {f"{i}.png" for i in range(20)}
    assert not keys[1]["train"] & keys[1]["test"]
    assert keys[1]["test"] != keys[2]["test"]
    with pytest.raises(UserError, match=f"^{root}: can't hold out 20 test images of 20"):
        open_splits(root, SourceOptions(num_test=20))["test"].listing()


def test_an_image_that_arrives_between_two_listings_moves_no_image_from_one_split_to_the_other(tmp_path, monkeypatch):
    root = Path(write_folder(tmp_path / "images", {f"{i}.png": png(i) for i in range(20)}))
    splits = open_splits(str(root), SourceOptions(num_test=5))
    whole = splits["train"].whole
    list_once = whole.listing

    def listing_of_a_growing_folder():
        found = list_once()
        (root / f"0-{len(found.items)}.png").write_bytes(png(0))  # the first of all names
        return found

    monkeypatch.setattr(whole, "listing", listing_of_a_growing_folder)
    keys = {split: {item.key for item in found.items} for split, found in list_splits(splits).items()}
    assert (len(keys["train"]), len(keys["test"]), keys["train"] & keys["test"]) == (15, 5, set())


@pytest.mark.parametrize("num_test", [1, 5, 8])
def test_each_class_keeps_an_image_to_train_on(tmp_path, num_test):
    root = write_folder(tmp_path / "images", {**{f"cat/{i}.png": png(i) for i in range(9)}, "rare/1.png": png(9)})
    whole = [item.key for item in open_splits(root)["train"].listing().items]
    order = [key for key in (whole[i] for i in permutation(10, 7, Purpose.SPLIT)) if key != "rare/1.png"]
    assert [whole[i] for i in permutation(10, 7, Purpose.SPLIT)].index("rare/1.png") < 5, "without the rule it would be a test image"
    listings = {split: s.listing() for split, s in open_splits(root, SourceOptions(num_test=num_test, split_seed=7)).items()}
    assert [item.key for item in listings["test"].items] == sorted(order[:num_test])
    assert [item.key for item in listings["train"].items] == sorted([*order[num_test:], "rare/1.png"])
    with pytest.raises(UserError, match="can't hold out 9 test images of 10 and keep one of each class to train on; lower num_test"):
        open_splits(root, SourceOptions(num_test=9))["test"].listing()


@pytest.mark.parametrize(
    ("keys", "rule", "labels", "names"),
    [
        (["b/1.png", "a/2.png", "b/3.png"], "auto", [1, 0, 1], ("a", "b")),
        (["b/1.png", "b/2.png"], "auto", [-1, -1], ()),
        (["b/1.png", "2.png"], "auto", [-1, -1], ()),
        (["b/1.png", "b/2.png"], "folders", [0, 0], ("b",)),
        (["x/cat_1.png", "x/bird_2.png", "cat_10_3.png"], "filename", [1, 0, 1], ("bird", "cat")),
        (["b/1.png", "a/2.png"], "none", [-1, -1], ()),
        (["all/data/b/1.png", "all/data/a/2.png"], "auto", [1, 0], ("a", "b")),
        (["all/b/1.png", "all/a/2.png"], "folders", [1, 0], ("a", "b")),
    ],
)
def test_labels_follow_the_rule(keys, rule, labels, names):
    assert assign_labels(keys, rule) == (labels, names)


def test_file_name_labels_of_cifar_are_the_released_codes_order():
    # Reference conventions 1.11: sorted names, which is not torchvision's order.
    names = "airplane automobile bird cat deer dog frog horse ship truck".replace("airplane", "plane").replace("automobile", "car").split()
    _, classes = assign_labels([f"{name}_00000.png" for name in names], "filename")
    assert classes == ("bird", "car", "cat", "deer", "dog", "frog", "horse", "plane", "ship", "truck")


@pytest.mark.parametrize(
    "table",
    [
        ("t.csv", "file,label\n1.png,cat\nx/2.png,ape\n"),
        ("t.csv", "1.png,cat\r\n2.png,ape\r\n"),
        ("t.json", json.dumps({"1.png": "cat", "x/2.png": "ape"})),
        ("t.json", json.dumps({"labels": [["1.png", "cat"], ["x/2.png", "ape"]]})),
    ],
)
def test_labels_come_from_a_table(tmp_path, table):
    (tmp_path / table[0]).write_text(table[1])
    assert assign_labels(["1.png", "x/2.png"], str(tmp_path / table[0])) == ([1, 0], ("ape", "cat"))


@pytest.mark.parametrize(("key", "name"), [("Ka\u0308se.png", "K\u00e4se.png"), ("K\u00e4se.png", "Ka\u0308se.png"), ("1.png", "./1.png")])
def test_a_name_in_a_table_is_found_however_a_program_writes_it(tmp_path, key, name):
    (tmp_path / "t.csv").write_text(f"{name},cat\n")
    assert assign_labels([key], str(tmp_path / "t.csv")) == ([0], ("cat",))


def test_numbers_in_a_table_are_the_labels(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["1.png", 2], ["2.png", 0]]}))
    assert assign_labels(["1.png", "2.png"], str(tmp_path / "dataset.json")) == ([2, 0], ("0", "1", "2"))


@pytest.mark.parametrize(
    ("keys", "rule", "message"),
    [
        (["a/1.png", "2.png"], "folders", r"2\.png is in no folder"),
        (["1.png"], "filename", r"1\.png has no '_'"),
        (["1.png"], "flickr", r"labels 'flickr' is not a rule; use 'auto'"),
    ],
)
def test_an_image_without_a_label_is_named(keys, rule, message):
    with pytest.raises(UserError, match=message):
        assign_labels(keys, rule)


def test_a_table_of_a_hundred_thousand_brackets_is_named(tmp_path):
    (tmp_path / "t.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"t\.json: is not a JSON object of file name to label"):
        assign_labels(["1.png"], str(tmp_path / "t.json"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_a_table_in_utf16_is_refused_with_the_encoding_to_save_it_in(tmp_path, encoding):
    (tmp_path / "t.csv").write_text("1.png,cat\n", encoding=encoding)
    with pytest.raises(UserError, match=r"t\.csv: is not text in UTF-8 .*; save it as UTF-8"):
        assign_labels(["1.png"], str(tmp_path / "t.csv"))


def test_a_table_with_holes_or_too_many_columns_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("1.png,cat\n")
    with pytest.raises(UserError, match=r"has no label for 1 of 2 images, the first of them 2\.png; it has names like 1\.png$"):
        assign_labels(["1.png", "2.png"], str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("1.png,cat,3\n")
    with pytest.raises(UserError, match="a row has 3 columns"):
        assign_labels(["1.png"], str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "1.png,0\n1.png,1\n", r"has two labels for 1\.png: '0' and '1'"),
        ("t.json", '{"1.png": 0, "1.png": 1}', r"has two labels for 1\.png"),
        ("t.json", '{"1.png": null}', r"the label of '1\.png' is null"),
        ("t.json", '{"1.png": true}', r"the label of '1\.png' is true"),
        ("t.json", '{"1.png": [1, 2]}', r"the label of '1\.png' is \[1, 2\]"),
        ("t.json", '[{"file": "1.png", "label": 3}, {"file": "2.png", "label": 4}]', "it should be a name or a number"),
        ("t.csv", "1.png,-1\n", "label -1 is not the number of a class"),
        ("t.csv", "1.png,1.0\n", r"label 1\.0 is not the number of a class"),
        ("t.csv", "1.png,99999999999\n", "label 99999999999 is not the number of a class"),
        ("t.csv", f"1.png,{'x' * 200_000}\n", "is not a CSV file"),
    ],
)
def test_a_table_without_a_class_for_an_image_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        assign_labels(["1.png"], str(tmp_path / name))


@pytest.mark.parametrize(("write", "name"), [(write_zip, "both.zip"), (write_tar, "both.tar")])
def test_an_archive_of_both_splits_is_not_taken_for_two_classes(tmp_path, write, name):
    files = {f"data/{split}/{key}": data for split in ("train", "test") for key, data in FILES.items()}
    with pytest.raises(UserError, match=r"contains training and test images \(test, train\)"):
        open_splits(write(tmp_path / name, files), SourceOptions(labels="none"))["train"].listing()


def test_a_test_image_of_a_class_that_training_lacks_is_refused():
    with pytest.raises(UserError, match="'emu', which no training image has"):
        assign_labels(["emu/1.png"], "folders", ("cat", "dog"))
    assert assign_labels(["dog/1.png"], "folders", ("cat", "dog")) == ([1], ("cat", "dog"))


def cifar_standin(root, monkeypatch):
    """A folder in CIFAR-10's true form, with torchvision's checksums replaced by its own."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    tables = {"train_list": [f"data_batch_{i}" for i in range(1, 6)], "test_list": ["test_batch"]}
    rng = np.random.default_rng(0)
    images = {}
    for table, names in tables.items():
        entries = []
        for name in names:
            rows = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
            images.setdefault(table, []).append(rows.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1))
            (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [0, 3, 9, 1]}))
            entries.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
        monkeypatch.setattr(torchvision.datasets.CIFAR10, table, entries)
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = pickle.dumps({"label_names": classes})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setitem(torchvision.datasets.CIFAR10.meta, "md5", hashlib.md5(meta).hexdigest())
    return {table: np.concatenate(parts) for table, parts in images.items()}


def test_cifar10_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    images = cifar_standin(tmp_path, monkeypatch)
    splits = open_splits(f"cifar10:{tmp_path}")
    train, names = contents(splits["train"])
    assert names[0] == "airplane"
    assert np.array_equal(np.stack([image for _, image in train.values()]), images["train_list"])
    assert [label for label, _ in train.values()] == [0, 3, 9, 1] * 5
    test, _ = contents(splits["test"])
    assert np.array_equal(np.stack([image for _, image in test.values()]), images["test_list"])


def test_cifar10_is_unpacked_where_only_its_archive_is_there(tmp_path, monkeypatch):
    images = cifar_standin(tmp_path, monkeypatch)
    archive = tmp_path / "packed" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    test, _ = contents(open_splits(f"cifar10:{archive.parent}")["test"])
    assert np.array_equal(np.stack([image for _, image in test.values()]), images["test_list"])


def test_cifar10_that_is_missing_or_altered_is_refused(tmp_path, monkeypatch):
    cifar_standin(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"CIFAR-10 is not there or not whole \(Dataset not found or corrupted\); put the folder"):
        open_splits(f"cifar10:{tmp_path}")["train"].listing()


def fashion_standin(raw, num_train=7, num_test=3):
    """The four idx files of Fashion-MNIST in small, in the folder `raw`."""
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem, rows in (("train", num_train), ("t10k", num_test)):
        images, labels = rng.integers(0, 256, (rows, 28, 28), dtype=np.uint8), np.arange(rows, dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes()
            (raw / f"{stem}-{kind}-ubyte").write_bytes(header + array.tobytes())


@pytest.mark.parametrize("is_packed", [False, True])
def test_fashion_mnist_is_read_as_torchvision_reads_it(tmp_path, is_packed):
    raw = tmp_path / "FashionMNIST" / "raw"
    fashion_standin(raw)
    theirs = torchvision.datasets.FashionMNIST(str(tmp_path), train=True)
    expected = theirs.data.numpy()[..., None]
    if is_packed:
        for path in list(raw.iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    splits = open_splits(f"fashion-mnist:{raw}")
    train, names = contents(splits["train"])
    assert names == tuple(theirs.classes)
    assert np.array_equal(np.stack([image for _, image in train.values()]), expected)
    assert [label for label, _ in train.values()] == theirs.targets.tolist()
    assert len(splits["test"].listing().items) == 3


def test_fashion_mnist_that_is_missing_truncated_or_mixed_up_is_refused(tmp_path):
    raw = tmp_path / "raw"
    fashion_standin(raw)

    def refused(change, message):
        kept = {path: path.read_bytes() for path in raw.iterdir()}
        change()
        with pytest.raises(UserError, match=message):
            open_splits(f"fashion-mnist:{raw}")["train"].listing()
        for path in raw.iterdir():
            path.unlink()
        for path, data in kept.items():
            path.write_bytes(data)

    images, labels = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    refused(images.unlink, "contains neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz")
    refused(lambda: images.write_bytes(images.read_bytes()[:-5]), "is truncated; it has 5,483 bytes instead of 5,488")
    refused(lambda: images.write_bytes(images.read_bytes() + b"more"), "is too long; it has 5,492 bytes instead of 5,488")
    negative = images.read_bytes()[:4] + b"\xff" * 4 + images.read_bytes()[8:16]
    refused(lambda: images.write_bytes(negative), "its header is damaged, as it has -1 items; fetch it again")
    refused(lambda: images.write_bytes(labels.read_bytes()), "is no idx file of bytes with items of shape")
    refused(lambda: labels.write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes()), "has 7 images and 3 labels")
    packed = gzip.compress(images.read_bytes())[:-20]
    refused(lambda: (images.unlink(), images.with_name(f"{images.name}.gz").write_bytes(packed)), "is damaged")


def test_debians_package_of_fashion_mnist_is_read_and_nothing_downloaded(tmp_path, monkeypatch):
    package = tmp_path / "package"
    fashion_standin(package)

    def download(*arguments, **options):
        raise AssertionError("the package is installed")

    monkeypatch.setattr("training.data.sources.published._DEBIAN_FASHION_MNIST", package)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", download)
    for split in ("train", "test"):
        found, names = contents(open_splits("fashion-mnist")[split])
        expected, expected_names = contents(open_splits(f"fashion-mnist:{package}")[split])
        assert names == expected_names
        assert [label for label, _ in found.values()] == [label for label, _ in expected.values()]
        assert all(np.array_equal(found[key][1], expected[key][1]) for key in expected)


def test_an_empty_split_of_fashion_mnist_is_named_by_its_folder(tmp_path):
    fashion_standin(tmp_path / "raw", num_train=0)
    source = open_splits(f"fashion-mnist:{tmp_path}/raw")["train"]
    with pytest.raises(UserError, match=rf"^{tmp_path}/raw: has no images; check the address$"):
        prepare(source, str(tmp_path / "data"), image_size=8)


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """A download of Fashion-MNIST as torchvision leaves it, which it can repeat without a network."""
    raw = tmp_path / "tmp" / f"iddpm-data-{os.getuid()}" / "fashion-mnist" / "FashionMNIST" / "raw"
    fashion_standin(raw)
    files = {f"{path.name}.gz": path.read_bytes() for path in raw.iterdir()}

    def download(url, download_root, filename, md5):
        (Path(download_root) / filename.removesuffix(".gz")).write_bytes(files[filename])

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", download)
    monkeypatch.setattr("training.data.sources.published._DEBIAN_FASHION_MNIST", tmp_path / "none")
    return raw


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("left", [0, 10, -1])
def test_a_download_whose_unpacking_was_interrupted_is_removed_and_made_again(downloaded, name, left):
    test = open_splits("fashion-mnist")["test"]
    whole = test.listing().digest()
    (downloaded / name).write_bytes((downloaded / name).read_bytes()[:left])
    with pytest.raises(UserError, match=f"copy in {downloaded.parent.parent} was damaged and is removed; run this again"):
        test.listing()
    assert test.listing().digest() == whole


def test_a_download_that_was_interrupted_before_its_end_goes_on(downloaded):
    train = open_splits("fashion-mnist")["train"]
    whole = train.listing().digest()
    (downloaded / "t10k-labels-idx1-ubyte").unlink()
    (downloaded / "train-images-idx3-ubyte").write_bytes(b"")
    assert train.listing().digest() == whole


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_labelled_imagenet64_is_read_from_its_npz_files(tmp_path, save, capsys):
    rng = np.random.default_rng(1)
    names = ("train_data_batch_1", "train_data_batch_10", "train_data_batch_2", "val_data")
    data = {name: rng.integers(0, 256, (3, 12288), dtype=np.uint8) for name in names}
    for number, (name, rows) in enumerate(data.items()):
        save(tmp_path / f"{name}.npz", data=rows, labels=np.array([1, 1000, number + 2]), mean=rows.mean(0))
    splits = open_splits(f"imagenet64-labelled:{tmp_path}")
    found, names = contents(splits["train"])
    assert len(names) == 1000
    assert list(found)[::3] == ["train_data_batch_1/000000", "train_data_batch_2/000000", "train_data_batch_10/000000"]
    label, image = found["train_data_batch_10/000002"]
    assert label == 2
    assert np.array_equal(image, data["train_data_batch_10"][2].reshape(3, 64, 64).transpose(1, 2, 0))
    assert len(splits["test"].listing().items) == 3
    assert capsys.readouterr().out.count("contains 3 of the release's 10 files train_data_batch_*.npz") == 1


def test_labels_that_are_not_chrabaszczs_are_refused(tmp_path):
    np.savez(tmp_path / "val_data.npz", data=np.zeros((2, 12288), np.uint8), labels=np.array([0, 999]))
    with pytest.raises(UserError, match=r"labels run from 0 to 999; they should be in 1\.\.1000"):
        open_splits(f"imagenet64-labelled:{tmp_path}")["test"].listing()
    np.savez(tmp_path / "val_data.npz", data=np.zeros((2, 3072), np.uint8), labels=np.array([1, 2]))
    with pytest.raises(UserError, match=r"it should be uint8 \[rows, 12288\]"):
        open_splits(f"imagenet64-labelled:{tmp_path}")["test"].listing()


@pytest.mark.parametrize(
    "labels", [np.array([[1], [2]]), np.array(1), np.array([1.5, 2.0]), np.array([np.nan, 2]), np.array(["1", "2"]), np.array([True, True])]
)
def test_labels_that_are_no_row_of_integers_are_refused(tmp_path, labels):
    np.savez(tmp_path / "val_data.npz", data=np.zeros((2, 12288), np.uint8), labels=labels)
    with pytest.raises(UserError, match=r"val_data.npz: labels are .*; they should be integers \[rows\]"):
        open_splits(f"imagenet64-labelled:{tmp_path}")["test"].listing()


def test_an_npz_with_pickled_objects_is_not_opened(tmp_path):
    np.savez(tmp_path / "val_data.npz", data=np.array([{}], dtype=object), labels=np.array([1]))
    with pytest.raises(UserError, match="pickled objects"):
        open_splits(f"imagenet64-labelled:{tmp_path}")["test"].listing()


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_the_official_imagenet64_is_read_without_labels(tmp_path, form):
    for stem, seeds in (("train_64x64", (1, 2, 3)), ("valid_64x64", (4,))):
        files = {f"{stem}/{seed:07d}.png": png(seed, 64) for seed in seeds}
        if form == "tar":
            write_tar(tmp_path / f"{stem}.tar", files)
        else:
            write_folder(tmp_path, files)
    splits = open_splits(f"imagenet64-official:{tmp_path}")
    found, names = contents(splits["train"])
    assert names == ()
    assert [label for label, _ in found.values()] == [-1, -1, -1]
    assert np.array_equal(list(found.values())[1][1], pixels(2, 64))
    assert splits["train"].name == "imagenet64-official"


def test_the_two_releases_of_imagenet64_are_never_taken_for_each_other(tmp_path):
    np.savez(tmp_path / "val_data.npz", data=np.zeros((1, 12288), np.uint8), labels=np.array([1]))
    with pytest.raises(UserError, match="that is the source 'imagenet64-labelled'"):
        open_splits(f"imagenet64-official:{tmp_path}")
    (tmp_path / "val_data.npz").unlink()
    write_folder(tmp_path, {"train_64x64/1.png": png(1, 64)})
    with pytest.raises(UserError, match="not the labelled ImageNet-64"):
        open_splits(f"imagenet64-labelled:{tmp_path}")["train"].listing()


def test_ilsvrc2012_is_read_from_its_tar_of_tars_and_a_table(tmp_path):
    inner = {wnid: tar_bytes({f"{wnid}_{i}.JPEG": png(i + 10 * k) for i in range(3)}) for k, wnid in enumerate(("n02", "n01"))}
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", {f"{wnid}.tar": data for wnid, data in inner.items()})
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", {"ILSVRC2012_val_00000001.JPEG": png(50)})
    (tmp_path / "val.csv").write_text("ILSVRC2012_val_00000001.JPEG,n02\n")
    splits = open_splits(f"imagenet:{tmp_path}")
    found, names = contents(splits["train"])
    assert names == ("n01", "n02")
    label, image = found["n02/n02_1.JPEG"]
    assert label == 1
    assert np.array_equal(image, pixels(1))
    assert np.array_equal(found["n01/n01_2.JPEG"][1], pixels(12))
    labelled = open_splits(f"imagenet:{tmp_path}", SourceOptions(labels=str(tmp_path / "val.csv")))
    assert contents(labelled["train"])[1] == names
    test = labelled["test"]
    test.class_names = names
    assert next(iter(contents(test)[0].values()))[0] == 1


def test_ilsvrc2012_without_labels_has_none_in_either_split_and_needs_no_table(tmp_path):
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", {f"{wnid}.tar": tar_bytes({f"{wnid}_1.JPEG": png(1)}) for wnid in ("n01", "n02")})
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", {"ILSVRC2012_val_00000001.JPEG": png(50)})
    listings = list_splits(open_splits(f"imagenet:{tmp_path}", SourceOptions(labels="none")))
    assert [item.key for item in listings["train"].items] == ["n01/n01_1.JPEG", "n02/n02_1.JPEG"]
    assert {(item.label, *found.class_names) for found in listings.values() for item in found.items} == {(-1,)}


@pytest.mark.parametrize("prefix", ["", "./", "ILSVRC/"])
def test_the_name_of_an_inner_tar_is_a_folder(tmp_path, prefix):
    files = {f"{prefix}{name}.tar": tar_bytes({"1.png": png(1)}) for name in ("n01", "n02")}
    apple_double = b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(200)
    uri = write_tar(tmp_path / "i.tar", {f"{prefix}._n01.tar": apple_double, **files})
    listing = file_source(uri, name="x", split="train").listing()
    # A folder of all of them is left out, as in earlier releases, whose data sets are found by their keys.
    assert [item.key for item in listing.items] == ["n01/1.png", "n02/1.png"]
    assert (listing.class_names, listing.others) == (("n01", "n02"), ())


def test_inner_tars_of_both_splits_are_not_taken_for_one(tmp_path):
    files = {f"{split}/{name}.tar": tar_bytes({f"{split}.png": png(1)}) for split in ("train", "val") for name in ("cat", "dog")}
    with pytest.raises(UserError, match=r"contains training and test images \(train, val\)"):
        open_splits(write_tar(tmp_path / "all.tar", files))["train"].listing()


@pytest.mark.parametrize("form", ["zip", "tar", "pax"])
def test_names_in_an_archive_are_the_same_whatever_the_locale_of_the_machine(tmp_path, form, monkeypatch):
    path = tmp_path / ("i.zip" if form == "zip" else "i.tar")
    keys = ["Käse/a.png", "猫/b.png"]
    if form == "zip":
        write_zip(path, {key: png(1) for key in keys})
    else:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if form == "pax" else tarfile.GNU_FORMAT) as archive:
            for key in keys:
                archive.addfile(tarfile.TarInfo(key))
    # What Python does in a locale of ISO-8859-1.
    monkeypatch.setattr(tarfile.TarFile, "encoding", "iso-8859-1")
    monkeypatch.setattr(os, "fsencode", lambda name: str(name).encode("iso-8859-1", "surrogateescape"))
    assert [item.key for item in file_source(str(path), name="x", split="train").listing().items] == keys


def write_lsun(root, category="bedroom", **seeds):
    for split, numbers in seeds.items():
        with (
            lmdb.open(str(root / f"{category}_{split}_lmdb"), map_size=1 << 20) as environment,
            environment.begin(write=True) as transaction,
        ):
            for seed in numbers:
                transaction.put(hashlib.sha1(bytes([seed])).hexdigest().encode(), png(seed))


@pytest.mark.parametrize(
    ("category", "address"),
    [("church_outdoor", "lsun-church_outdoor"), ("church_outdoor", "lsun-church-outdoor"), ("my-cats", "lsun-my-cats")],
)
def test_a_category_of_lsun_with_an_underscore_has_a_name_that_an_experiment_can_have(tmp_path, category, address):
    write_lsun(tmp_path, category, train=range(3), val=range(3, 5))
    splits = open_splits(f"{address}:{tmp_path}")
    assert [len(source.listing().items) for source in splits.values()] == [3, 2]
    name = address.replace("_", "-")
    assert {DataConfig(name=source.name, image_size=8).name for source in splits.values()} == {name}


def test_test_images_are_held_out_of_lsun_where_its_validation_split_is_not_there(tmp_path):
    write_lsun(tmp_path, train=range(5))
    assert set(open_splits(f"lsun-bedroom:{tmp_path}")) == {"train"}
    splits = open_splits(f"lsun-bedroom:{tmp_path}", SourceOptions(num_test=2))
    keys = {split: {item.key for item in source.listing().items} for split, source in splits.items()}
    assert (len(keys["train"]), len(keys["test"]), len(keys["train"] | keys["test"])) == (3, 2, 5)
    write_lsun(tmp_path, val=range(5, 7))
    with pytest.raises(UserError, match="lsun-bedroom has its own test images"):
        open_splits(f"lsun-bedroom:{tmp_path}", SourceOptions(num_test=2))


@pytest.mark.parametrize("form", ["tar", "npz", "lmdb"])
def test_a_file_of_many_images_is_another_where_it_was_written_and_not_where_its_disk_has_another_number(tmp_path, form):
    if form == "tar":
        file = Path(write_tar(tmp_path / "i.tar", FILES))
        source = open_splits(str(file))["train"]
    elif form == "npz":
        file = tmp_path / "val_data.npz"
        np.savez(file, data=np.zeros((2, 12288), np.uint8), labels=np.array([1, 2]))
        source = open_splits(f"imagenet64-labelled:{tmp_path}")["test"]
    else:
        write_lsun(tmp_path, train=range(5))
        file = tmp_path / "bedroom_train_lmdb" / "data.mdb"
        source = open_splits(f"lsun-bedroom:{tmp_path}")["train"]
    digest = items_digest(source.listing().items)
    shutil.copy2(file, tmp_path / "copy")
    (tmp_path / "copy").replace(file)  # the same content and times in another inode
    items = source.listing().items
    assert items_digest(items) == digest
    earlier_release = items_digest(dataclasses.replace(item, version=storage.version(str(file))) for item in items)
    os.utime(file, ns=(1, 1))
    assert items_digest(source.listing().items) != digest
    assert [is_digest_of(digest, items), is_digest_of(earlier_release, items)] == [True, True]
    assert not is_digest_of(earlier_release, source.listing().items)


def test_lsun_is_read_from_its_lmdb(tmp_path):
    write_lsun(tmp_path, train=range(5), val=range(5, 7))
    splits = open_splits(f"lsun-bedroom:{tmp_path}")
    assert splits["test"].address == f"{tmp_path}/bedroom_val_lmdb", "messages name the folder"
    found, names = contents(splits["train"])
    assert names == ()
    assert len(found) == 5
    assert np.array_equal(found[hashlib.sha1(bytes([3])).hexdigest()][1], pixels(3))
    assert len(splits["test"].listing().items) == 2


@pytest.mark.parametrize("part", [0.3, 0.99])
def test_a_truncated_lmdb_is_refused_and_does_not_kill_the_process(tmp_path, part):
    folder = tmp_path / "bedroom_train_lmdb"
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for seed in range(60):
            transaction.put(b"%040d" % seed, png(seed, 64))
    data = (folder / "data.mdb").read_bytes()
    (folder / "data.mdb").write_bytes(data[: int(part * len(data))])
    script = "import sys; from training.data.sources.catalog import open_splits; open_splits(sys.argv[1])['train'].listing()"
    process = subprocess.run([sys.executable, "-c", script, f"lsun-bedroom:{tmp_path}"], capture_output=True, text=True, check=False)
    told = f"{folder}: data.mdb is truncated; it has {int(part * len(data)):,} bytes instead of {len(data):,}. Fetch it again"
    assert process.stderr.splitlines()[-1:] == [f"training.config.errors.UserError: {told}"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar", r"there is no source 'cifar'; did you mean 'cifar10'\? The sources are: digits"),
        ("imagenet", "imagenet needs the folder"),
        ("cifar10:s3://bucket/cifar", "cifar10 is read from a folder on this machine, not from s3://bucket/cifar"),
        ("lsun-church:/nowhere", "/nowhere: there is no such folder"),
        ("/nowhere/images", "there is no such file or folder"),
        ("/nowhere/images.tar", "there is no such file"),
    ],
)
def test_a_missing_source_is_refused_by_name(spec, message):
    with pytest.raises(UserError, match=message):
        open_splits(spec)


def test_an_empty_folder_and_broken_archives_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no image"):
        open_splits(str(tmp_path / "empty"))["train"].listing()
    for name in ("x.zip", "x.tar", "x.tar.gz"):
        (tmp_path / name).write_bytes(b"this is not an archive" * 100)
        with pytest.raises(UserError, match=r"is not a whole (zip|tar|compressed) file"):
            open_splits(str(tmp_path / name))["train"].listing()
    whole = tar_bytes({"1.png": png(1, 64), "2.png": png(2, 64)})
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UserError, match="is not a whole tar file"):
        open_splits(str(tmp_path / "cut.tar"))["train"].listing()


@pytest.mark.parametrize("damage", ["cut between two members", "flipped byte in a header", "inner tar cut"])
def test_a_tar_that_ends_early_is_not_taken_for_a_smaller_one(tmp_path, damage):
    whole = tar_bytes({"1.png": png(1), "2.png": png(2), "3.png": png(3)})
    second = whole.index(b"2.png")
    flipped = whole[:second] + b"\x00" + whole[second + 1 :]
    cut = whole[:second]
    data = {"cut between two members": cut, "flipped byte in a header": flipped, "inner tar cut": tar_bytes({"a.tar": cut, "b.tar": whole})}
    (tmp_path / "x.tar").write_bytes(data[damage])
    with pytest.raises(UserError, match=r"is not a whole tar file \(damaged or cut off at byte 1,024\)"):
        open_splits(str(tmp_path / "x.tar"))["train"].listing()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("offset", [0, 10, 100])
def test_a_damaged_member_of_a_zip_is_an_unreadable_image(tmp_path, method, offset):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("1.png", png(1, 32))
        archive.writestr("2.png", png(2, 32))
    data = bytearray((tmp_path / "x.zip").read_bytes())
    start = data.index(b"1.png") + len("1.png") + offset
    data[start : start + 40] = bytes(byte ^ 0x5A for byte in data[start : start + 40])
    (tmp_path / "x.zip").write_bytes(data)
    source = open_splits(str(tmp_path / "x.zip"))["train"]
    (_, first), (_, second) = read_items(source, source.listing().items)
    assert isinstance(first, ImageError)
    assert second == png(2, 32)


def test_a_zip_by_a_method_or_of_a_version_that_python_lacks_is_refused(tmp_path):
    whole = Path(write_zip(tmp_path / "x.zip", {"1.png": png(1)})).read_bytes()
    central = whole.index(b"PK\1\2")
    deflate64 = whole[:8] + b"\x09" + whole[9 : central + 10] + b"\x09" + whole[central + 11 :]
    (tmp_path / "x.zip").write_bytes(deflate64)
    source = open_splits(str(tmp_path / "x.zip"))["train"]
    ((_, error),) = read_items(source, source.listing().items)
    assert str(error) == "is compressed by a method that Python can't undo; unpack the archive first"
    (tmp_path / "x.zip").write_bytes(whole[: central + 6] + b"\xff" + whole[central + 7 :])
    with pytest.raises(UserError, match="is not a whole zip file"):
        open_splits(str(tmp_path / "x.zip"))["train"].listing()


@pytest.mark.parametrize(
    ("name", "offset", "value"), [("é.png", 46, b"\xff"), ("a.png", 46, b"\0")], ids=["name that is not UTF-8", "empty name"]
)
def test_a_zip_with_a_damaged_directory_of_names_is_refused_by_name(tmp_path, name, offset, value):
    data = bytearray(Path(write_zip(tmp_path / "x.zip", {name: png(1), "b.png": png(2)})).read_bytes())
    start = data.index(b"PK\1\2") + offset
    data[start : start + len(value)] = value
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"x.zip: is not a whole zip file \(.*\); copy it again"):
        open_splits(str(tmp_path / "x.zip"))["train"].listing()


@pytest.mark.parametrize(("kind", "name"), [("tar", "x.tar.gz"), ("tar", "x.zip"), ("gz", "x.tar"), ("zip", "x.tar"), ("zip", "x.tgz")])
def test_an_archive_with_the_ending_of_another_kind_is_refused_with_the_advice_to_rename_it(tmp_path, kind, name):
    data = {"tar": tar_bytes(FILES), "gz": gzip.compress(tar_bytes(FILES)), "zip": Path(write_zip(tmp_path / "i.zip", FILES)).read_bytes()}
    (tmp_path / name).write_bytes(data[kind])
    with pytest.raises(UserError, match=rf"{name}: is not a whole .* copy it again, or rename it if it is an archive of another kind$"):
        open_splits(str(tmp_path / name))["train"].listing()


def test_compressed_files_with_a_flipped_byte_are_refused_by_name(tmp_path):
    def flipped(data):
        middle = len(data) // 2
        return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 20]) + data[middle + 20 :]

    (tmp_path / "x.tar.gz").write_bytes(flipped(gzip.compress(tar_bytes(FILES))))
    with pytest.raises(UserError, match=r"x.tar.gz: is not a whole compressed file"):
        open_splits(str(tmp_path / "x.tar.gz"))["train"].listing()
    idx = (
        (0x803).to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in (9, 28, 28)) + np.tile(pixels(0), 40).tobytes()[: 9 * 784]
    )
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(flipped(gzip.compress(idx)))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz: is damaged"):
        open_splits(f"fashion-mnist:{tmp_path}")["train"].listing()
    np.savez_compressed(tmp_path / "train_data_batch_1.npz", data=np.zeros((9, 12288), np.uint8), labels=pixels(0).ravel())
    path = tmp_path / "train_data_batch_1.npz"
    path.write_bytes(flipped(path.read_bytes()))
    with pytest.raises(UserError, match=r"train_data_batch_1.npz: is not a whole .npz file"):
        open_splits(f"imagenet64-labelled:{tmp_path}")["train"].listing()


def test_an_address_of_a_folder_is_the_folder(tmp_path):
    root = write_folder(tmp_path / "with space", {f"{split}/{name}": data for split in ("train", "val") for name, data in FILES.items()})
    splits = open_splits(f"file://{root}")
    assert set(splits) == {"train", "test"}
    assert contents(splits["train"])[1] == ("cat", "dog")


def test_a_folder_does_not_take_the_place_of_the_published_data_set_whose_name_it_has(tmp_path, monkeypatch, capfd):
    write_folder(tmp_path / "digits", FILES)
    write_folder(tmp_path / "photos", FILES)
    monkeypatch.chdir(tmp_path)
    assert open_splits("digits")["train"].listing().digest() == digits("train").listing().digest()
    assert "digits is the published data set; write ./digits for the folder" in capfd.readouterr().out
    for address in ("./digits", "photos"):
        assert contents(open_splits(address)["train"])[1] == ("cat", "dog")


def test_a_folder_with_a_colon_in_its_name_is_no_source(tmp_path, monkeypatch):
    write_folder(tmp_path / "shoot 12:30", FILES)
    monkeypatch.chdir(tmp_path)
    assert contents(open_splits("shoot 12:30")["train"])[1] == ("cat", "dog")


def test_options_that_a_source_can_not_take_are_refused(tmp_path):
    with pytest.raises(UserError, match="labels of digits are its own"):
        open_splits("digits", SourceOptions(labels="none"))
    with pytest.raises(UserError, match="digits has its own test images"):
        open_splits("digits", SourceOptions(num_test=5))
    for seed in (-1, 2**64):
        with pytest.raises(UserError, match=rf"^split_seed must be 0 to 18,446,744,073,709,551,615, got {seed:,}$"):
            SourceOptions(split_seed=seed)


def test_the_listing_of_a_changed_source_has_another_digest(tmp_path):
    root = tmp_path / "images"
    before = file_source(write_folder(root, FILES), name="x", split="train").listing().digest()
    (root / "cat" / "1.png").write_bytes(png(1) + b"longer")
    after = file_source(str(root), name="x", split="train").listing().digest()
    assert before != after
    assert digits("train").listing().digest() != digits("test").listing().digest()
