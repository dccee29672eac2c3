"""A node's cache is bounded, and an entry in use is never evicted."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from training.config.errors import UserError
from training.data.cache import disk_cache
from training.data.cache.disk_cache import CacheEntry, get_or_make, reserve
from training.data.loading.loader import Loader
from training.data.preparation.options import Options
from training.data.preparation.prepare import prepare
from training.data.sources.published import digits
from training.storage import StorageError

KIB = 1024


def entry(directory: Path, letter: str, num_bytes: int = KIB) -> CacheEntry:
    """An entry of that letter's name, which looks like a digest."""
    return get_or_make(directory / (letter * 32), lambda partial: partial.write_bytes(letter.encode() * num_bytes))


def evict(directory: Path, num_bytes: int, budget_bytes: int | None = None) -> None:
    with reserve(directory, num_bytes, budget_bytes):
        pass


def kept(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.suffix != ".lock"}


def names(letters: str) -> set[str]:
    return {letter * 32 for letter in letters}


def fill(directory: Path, letters: str) -> None:
    """Entries without users, last used in that order."""
    for age, letter in enumerate(letters):
        entry(directory, letter).release()
        os.utime(directory / (letter * 32), (age, age))


def test_the_least_recently_used_entry_is_evicted_first(tmp_path):
    fill(tmp_path, "abcd")
    entry(tmp_path, "a").release()  # so it is the latest
    evict(tmp_path, 2 * KIB, budget_bytes=4 * KIB)
    assert kept(tmp_path) == names("da")


def test_nothing_is_evicted_while_there_is_room(tmp_path):
    fill(tmp_path, "abcd")
    evict(tmp_path, KIB, budget_bytes=5 * KIB)
    evict(tmp_path, KIB)
    assert kept(tmp_path) == names("abcd")


def test_what_others_keep_in_the_directory_stays_and_takes_nothing_from_the_budget(tmp_path):
    fill(tmp_path, "ab")
    (tmp_path / "results").mkdir()
    for name in ("results/thesis.txt", "results.lock", "weights.bin"):
        (tmp_path / name).write_bytes(bytes(9 * KIB))
        os.utime(tmp_path / name.partition("/")[0], (0, 0))
    for letter in "ab":
        entry(tmp_path, letter).release()  # so the others are the least recently used
    evict(tmp_path, KIB, budget_bytes=3 * KIB)
    assert kept(tmp_path) == names("ab") | {"results", "weights.bin"}
    evict(tmp_path, 3 * KIB, budget_bytes=3 * KIB)
    assert kept(tmp_path) == {"results", "weights.bin"}
    assert (tmp_path / "results" / "thesis.txt").exists()


def test_what_is_still_made_counts_in_the_budget(tmp_path):
    fill(tmp_path, "ab")
    (tmp_path / f"{'c' * 32}.partial").write_bytes(bytes(KIB))
    (tmp_path / f".archive-{'d' * 32}.123.partial").write_bytes(bytes(KIB))
    evict(tmp_path, 0, budget_bytes=3 * KIB)
    assert len(names("ab") & kept(tmp_path)) == 1


def test_an_entry_that_another_thread_completes_meanwhile_counts_in_the_budget(tmp_path, monkeypatch):
    fill(tmp_path, "a")
    partial = tmp_path / f"{'b' * 32}.partial"
    partial.write_bytes(bytes(KIB))
    size = disk_cache.size_on_disk

    def complete_it_first(path: Path) -> int:
        if partial.exists():
            partial.rename(tmp_path / ("b" * 32))
        return size(path)

    monkeypatch.setattr(disk_cache, "size_on_disk", complete_it_first)
    evict(tmp_path, KIB, budget_bytes=2 * KIB)
    assert kept(tmp_path) == {"b" * 32}


def test_an_entry_in_use_stays_even_over_the_budget(tmp_path):
    fill(tmp_path, "abc")
    held = entry(tmp_path, "a")
    os.utime(tmp_path / ("a" * 32), (0, 0))
    evict(tmp_path, KIB, budget_bytes=KIB)
    assert kept(tmp_path) == names("a")
    held.release()
    evict(tmp_path, KIB, budget_bytes=KIB)
    assert kept(tmp_path) == set()


def test_a_full_disk_evicts_without_a_budget_and_is_an_error_when_that_is_not_enough(tmp_path, monkeypatch):
    fill(tmp_path, "ab")

    def usage(_: object) -> object:
        return type("usage", (), {"free": 3 * KIB - KIB * len(kept(tmp_path))})

    monkeypatch.setattr("shutil.disk_usage", usage)
    evict(tmp_path, 2 * KIB)
    assert kept(tmp_path) == names("b")
    with pytest.raises(UserError, match=r"needs 4.00 KiB for a copy of the data, but 3.00 KiB are free; free some space"):
        evict(tmp_path, 4 * KIB)


def test_an_entry_that_could_not_be_made_leaves_nothing(tmp_path):
    def make(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        get_or_make(tmp_path / ("a" * 32), make)
    assert kept(tmp_path) == set()
    entry(tmp_path, "a")
    assert kept(tmp_path) == names("a")


def test_two_that_find_an_entry_missing_at_once_both_get_it_while_the_maker_uses_it(tmp_path):
    path, both_have_looked = tmp_path / ("a" * 32), threading.Barrier(2, timeout=30)
    path.write_bytes(b"damaged")
    looked, made, entries = [], [], []

    def is_intact(found: Path) -> bool:
        looked.append(found)
        if len(looked) <= 2:
            both_have_looked.wait()
            return False
        return found.read_bytes() == b"content"

    def make(partial: Path) -> None:
        partial.write_bytes(b"content")
        made.append(partial)

    users = [
        threading.Thread(target=lambda: entries.append(get_or_make(path, make, is_intact=is_intact)), name=name, daemon=True)
        for name in "ab"
    ]
    for user in users:
        user.start()
    for user in users:
        user.join(timeout=30)
    assert not [user.name for user in users if user.is_alive()], "waits for the other to end"
    assert [entry.path for entry in entries] == [path, path]
    assert len(made) == 1


@pytest.mark.parametrize("is_directory", [False, True])
def test_an_entry_has_its_name_once_its_content_is_on_the_disk(tmp_path, monkeypatch, is_directory):
    written = {}

    def fsync(descriptor: int) -> None:
        written[str(Path(f"/proc/self/fd/{descriptor}").readlink())] = (tmp_path / "a").exists()

    def make(partial: Path) -> None:
        for name in ("x", "y/z") if is_directory else ("",):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(b"content")

    monkeypatch.setattr(os, "fsync", fsync)
    get_or_make(tmp_path / "a", make)
    names = ("a.partial/x", "a.partial/y/z") if is_directory else ("a.partial",)
    assert written == {str(tmp_path / name): False for name in names}


def test_a_cache_directory_that_can_not_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    for use in (lambda path: entry(path, "a"), lambda path: evict(path, 1)):
        with pytest.raises(UserError, match=rf"{tmp_path}/file/cache: Not a directory; choose a cache directory, or point TMPDIR"):
            use(tmp_path / "file" / "cache")


def test_a_cache_directory_without_file_locks_is_named_with_the_remedy(tmp_path, monkeypatch):
    def flock(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # flock(2) on a Lustre that is mounted without locks

    monkeypatch.setattr("fcntl.flock", flock)
    for use in (lambda: entry(tmp_path, "a"), lambda: evict(tmp_path, 1)):
        with pytest.raises(UserError, match=rf"{tmp_path}: its file system has no file locks \(Function not implemented\); choose a cache"):
            use()


def test_an_entry_of_another_process_stays_until_that_is_killed(tmp_path):
    fill(tmp_path, "ab")
    program = (
        "import sys, time, pathlib; from training.data.cache.disk_cache import get_or_make\n"
        "held = get_or_make(pathlib.Path(sys.argv[1]), print); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / ("a" * 32))], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    evict(tmp_path, KIB, budget_bytes=KIB)
    assert kept(tmp_path) == names("a")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    evict(tmp_path, KIB, budget_bytes=KIB)
    assert kept(tmp_path) == set()


_CONTENDER = """
import pathlib, random, sys
from training.data.cache import disk_cache as cache
directory, clock = pathlib.Path(sys.argv[1]), random.Random(int(sys.argv[2]))

def make(partial):
    with cache.reserve(directory, 4096, budget_bytes=3 * 4096):
        with partial.open("wb") as file:
            for _ in range(4):
                file.write(partial.name[:1].encode() * 1024)
                file.flush()
    made.append(partial.name)

made = []
for _ in range(60):
    name = clock.choice("abcdef")
    held = cache.get_or_make(directory / (name * 32), make)
    for _ in range(clock.randrange(4)):
        assert held.path.read_bytes() == name.encode() * 4096, name
    held.release()
sys.stderr.write(f"{len(made)}\\n")
"""


def test_processes_never_evict_entries_that_others_read(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _CONTENDER, str(tmp_path), str(seed)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for seed in range(4)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert sum(map(int, said)) > 6, "nothing was ever removed and made again"
    evict(tmp_path, 0, budget_bytes=3 * 4096)
    assert len(kept(tmp_path)) <= 3
    assert not list(tmp_path.glob("*.partial"))


def test_a_cache_in_s3_is_refused_and_no_directory_of_such_a_name_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(digits("test"), "data", image_size=8)
    with pytest.raises(StorageError, match=r"^s3://bucket/cache: is neither a path nor a whole address; name a path on this machine"):
        Loader("data", seed=0, global_batch_size=8, cache_dir="s3://bucket/cache")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_cache_below_the_home_directory_is_there_and_not_in_a_directory_named_like_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    prepare(digits("test"), "data", image_size=8)
    Loader("data", seed=0, global_batch_size=8, cache_dir="~/cache")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "home"}
    assert any((tmp_path / "home" / "cache").iterdir())
    with pytest.raises(UserError, match="cache_dir ~nobody-here/x: there is no home directory of that user"):
        Loader("data", seed=0, global_batch_size=8, cache_dir="~nobody-here/x")


def test_the_data_of_a_loader_is_not_evicted_while_it_exists(tmp_path):
    uris = []
    for name, split in (("a", "train"), ("b", "test")):
        uris.append(str(tmp_path / name))
        prepare(digits(split), uris[-1], image_size=8)
    directory = tmp_path / "cache"

    def load(uri: str, budget: int | None) -> Loader:
        return Loader(uri, seed=0, global_batch_size=8, cache_dir=directory, disk_budget_bytes=budget)

    enough = 1497 * 64
    held = load(uris[0], enough)
    before = held.batch(3).images
    load(uris[1], enough)
    assert len(kept(directory)) == 2, "data in use was removed"
    assert torch.equal(held.batch(3).images, before)
    del held
    time.sleep(0.01)
    fresh = load(uris[1], None)
    assert len(kept(directory)) == 2
    del fresh
    load(uris[0], enough)  # there already: nothing has to go
    assert len(kept(directory)) == 2
    prepare(digits("test"), str(tmp_path / "c"), image_size=8, options=Options(seed=1))
    load(str(tmp_path / "c"), enough)
    assert len(kept(directory)) == 1
