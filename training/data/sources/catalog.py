"""Open any image source by its address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training import storage
from training.config.errors import UserError
from training.config.validation import KnownFieldsOnly, close_to
from training.console import say
from training.data.sources.files import TEST_FOLDERS, FileSource, file_source, paths_below
from training.data.sources.labels import outer_folders
from training.data.sources.published import DIGITS_SPLIT_SEED, NEED_NO_FOLDER, PUBLISHED, READ_S3, ilsvrc2012, lsun_splits
from training.data.sources.source import Listing, RandomSplit, Source
from training.storage.errors import explain_disk_errors

USAGE = (
    "digits; digits-few; fashion-mnist[:FOLDER]; cifar10[:FOLDER]; imagenet64-official:FOLDER; imagenet64-labelled:FOLDER; "
    "imagenet:FOLDER; lsun-CATEGORY:FOLDER; a folder (./digits where it has the name of one of these), a .zip, a .tar or an s3:// address"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions(KnownFieldsOnly):
    """Options for reading a source.

    Attributes:
        name: Name for a source that has none of its own (a folder, an archive).
        labels: Rule for labels; see `training.data.sources.labels`. "auto" takes the usual rule of the source.
        num_test: Test images to hold out of a source without a test split; 0 makes no test split.
    """

    name: str = "images"
    labels: str = "auto"
    num_test: int = 0
    split_seed: int = DIGITS_SPLIT_SEED

    def __post_init__(self) -> None:
        if self.num_test < 0:
            raise UserError(f"num-test must be 0 or more, got {self.num_test}")
        if not 0 <= self.split_seed < 2**64:
            raise UserError(f"split_seed must be 0 to {2**64 - 1:,}, got {self.split_seed:,}")


def open_splits(address: str, options: SourceOptions | None = None) -> dict[str, Source]:
    """Open the splits of a source: "train", and "test" where it has test images or some are held out.

    Args:
        address: "digits"; "digits-few"; "cifar10" (downloaded to this node) or "cifar10:FOLDER"; "fashion-mnist" (Debian's package, else
            downloaded), "fashion-mnist:FOLDER" or "fashion-mnist:s3://..."; "imagenet64-official:FOLDER",
            "imagenet64-labelled:FOLDER", "imagenet:FOLDER", "lsun-bedroom:FOLDER"; or a folder, an S3 prefix, a zip or a
            tar. A folder or prefix with `train` and `test` (or `val`) below it gives both splits. A path that exists is that folder or
            archive, also with a colon in its name. Only the bare name of a published data set is that data set, also where a folder has
            it; "./digits" is the folder.

    Raises:
        UserError: There is no such source, or an option does not apply to it.
    """
    options = options or SourceOptions()
    name, _, folder = address.partition(":")
    exists, is_name = Path(address).exists(), address in PUBLISHED
    if folder.startswith("//") or "/" in name or name.startswith(".") or (exists and not is_name):
        return _file_splits(address, options)
    if exists:
        say(f"{name} is the published data set; write ./{name} for the folder of that name")
    splits = _published_splits(name, folder)
    if options.labels != "auto" and name != "imagenet":
        raise UserError(f"the labels of {name} are its own; leave labels at 'auto'")
    if options.num_test and "test" in splits:
        raise UserError(f"{name} has its own test images; leave num_test at 0")
    if name == "imagenet":
        splits = {split: ilsvrc2012(folder, split, labels=options.labels) for split in splits}
    return splits if "test" in splits else _hold_out(splits["train"], options)


def source_folder(address: str) -> str:
    """Return the folder or archive of a source that `open_splits` opens; empty for a data set that needs none."""
    name, _, folder = address.partition(":")
    is_name = name in PUBLISHED or (name.startswith("lsun-") and "/" not in name)
    return folder if is_name and (address == name or not Path(address).exists()) else address


def list_splits(splits: Mapping[str, Source]) -> dict[str, Listing]:
    """List every split of `open_splits`; the test images get the labels that the training images have.

    Raises:
        UserError: A split can't be listed, or the images of one are in class folders and those of the other are not.
    """
    listings: dict[str, Listing] = {}
    whole: Listing | None = None
    for split, source in splits.items():
        train = listings.get("train")
        if isinstance(source, RandomSplit):
            # Listed once: with a file that arrives between two listings, other test images are drawn, which are training images.
            whole = whole or source.whole.listing()
            listings[split] = source.divide(whole)
            continue
        if train is None or not isinstance(source, FileSource):
            listings[split] = source.listing()
            continue
        source.class_names = train.class_names
        listings[split] = found = source.listing()
        if train.class_names and not found.class_names:
            keys = [item.key for item in found.items]
            outside = [key for key, folder in zip(keys, outer_folders(keys, train.class_names), strict=True) if not folder]
            raise UserError(
                f"{source.uri}: {len(outside):,} of {len(keys):,} {split} images are in no class folder, like {outside[0]}, but the "
                "training images are in class folders; put each into a folder of its class's name, or remove this folder and hold "
                "training images out (num_test; `iddpm train` does it by itself)"
            )
        if found.class_names and not train.class_names:
            raise UserError(
                f"{source.uri}: the {split} images are in class folders, but the training images are not; put each training image into a "
                "folder of its class's name, or set labels to 'none'"
            )
    return listings


def _published_splits(name: str, folder: str) -> dict[str, Source]:
    if name not in PUBLISHED and not name.startswith("lsun-"):
        hint = close_to(name, [*PUBLISHED, "lsun-bedroom"])
        raise UserError(f"there is no source {name!r}{f'{hint} The' if hint else '; the'} sources are: {USAGE}")
    if not folder and name not in NEED_NO_FOLDER:
        raise UserError(f"{name} needs the folder that contains its files: {name}:FOLDER")
    if storage.is_s3(folder) and name not in READ_S3:
        raise UserError(f"{name} is read from a folder on this machine, not from {folder}; download it first")
    if folder and not storage.is_s3(folder) and not Path(folder).is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if name.startswith("lsun-"):
        return lsun_splits(name, folder)
    return {split: PUBLISHED[name](folder, split) for split in ("train", "test")}


def _split_folders(address: str) -> set[str]:
    """Return the names of the folders that contain files, those of splits at least; on a disk links are followed, as by the sources."""
    if storage.is_s3(address):
        return {uri.rpartition("/")[2] for uri in storage.list_dirs(address)}
    root = storage.local_path(address)
    with explain_disk_errors(address):
        folders = [root / name for name in ("train", *TEST_FOLDERS)]
        return {folder.name for folder in folders if folder.is_dir() and any(path.is_file() for path in paths_below(folder, _raise))}


def _raise(error: OSError) -> None:
    raise error


def _file_splits(address: str, options: SourceOptions) -> dict[str, Source]:
    subfolders = _split_folders(address)
    test_folder = next((name for name in TEST_FOLDERS if name in subfolders), None)
    if "train" in subfolders and test_folder is not None:
        if options.num_test:
            raise UserError(f"{address}: has its own test images in {test_folder}; leave num_test at 0")
        train, test = (
            file_source(storage.join(address, folder), name=options.name, split=split, labels=options.labels)
            for split, folder in (("train", "train"), ("test", test_folder))
        )
        train.outer_uri, train.split_folders = address, ("train", test_folder)
        return {"train": train, "test": test}
    return _hold_out(file_source(address, name=options.name, split="train", labels=options.labels), options)


def _hold_out(whole: Source, options: SourceOptions) -> dict[str, Source]:
    if not options.num_test:
        return {"train": whole}
    return {split: RandomSplit(whole, split=split, num_test=options.num_test, seed=options.split_seed) for split in ("train", "test")}
