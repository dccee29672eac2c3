import contextlib
import errno
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from training import storage
from training.config.errors import UserError
from training.data.format import shards
from training.data.format.order import BlockOrder, GlobalOrder, Purpose, permutation
from training.data.loading import loader as loading
from training.data.loading import row_groups, streaming
from training.data.loading.loader import Loader
from training.data.loading.row_groups import RowReader, iterate
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits
from training.storage import StorageError


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch):
    """The digits are too few for row groups of 1,024: cut them finer, so that there are many."""
    for module in (shards, row_groups):
        monkeypatch.setattr(module, "ROW_GROUP_ROWS", 150)
    monkeypatch.setattr("training.data.loading.loader.GROUPS_PER_BLOCK", 3)
    monkeypatch.setattr(streaming, "GROUPS_PER_BLOCK", 3)


@pytest.fixture
def data_uri(tmp_path):
    # Three shards of three row groups of 150, and one of 147.
    options = Options(resize="none", image_channels=3, rows_per_shard=450)
    prepare(digits("train"), str(tmp_path / "data"), image_size=8, options=options)
    return str(tmp_path / "data")


BUDGET = 9 * (150 * (192 + 8) + 256)
"""Nine row groups with their labels and headers, of the ten that there are."""


def stream(uri, cache, budget=BUDGET, seed=5):
    return Loader(uri, seed=seed, global_batch_size=64, cache_dir=cache, disk_budget_bytes=budget)


def sorted_rows(images):
    return sorted(bytes(image.numpy()) for image in images)


def test_an_epoch_streams_every_image_once(data_uri, tmp_path):
    loader = stream(data_uri, tmp_path / "cache")
    everything = torch.cat([images for _, images, _ in iterate(data_uri, 500)])
    seen = torch.cat([loader.batch(step).images for step in range(47)])
    assert sorted_rows(seen[:1497]) == sorted_rows(everything)
    assert sorted_rows(seen[1497 : 2 * 1497]) == sorted_rows(everything)
    assert not torch.equal(seen[:1497], seen[1497 : 2 * 1497])


def test_the_disk_never_contains_more_than_the_budget(data_uri, tmp_path):
    loader = stream(data_uri, tmp_path / "cache")
    for step in range(60):
        loader.batch(step)
        kept = 0
        for path in (tmp_path / "cache").rglob("*.npy"):
            with contextlib.suppress(FileNotFoundError):  # the thread that reads ahead makes room meanwhile
                kept += path.stat().st_size
        assert kept <= BUDGET


def test_a_streamed_batch_needs_no_history_and_no_number_of_workers(data_uri, tmp_path):
    loader, fresh = stream(data_uri, tmp_path / "cache"), stream(data_uri, tmp_path / "other")
    for step in range(20):
        loader.batch(step)
    whole = loader.batch(20)
    parts = [fresh.batch(20, start, start + 16) for start in (48, 0, 32, 16)]
    assert torch.equal(torch.cat([parts[i].images for i in (1, 3, 2, 0)]), whole.images)
    assert torch.equal(torch.cat([parts[i].labels for i in (1, 3, 2, 0)]), whole.labels)


def test_labels_stay_with_their_images_while_streaming(data_uri, tmp_path):
    by_pixels = {
        bytes(image.numpy()): int(label)
        for _, images, labels in iterate(data_uri, 500)
        for image, label in zip(images, labels, strict=True)
    }
    loader = stream(data_uri, tmp_path / "cache")
    for batch in loader.batches(0, 30):
        assert [by_pixels[bytes(image.numpy())] for image in batch.images] == batch.labels.tolist()


def test_a_flipped_byte_is_found_while_streaming(data_uri, tmp_path):
    path = tmp_path / "data" / "shard-00002.parquet"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    loader = stream(data_uri, tmp_path / "cache")
    with pytest.raises(UserError, match=r"shard-00002\.parquet: row group 0 can't be read"):
        list(loader.batches(0, 24))


def test_a_shard_that_goes_missing_while_streaming_is_named(data_uri, tmp_path):
    loader = stream(data_uri, tmp_path / "cache")
    (tmp_path / "data" / "shard-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"shard-00001\.parquet: the shard is missing"):
        list(loader.batches(0, 24))


def test_a_shard_in_whose_place_is_a_shorter_one_is_named(data_uri, tmp_path):
    names = [tmp_path / "data" / f"shard-0000{number}.parquet" for number in (0, 3)]
    names[0].write_bytes(names[1].read_bytes())
    with pytest.raises(UserError, match=rf"shard-00000\.parquet: row group 0 has 147 rows instead of 150, .*; delete {data_uri} and"):
        list(iterate(data_uri, 64))


def test_a_disk_that_fills_up_while_streaming_is_named_and_no_part_remains(data_uri, tmp_path, monkeypatch):
    def fail(file, rows):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    loader = stream(data_uri, tmp_path / "cache")
    monkeypatch.setattr("numpy.save", fail)
    with pytest.raises(UserError, match=rf"{tmp_path}/cache/.*: the disk is full; free some space"):
        loader.batch(0)
    loader._store._pool.shutdown()  # the group that is read ahead fails in a thread of its own
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_storage_that_is_away_is_waited_for_no_longer_than_the_job_allows(data_uri, tmp_path, monkeypatch):
    loader = Loader(data_uri, seed=5, global_batch_size=64, cache_dir=tmp_path / "cache", disk_budget_bytes=BUDGET, retry_seconds=0.2)

    tries = []

    def fail(*_):
        tries.append(threading.current_thread())
        raise StorageError("no answer", transient=True)

    monkeypatch.setattr(row_groups, "read_row_group", fail)
    with pytest.raises(StorageError, match="no answer"):
        loader.batch(0)
    assert tries.count(threading.current_thread()) == 2, "the pause before the second is longer than the budget"


def test_a_batch_that_fails_has_waited_for_its_own_budget_alone_and_leaves_no_group_to_be_fetched(data_uri, tmp_path, monkeypatch):
    loader = Loader(data_uri, seed=6, global_batch_size=64, cache_dir=tmp_path / "cache", disk_budget_bytes=BUDGET, retry_seconds=100)
    read_row_group, main = row_groups.read_row_group, threading.current_thread()
    is_away, has_begun, is_over = threading.Event(), threading.Event(), threading.Event()
    ahead, waited = [], []

    def read(*arguments):
        if threading.current_thread() is main and not is_away.is_set():
            return read_row_group(*arguments)
        if threading.current_thread() is not main:
            ahead.append(arguments)
            has_begun.set()
            is_over.wait(5)  # so that the other groups of the next block stay queued; a batch of this seed needs one of them first
        raise StorageError("no answer", transient=True)

    def retry(action, *, seconds):
        try:
            return action()
        except StorageError:
            waited.append(seconds)
            raise

    monkeypatch.setattr(row_groups, "read_row_group", read)
    monkeypatch.setattr(storage, "retry", retry)
    loader.batch(0)
    has_begun.wait()
    is_away.set()
    with pytest.raises(StorageError, match="no answer"):
        list(map(loader.batch, range(1, 24)))
    is_over.set()
    loader._store._pool.shutdown()
    assert len(ahead) == 1
    assert sum(waited) == 100


def test_a_loader_that_is_closed_fetches_only_the_group_that_it_is_at(data_uri, tmp_path, monkeypatch):
    read_row_group, main = row_groups.read_row_group, threading.current_thread()
    has_begun, is_closed, ahead = threading.Event(), threading.Event(), []

    def read(*arguments):
        if threading.current_thread() is not main:
            ahead.append(arguments)
            has_begun.set()
            is_closed.wait(5)
        return read_row_group(*arguments)

    loader = stream(data_uri, tmp_path / "cache")
    monkeypatch.setattr(row_groups, "read_row_group", read)
    loader.batch(0)
    has_begun.wait()
    loader.close()
    is_closed.set()
    loader._store._pool.shutdown()
    assert len(ahead) == 1, "three groups of the next block were asked for"


def test_a_shard_that_fails_while_staging_is_fetched_again_and_no_other(data_uri, tmp_path, monkeypatch, capsys):
    open_local, tries = storage.open_local, Counter()

    def fail_once(uri):
        name = uri.rpartition("/")[2]
        tries[name] += 1
        if name == "shard-00002.parquet" and tries[name] == 1:
            raise StorageError("no answer", transient=True)
        return open_local(uri)

    monkeypatch.setattr(storage, "open_local", fail_once)
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))
    Loader(data_uri, seed=5, global_batch_size=64, cache_dir=tmp_path / "cache")
    assert tries == {f"shard-0000{number}.parquet": 1 + (number == 2) for number in range(4)}
    assert capsys.readouterr().out == "iddpm| no answer; trying again for 10 min 00 s\n"


def test_a_damaged_shard_ends_the_waits_for_the_others(data_uri, tmp_path, monkeypatch):
    is_away = threading.Event()

    def answer(uri):
        if uri.endswith("shard-00003.parquet"):
            is_away.wait()
            raise UserError("shard-00003.parquet: was damaged")
        is_away.set()
        raise StorageError("no answer", transient=True)

    monkeypatch.setattr(storage, "open_local", answer)
    started = time.monotonic()
    with pytest.raises(UserError, match="was damaged"):
        Loader(data_uri, seed=5, global_batch_size=64, cache_dir=tmp_path / "cache")
    assert time.monotonic() - started < 60, "they would wait for ten minutes"


def test_a_manifest_is_asked_for_again(data_uri, tmp_path, monkeypatch):
    read_manifest, tries = loading.read_manifest, []

    def fail_once(uri):
        tries.append(uri)
        if len(tries) == 1:
            raise StorageError("no answer", transient=True)
        return read_manifest(uri)

    monkeypatch.setattr(loading, "read_manifest", fail_once)
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))
    Loader(data_uri, seed=5, global_batch_size=64, cache_dir=tmp_path / "cache")
    assert len(tries) == 2


def test_a_budget_smaller_than_the_blocks_is_refused(data_uri, tmp_path):
    with pytest.raises(UserError, match=r"^data\.disk_budget_bytes: 20000 is too small to stream .*; give at least \d+ ") as refused:
        stream(data_uri, tmp_path / "cache", budget=20_000)
    needed = int(str(refused.value).partition("at least ")[2].split()[0])
    stream(data_uri, tmp_path / "cache", budget=needed)


def test_data_that_fits_the_budget_is_staged_in_its_exact_order(data_uri, tmp_path):
    within = stream(data_uri, tmp_path / "cache", budget=10_000_000)
    staged = Loader(data_uri, seed=5, global_batch_size=64, cache_dir=tmp_path / "cache")
    assert torch.equal(within.batch(3).images, staged.batch(3).images)


def test_iteration_reads_only_the_rows_that_are_asked_for_and_stages_nothing(data_uri, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    everything = list(iterate(data_uri, 100))
    for shard in ("shard-00000", "shard-00002", "shard-00003"):
        (tmp_path / "data" / f"{shard}.parquet").unlink()
    part = list(iterate(data_uri, 70, start=460, stop=890))
    assert [len(rows) for rows, _, _ in part] == [70] * 6 + [10]
    assert torch.equal(torch.cat([rows for rows, _, _ in part]), torch.arange(460, 890))
    assert torch.equal(torch.cat([images for _, images, _ in part]), torch.cat([images for _, images, _ in everything])[460:890])
    assert torch.equal(torch.cat([labels for *_, labels in part]), torch.cat([labels for *_, labels in everything])[460:890])
    assert list((tmp_path / "tmp").iterdir()) == []


def test_iteration_that_is_stopped_early_reads_little_more(data_uri, tmp_path):
    for shard in ("shard-00002", "shard-00003"):
        (tmp_path / "data" / f"{shard}.parquet").unlink()
    batches = iterate(data_uri, 100)
    assert [len(next(batches)[0]) for _ in range(4)] == [100] * 4
    batches.close()


def test_rows_are_read_in_any_order_and_any_number_of_times(data_uri):
    everything = torch.cat([images for _, images, _ in iterate(data_uri, 500)])
    wanted = torch.tensor([1496, 3, 3, 700, 0, 451])
    rows, images, _ = RowReader(data_uri).rows(wanted.numpy())
    assert torch.equal(rows, wanted)
    assert torch.equal(images, everything[wanted])


@pytest.mark.parametrize("sizes", [[4, 4, 4, 2], [1], [3, 3, 1, 3, 3, 2, 3]])
@pytest.mark.parametrize("groups_per_block", [1, 2, 3, 100])
def test_a_block_order_visits_each_row_once_an_epoch_block_by_block(sizes, groups_per_block):
    order = BlockOrder(sizes, 7, groups_per_block=groups_per_block)
    count = sum(sizes)
    starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    for epoch in range(3):
        rows = order.rows(torch.arange(epoch * count, (epoch + 1) * count).numpy())
        assert sorted(rows.tolist()) == list(range(count))
        group_of = {row: group for group in range(len(sizes)) for row in range(starts[group], starts[group + 1])}
        visited = [group_of[row] for row in rows.tolist()]
        expected = iter(visited)
        for block in range(order.num_blocks):
            groups = set(order.groups(epoch, block).tolist())
            assert {next(expected) for _ in range(sum(sizes[group] for group in groups))} == groups


def test_both_orders_are_pure_functions_of_the_position():
    for order in (GlobalOrder(101, 3), BlockOrder([40, 40, 21], 3, groups_per_block=2)):
        positions = torch.randint(0, 500, (64,)).numpy()
        assert order.rows(positions).tolist() == [int(order.rows(positions[i : i + 1])[0]) for i in range(64)]


def test_a_permutation_never_changes_between_versions():
    # Golden: ranks of raw Philox words, whose stream NumPy guarantees.
    assert permutation(8, 1, Purpose.EPOCH, 2).tolist() == [4, 2, 0, 6, 1, 5, 7, 3]


def test_permutations_are_uniform():
    first = torch.tensor([permutation(5, seed, Purpose.EPOCH)[0] for seed in range(5000)])
    counts = torch.bincount(first, minlength=5).double()
    assert ((counts - 1000) ** 2 / 1000).sum() < 23.5  # chi-squared with 4 degrees of freedom exceeds it once in 10,000
