"""Every source by the word that names it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training import storage
from training.data.cache.disk_cache import default_cache_dir
from training.data.sources.files import TEST_FOLDERS, file_source
from training.data.sources.published import Cifar10, LabelledImageNet64, Lsun, ilsvrc2012, official_imagenet64
from training.data.sources.source import DIGITS_SPLIT_SEED, HeldOut, Source, SourceError, digits

USAGE = (
    "digits; cifar10[:FOLDER]; imagenet64-official:FOLDER; imagenet64-labelled:FOLDER; imagenet:FOLDER; lsun-CATEGORY:FOLDER; "
    "a folder, a .zip, a .tar or an s3:// address"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """How a source is read.

    Attributes:
        name: What to call a source that has no name of its own (a folder, an archive).
        labels: Where labels come from; see `training.data.sources.labels`. "auto" takes what is usual for the source.
        num_test: Test images to hold out of a source that has no test split; 0 makes none.
        split_seed: Seed that draws them.
    """

    name: str = "images"
    labels: str = "auto"
    num_test: int = 0
    split_seed: int = DIGITS_SPLIT_SEED

    def __post_init__(self) -> None:
        if self.num_test < 0:
            raise SourceError(f"num-test must be 0 or more, got {self.num_test}")


def open_splits(spec: str, options: SourceOptions | None = None) -> dict[str, Source]:
    """The splits of a source: "train", and "test" where it has test images or some are held out.

    Args:
        spec: "digits"; "cifar10" (downloaded to this node) or "cifar10:FOLDER"; "imagenet64-official:FOLDER",
            "imagenet64-labelled:FOLDER", "imagenet:FOLDER", "lsun-bedroom:FOLDER"; or the address of a folder, an
            S3 prefix, a zip or a tar. A folder or prefix with `train` and `test` (or `val`) below it gives both splits.
        options: How it is read.

    Raises:
        SourceError: There is no such source.
    """
    options = options or SourceOptions()
    if _is_address(spec):
        return _generic(spec, options)
    word, _, place = spec.partition(":")
    splits = _published(word, place)
    if options.labels != "auto" and word != "imagenet":
        raise SourceError(f"the labels of {word} are its own; leave labels at 'auto'")
    if options.num_test and "test" in splits:
        raise SourceError(f"{word} has its own test images; leave num_test at 0")
    if word == "imagenet":
        splits = {split: ilsvrc2012(place, split, labels=options.labels) for split in splits}
    return splits


def _is_address(spec: str) -> bool:
    word, separator, place = spec.partition(":")
    return place.startswith("//") or "/" in word or word.startswith(".") or (not separator and Path(spec).exists())


def _published(word: str, place: str) -> dict[str, Source]:
    both = ("train", "test")
    if word == "digits":
        return {split: digits(split) for split in both}
    if word == "cifar10":
        root = place or str(default_cache_dir() / "cifar10")
        return {split: Cifar10(root, split, download=not place) for split in both}
    makers: dict[str, Callable[[str, str], Source]] = {
        "imagenet64-official": official_imagenet64,
        "imagenet64-labelled": LabelledImageNet64,
        "imagenet": ilsvrc2012,
    }
    if word not in makers and not word.startswith("lsun-"):
        close = difflib.get_close_matches(word, ["digits", "cifar10", *makers, "lsun-bedroom"], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SourceError(f"there is no source {word!r}{hint}; the sources are: {USAGE}")
    if not place:
        raise SourceError(f"{word} needs the folder that holds its files: {word}:FOLDER")
    if not Path(place).is_dir():
        raise SourceError(f"{place}: there is no such folder")
    if word.startswith("lsun-"):
        return _lsun(word, place)
    return {split: makers[word](place, split) for split in both}


def _lsun(word: str, place: str) -> dict[str, Source]:
    category = word.removeprefix("lsun-")
    splits: dict[str, Source] = {}
    for split, folder in (("train", f"{category}_train_lmdb"), ("test", f"{category}_val_lmdb")):
        if (Path(place) / folder).is_dir():
            splits[split] = Lsun(str(Path(place) / folder), name=word, split=split)
    if "train" not in splits:
        raise SourceError(f"{place}: holds no folder {category}_train_lmdb")
    return splits


def _generic(place: str, options: SourceOptions) -> dict[str, Source]:
    below = _folders(place)
    tests = [name for name in TEST_FOLDERS if name in below]
    if "train" in below and tests:
        if options.num_test:
            raise SourceError(f"{place}: has its own test images in {tests[0]}; leave num_test at 0")
        return {
            split: file_source(storage.join(place, folder), name=options.name, split=split, labels=options.labels)
            for split, folder in (("train", "train"), ("test", tests[0]))
        }
    whole = file_source(place, name=options.name, split="train", labels=options.labels)
    if not options.num_test:
        return {"train": whole}
    return {split: HeldOut(whole, split=split, num_test=options.num_test, seed=options.split_seed) for split in ("train", "test")}


def _folders(place: str) -> set[str]:
    if storage.is_s3(place) or storage.local_path(place).is_dir():
        return {uri.rstrip("/").rpartition("/")[2] for uri in storage.list_dirs(place)}
    return set()
