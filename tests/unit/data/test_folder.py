"""A folder of images is described before anybody writes an experiment for it."""

import contextlib
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from training.config.errors import UserError
from training.data.inspection.folder import inspect_folder


def save(path, width, height, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height)).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "photos" / "cats" / "1.png", 40, 30)
    save(tmp_path / "photos" / "cats" / "2.jpg", 64, 100)
    save(tmp_path / "photos" / "dogs" / "3.png", 50, 50, "RGBA")
    save(tmp_path / "photos" / "dogs" / "4.png", 200, 70, "L")
    return tmp_path / "photos"


def test_sizes_channels_transparency_and_classes_are_counted(folder):
    found = inspect_folder(str(folder))
    assert (found.num_images, found.num_inspected, found.num_test_images, found.unreadable) == (4, 4, 0, ())
    assert (found.short_sides, found.smallest, found.max_side) == ((30, 50, 64, 70), "cats/1.png", 200)
    assert (found.num_grey, found.num_transparent, found.image_channels) == (1, 1, 3)
    assert found.class_counts == {"cats": 2, "dogs": 2}


def test_a_folder_of_grey_images_without_subfolders_has_one_channel_and_no_classes(tmp_path):
    for number, mode in enumerate(["L", "1", "LA", "I;16"]):
        save(tmp_path / f"{number}.png", 20, 20, mode)
    found = inspect_folder(str(tmp_path))
    assert (found.image_channels, found.num_transparent, found.class_counts) == (1, 1, {})


def test_a_transparent_palette_entry_counts_as_transparency(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", 20, 20, "P", transparency=0)
    found = inspect_folder(str(tmp_path))
    assert (found.num_transparent, found.image_channels) == (3, 3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["1.png"], r"has 1 training image\(s\), and training takes 3 or more: 2 to train on and 1 to hold out for bits/dim; add images"),
        (["1.png", "2.png"], r"has 2 training image\(s\), and training takes 3 or more"),
        (["a/1.png", "b/2.png", "c/3.png"], r"takes 4 or more: 3 to train on and 1 to hold out"),
        (["train/1.png", "test/2.png"], r"has 1 training image\(s\), and training takes 2 or more: 2 to train on; add images"),
        (["1.png", "2.png", "3.png"], ""),
        (["a/1.png", "b/2.png", "c/3.png", "c/4.png"], ""),
        (["train/1.png", "train/2.png", "test/3.png"], ""),
    ],
)
def test_fewer_images_than_a_training_takes_are_refused_with_their_number(tmp_path, files, message):
    for file in files:
        save(tmp_path / file, 20, 20)
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        inspect_folder(str(tmp_path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_two_images_of_one_name_is_refused(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in ("a.png", "b.png", "c.png", "a.png"):
            archive.write(folder / "cats" / "1.png", name)
    with pytest.raises(UserError, match=r"photos\.zip: lists 'a\.png' 2 times; remove the duplicates"):
        inspect_folder(str(tmp_path / "photos.zip"))


def test_files_that_are_no_images_are_listed_with_their_reasons(folder):
    (folder / "dogs" / "5.png").write_bytes(b"dear diary")
    (folder / "dogs" / "6.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image by its name, so not looked at")
    found = inspect_folder(str(folder))
    assert found.num_images == 6
    assert {error.source: error.reason.partition(" of")[0] for error in found.unreadable} == {
        "dogs/5.png": "is not an image",
        "dogs/6.jpg": "is empty (0 bytes)",
    }
    assert found.image_channels == 3


def test_the_test_images_next_to_the_training_images_are_counted_apart(folder, tmp_path):
    (tmp_path / "data").mkdir()
    folder.rename(tmp_path / "data" / "train")
    save(tmp_path / "data" / "val" / "cats" / "9.png", 20, 20)
    found = inspect_folder(str(tmp_path / "data"))
    assert (found.num_images, found.num_test_images) == (4, 1)


def test_a_folder_with_the_name_of_a_published_data_set_is_the_folder(folder, tmp_path, monkeypatch):
    folder.rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    for address in ("digits", "./digits", (tmp_path / "digits").as_uri()):
        assert inspect_folder(address).class_counts == {"cats": 2, "dogs": 2}


def test_an_image_beside_the_classes_is_told(folder):
    assert inspect_folder(str(folder)).without_labels == ""
    save(folder / "logo.png", 40, 40)
    found = inspect_folder(str(folder))
    assert found.class_counts == {}
    assert found.without_labels.startswith("logo.png is beside the folders and in none of them")


def test_test_images_without_classes_next_to_training_images_with_them_are_refused(folder, tmp_path):
    (tmp_path / "data").mkdir()
    folder.rename(tmp_path / "data" / "train")
    save(tmp_path / "data" / "test" / "9.png", 20, 20)
    with pytest.raises(UserError, match=r"data/test: 1 of 1 test images are in no class folder, like 9\.png, .* put each into a folder"):
        inspect_folder(str(tmp_path / "data"))


def test_a_missing_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere: there is no such folder; name the one"):
        inspect_folder(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="the address of the images is empty; name the folder"):
        inspect_folder("")  # as of a variable of the shell that is not set: it isn't the current directory
    with pytest.raises(UserError, match="contains no image"):
        inspect_folder(str(tmp_path))
    (tmp_path / "1.png").write_bytes(b"text")
    with pytest.raises(UserError, match=r"none of 1 images can be read; the first, 1\.png, is not an image"):
        inspect_folder(str(tmp_path))


def test_a_part_of_very_many_images_is_read_and_all_are_counted(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(buffer, "PNG")
    for number in range(50):
        (tmp_path / f"{number}.png").write_bytes(buffer.getvalue())
    found = inspect_folder(str(tmp_path), max_inspected=20)
    assert (found.num_images, found.num_inspected) == (50, 17)
