import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from training.config.errors import UserError
from training.config.experiment import DataConfig
from training.config.presets import preset
from training.data.format.manifest import read_manifest
from training.data.loading.loader import Loader
from training.data.loading.row_groups import iterate
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits
from training.data.splits import prepare_splits, require_fit

DIGITS = preset("digits-hybrid-cosine").data


@pytest.fixture(scope="module")
def data_uri(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("digits"))
    prepare_splits(DIGITS, uri)
    return uri


@pytest.fixture
def loader(data_uri, tmp_path):
    return Loader(f"{data_uri}/train", seed=5, global_batch_size=64, cache_dir=tmp_path)


def everything(uri, tmp_path):
    parts = list(iterate(uri, 100))
    return torch.cat([images for _, images, _ in parts]), torch.cat([labels for *_, labels in parts])


def test_the_two_splits_together_are_scikit_learns_digits(data_uri, tmp_path):
    train, test = (everything(f"{data_uri}/{split}", tmp_path) for split in ("train", "test"))
    assert (len(train[0]), len(test[0])) == (1497, 300)
    ours = sorted(
        bytes(image.numpy()) + bytes([label]) for images, labels in (train, test) for image, label in zip(images, labels, strict=True)
    )
    raw = load_digits()
    theirs = sorted(
        bytes([round(level * 255 / 16) for level in image.ravel().astype(int)]) + bytes([label])
        for image, label in zip(raw.images, raw.target, strict=True)
    )
    assert ours == theirs


def test_the_digest_of_the_digits_never_changes(data_uri):
    assert read_manifest(f"{data_uri}/train").content_digest == "022698c8fe4c935510dfa85b6e99ac8f3f294b4535885a8983052f83543ce1f5"


def test_preparing_again_finds_the_data_set_and_changes_nothing(data_uri):
    assert prepare_splits(DIGITS, data_uri)["train"] == read_manifest(f"{data_uri}/train")


def test_another_seed_in_the_same_place_is_refused_and_named(data_uri):
    with pytest.raises(UserError, match="shuffle_seed 0 there, 1 here"):
        prepare(digits("train"), f"{data_uri}/train", image_size=8, options=Options(resize="none", seed=1))


def test_a_data_set_that_is_not_the_experiments_is_refused(data_uri):
    with pytest.raises(UserError, match=r"data\.num_classes is 0, there 10; use .* override data\.num_classes=10"):
        require_fit(read_manifest(f"{data_uri}/train"), DataConfig(name="digits", image_size=8, image_channels=1))


def test_an_epoch_shows_every_image_once_and_the_next_one_in_another_order(loader, data_uri, tmp_path):
    stream = torch.cat([loader.batch(step).images for step in range(47)])
    rows = sorted(bytes(image.numpy()) for image in everything(f"{data_uri}/train", tmp_path)[0])
    first, second = stream[:1497], stream[1497 : 2 * 1497]
    assert sorted(bytes(image.numpy()) for image in first) == rows
    assert sorted(bytes(image.numpy()) for image in second) == rows
    assert not torch.equal(first, second)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_the_global_batch_is_the_same_for_any_number_of_workers(loader, world_size):
    for step in (0, 23, 46):
        bounds = [64 * rank // world_size for rank in range(world_size + 1)]
        parts = [loader.batch(step, start, stop) for start, stop in itertools.pairwise(bounds)]
        whole = loader.batch(step)
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert torch.equal(whole.indices, torch.arange(step * 64, step * 64 + 64))


def test_a_batch_needs_no_history(loader, data_uri, tmp_path):
    fresh = Loader(f"{data_uri}/train", seed=5, global_batch_size=64, cache_dir=tmp_path)
    for step in range(30):
        loader.batch(step)
    assert torch.equal(loader.batch(30).images, fresh.batch(30).images)


def test_batches_from_the_prefetching_thread_are_the_same(loader):
    for step, batch in enumerate(loader.batches(20, 10, 8, 40), start=20):
        direct = loader.batch(step, 8, 40)
        assert torch.equal(batch.images, direct.images)
        assert torch.equal(batch.indices, direct.indices)


def test_a_data_set_in_device_memory_gives_the_same_batches(loader, data_uri, tmp_path):
    resident = Loader(f"{data_uri}/train", seed=5, global_batch_size=64, cache_dir=tmp_path, device="cpu")
    assert torch.equal(resident.batch(40).images, loader.batch(40).images)
    assert torch.equal(resident.batch(40).labels, loader.batch(40).labels)


def test_the_order_depends_on_the_seed(loader, data_uri, tmp_path):
    other = Loader(f"{data_uri}/train", seed=6, global_batch_size=64, cache_dir=tmp_path)
    assert not torch.equal(other.batch(0).images, loader.batch(0).images)


def test_images_and_labels_stay_together(loader, data_uri, tmp_path):
    images, labels = everything(f"{data_uri}/train", tmp_path)
    by_pixels = {bytes(image.numpy()): int(label) for image, label in zip(images, labels, strict=True)}
    batch = loader.batch(7)
    assert [by_pixels[bytes(image.numpy())] for image in batch.images] == batch.labels.tolist()


def test_rows_are_shuffled_over_the_whole_data_set(data_uri, tmp_path):
    _, labels = everything(f"{data_uri}/train", tmp_path)
    # scikit-learn lists the digits 0 1 2 ... 9 0 1 2 ...; shuffled, neighbours follow each other a tenth of the time.
    follows = np.mean(labels[1:].numpy() == (labels[:-1].numpy() + 1) % 10)
    assert follows < 0.2


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_another_size_than_the_digits_have_is_refused_without_advice_for_files(tmp_path, on_error):
    message = r"^digits: all/\d+ is 8x8, but resize 'none' needs exactly 16x16; take the image's own size, or resize 'area'$"
    with pytest.raises(UserError, match=message):
        prepare(digits("test"), str(tmp_path), image_size=16, options=Options(resize="none", on_error=on_error))


def test_a_missing_data_set_is_refused_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match="iddpm preprocess"):
        Loader(str(tmp_path / "nothing"), seed=0, global_batch_size=1)


def test_offsets_outside_of_the_global_batch_are_refused(loader):
    with pytest.raises(UserError, match="global batch of 64"):
        loader.batch(0, 0, 65)
