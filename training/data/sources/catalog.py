"""Open any image source by its address."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from training import storage
from training.config.errors import UserError
from training.config.validation import FORBID_UNKNOWN
from training.console import say
from training.data.sources.files import TEST_FOLDERS, file_source
from training.data.sources.published import DIGITS_SPLIT_SEED, NEED_NO_FOLDER, PUBLISHED, READ_S3, ilsvrc2012, lsun_splits
from training.data.sources.source import RandomSplit, Source

USAGE = (
    "digits; digits-few; fashion-mnist[:FOLDER]; cifar10[:FOLDER]; imagenet64-official:FOLDER; imagenet64-labelled:FOLDER; "
    "imagenet:FOLDER; lsun-CATEGORY:FOLDER; a folder (./digits where it has the name of one of these), a .zip, a .tar or an s3:// address"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """Options for reading a source.

    Attributes:
        name: Name for a source that has none of its own (a folder, an archive).
        labels: Rule for labels; see `training.data.sources.labels`. "auto" takes the usual rule of the source.
        num_test: Test images to hold out of a source without a test split; 0 makes no test split.
    """

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    name: str = "images"
    labels: str = "auto"
    num_test: int = 0
    split_seed: int = DIGITS_SPLIT_SEED

    def __post_init__(self) -> None:
        if self.num_test < 0:
            raise UserError(f"num-test must be 0 or more, got {self.num_test}")


def open_splits(address: str, options: SourceOptions | None = None) -> dict[str, Source]:
    """Open the splits of a source: "train", and "test" where it has test images or some are held out.

    Args:
        address: "digits"; "digits-few"; "cifar10" (downloaded to this node) or "cifar10:FOLDER"; "fashion-mnist" (Debian's package, else
            downloaded), "fashion-mnist:FOLDER" or "fashion-mnist:s3://..."; "imagenet64-official:FOLDER",
            "imagenet64-labelled:FOLDER", "imagenet:FOLDER", "lsun-bedroom:FOLDER"; or a folder, an S3 prefix, a zip or a
            tar. A folder or prefix with `train` and `test` (or `val`) below it gives both splits. The name of a published data set is
            that data set, also where a folder has it; "./digits" is the folder.

    Raises:
        UserError: There is no such source, or an option does not apply to it.
    """
    options = options or SourceOptions()
    name, separator, folder = address.partition(":")
    is_folder = not separator and Path(address).exists()
    if folder.startswith("//") or "/" in name or name.startswith(".") or (is_folder and name not in PUBLISHED):
        return _file_splits(address, options)
    if is_folder:
        say(f"{name} is the published data set; write ./{name} for the folder of that name")
    splits = _published_splits(name, folder)
    if options.labels != "auto" and name != "imagenet":
        raise UserError(f"the labels of {name} are its own; leave labels at 'auto'")
    if options.num_test and "test" in splits:
        raise UserError(f"{name} has its own test images; leave num_test at 0")
    if name == "imagenet":
        splits = {split: ilsvrc2012(folder, split, labels=options.labels) for split in splits}
    return splits


def _published_splits(name: str, folder: str) -> dict[str, Source]:
    if name not in PUBLISHED and not name.startswith("lsun-"):
        close = difflib.get_close_matches(name, [*PUBLISHED, "lsun-bedroom"], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"there is no source {name!r}{hint}; the sources are: {USAGE}")
    if not folder and name not in NEED_NO_FOLDER:
        raise UserError(f"{name} needs the folder that contains its files: {name}:FOLDER")
    if storage.is_s3(folder) and name not in READ_S3:
        raise UserError(f"{name} is read from a folder on this machine, not from {folder}; download it first")
    if folder and not storage.is_s3(folder) and not Path(folder).is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if name.startswith("lsun-"):
        return lsun_splits(name, folder)
    return {split: PUBLISHED[name](folder, split) for split in ("train", "test")}


def _file_splits(address: str, options: SourceOptions) -> dict[str, Source]:
    subfolders: set[str] = set()
    if storage.is_s3(address) or storage.local_path(address).is_dir():
        subfolders = {uri.rpartition("/")[2] for uri in storage.list_dirs(address)}
    test_folder = next((name for name in TEST_FOLDERS if name in subfolders), None)
    if "train" in subfolders and test_folder is not None:
        if options.num_test:
            raise UserError(f"{address}: has its own test images in {test_folder}; leave num_test at 0")
        return {
            split: file_source(storage.join(address, folder), name=options.name, split=split, labels=options.labels)
            for split, folder in (("train", "train"), ("test", test_folder))
        }
    whole = file_source(address, name=options.name, split="train", labels=options.labels)
    if not options.num_test:
        return {"train": whole}
    return {split: RandomSplit(whole, split=split, num_test=options.num_test, seed=options.split_seed) for split in ("train", "test")}
