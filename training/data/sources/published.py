"""The data sets of the paper in the forms in which they are published, Fashion-MNIST, and the digits of the demo.

A new published data set needs a class or function here and its line in `PUBLISHED`.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training import storage
from training.config.errors import UserError
from training.console import say
from training.data.cache.archives import map_npz_array
from training.data.cache.disk_cache import default_cache_dir, file_lock
from training.data.format.manifest import Images
from training.data.format.shards import UNLABELLED
from training.data.sources.files import FileSource, file_source
from training.data.sources.source import ArraySource, Item, Listing, RandomSplit, Reader, Source, source_version

DIGITS_NUM_TEST = 300
_FEW_DIGITS_NUM_TEST = 1597
DIGITS_SPLIT_SEED = 20210218
"""Seed that draws the 300 test images of the digits; another seed makes another data set."""

_IMAGENET64_TRAIN_FILES = 10
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_FASHION_MNIST_KINDS: dict[str, tuple[int, ...]] = {"images-idx3-ubyte": (28, 28), "labels-idx1-ubyte": ()}
"""Kinds of files by the end of their names, and the shape of an item in each."""
_IDX_UINT8 = 0x800
"""First integer of an idx file of bytes, less the number of its dimensions."""


class Digits(ArraySource):
    """The 1,797 handwritten digits that scikit-learn ships: 8x8, grey, 17 levels, 10 classes.

    Level k of 0..16 becomes round(k * 255 / 16). UCI's "Optical Recognition of Handwritten Digits", test part.
    """

    def __init__(self, name: str = "digits") -> None:
        super().__init__(name, "all", image_channels=1)

    def arrays(self) -> tuple[Images, npt.NDArray[np.int64], tuple[str, ...]]:
        """Load images `[1797, 8, 8, 1]`, labels 0 to 9 and their names."""
        from sklearn.datasets import load_digits

        raw = load_digits()
        images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[..., None]
        return images, raw.target.astype(np.int64), tuple(str(digit) for digit in range(10))


def digits(split: str) -> Source:
    """Return a split of the digits: 1,497 training or 300 test images."""
    return RandomSplit(Digits(), split=split, num_test=DIGITS_NUM_TEST, seed=DIGITS_SPLIT_SEED)


def few_digits(split: str) -> Source:
    """Return a split of the digits with 200 training images, all of them among those of `digits`; the other 1,597 are test images."""
    return RandomSplit(Digits("digits-few"), split=split, num_test=_FEW_DIGITS_NUM_TEST, seed=DIGITS_SPLIT_SEED)


class Cifar10(ArraySource):
    """CIFAR-10 as torchvision reads it (`cifar-10-batches-py`, checked by torchvision's MD5): 50,000 and 10,000 images."""

    def __init__(self, root: str, split: str) -> None:
        """Set the folder that contains `cifar-10-batches-py` (empty downloads it to this node) and the split ("train" or "test")."""
        super().__init__("cifar10", split, image_channels=3)
        self.root = root or str(default_cache_dir() / "cifar10")
        self.download = not root

    def arrays(self) -> tuple[Images, npt.NDArray[np.int64], tuple[str, ...]]:
        """Load images `[rows, 32, 32, 3]`, labels 0 to 9 in torchvision's order (airplane first) and their names."""
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import check_integrity

        packed = Path(self.root) / CIFAR10.filename
        try:
            # torchvision unpacks an archive that is already there by the same argument that would download it.
            with file_lock(default_cache_dir() / "cifar10.lock"):
                download = self.download or check_integrity(str(packed), CIFAR10.tgz_md5)
                data = CIFAR10(self.root, train=self.split == "train", download=download)
        except (RuntimeError, OSError) as error:
            reason = str(error).partition(". You can use download=True")[0]  # an argument of torchvision
            raise UserError(
                f"{self.root}: CIFAR-10 is not there or not whole ({reason}); put the folder cifar-10-batches-py or "
                f"{packed.name} there, or let it be downloaded with the source 'cifar10'"
            ) from error
        return np.asarray(data.data), np.asarray(data.targets, dtype=np.int64), tuple(data.classes)


class FashionMnist(ArraySource):
    """Fashion-MNIST (Xiao et al. 2017): 60,000 and 10,000 grey images of 28x28 pixels, 10 classes.

    The four idx files of the release, packed (`.gz`) or not, in a folder or below an S3 prefix.
    """

    def __init__(self, root: str, split: str) -> None:
        """Set the folder and the split ("train" or "test").

        An empty folder takes the files of Debian's package `dataset-fashion-mnist` if it is installed; else torchvision downloads them
        to this node and checks their MD5.
        """
        super().__init__("fashion-mnist", split, image_channels=1)
        self.root = root

    @property
    def address(self) -> str:
        """The folder, where one is named."""
        return self.root or self.name

    def arrays(self) -> tuple[Images, npt.NDArray[np.int64], tuple[str, ...]]:
        """Load images `[rows, 28, 28, 1]`, labels 0 to 9 in the release's order (T-shirt/top first) and their names."""
        from torchvision.datasets import FashionMNIST

        root = self.root or _fashion_mnist_folder()
        stem = "train" if self.split == "train" else "t10k"
        images, labels = (_read_idx(root, f"{stem}-{kind}", item_shape) for kind, item_shape in _FASHION_MNIST_KINDS.items())
        if len(images) != len(labels):
            raise UserError(f"{root}: has {len(images):,} images and {len(labels):,} labels of {self.split}; they belong to different sets")
        if labels.max(initial=0) >= len(FashionMNIST.classes):
            raise UserError(f"{root}: a label of {self.split} is {labels.max()}; Fashion-MNIST has the labels 0 to 9")
        return images[..., None], labels.astype(np.int64), tuple(FashionMNIST.classes)


def _fashion_mnist_folder() -> str:
    """Return the folder of Debian's package, or that of torchvision's download to this node."""
    from torchvision.datasets import FashionMNIST

    if _DEBIAN_FASHION_MNIST.is_dir():
        return str(_DEBIAN_FASHION_MNIST)
    root = default_cache_dir() / "fashion-mnist"
    try:
        with file_lock(default_cache_dir() / "fashion-mnist.lock"):
            _remove_damaged_download(root)
            folder: str = FashionMNIST(str(root), download=True).raw_folder
            return folder
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"Fashion-MNIST can't be downloaded ({error}); install Debian's package dataset-fashion-mnist, or name the folder with the "
            "release's four idx files: fashion-mnist:FOLDER"
        ) from error


def _remove_damaged_download(root: Path) -> None:
    """Remove a download whose unpacking was interrupted: torchvision takes files of the right names for whole, and stays with them.

    Raises:
        UserError: There was one, and it is removed.
    """
    raw = root / "FashionMNIST" / "raw"
    files = {f"{stem}-{kind}": item_shape for stem in ("train", "t10k") for kind, item_shape in _FASHION_MNIST_KINDS.items()}
    if not all((raw / name).is_file() for name in files):
        return  # torchvision unpacks all of them again
    try:
        for name, item_shape in files.items():
            _read_idx(str(raw), name, item_shape)
    except UserError as error:
        shutil.rmtree(root)
        raise UserError(f"Fashion-MNIST: its copy in {root} was damaged and is removed; run this again") from error


def _read_idx(root: str, name: str, item_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read a file of the idx format: a header of big-endian 32-bit integers (type and rank, sizes), then bytes."""
    found = [uri for uri in (storage.join(root, name), storage.join(root, f"{name}.gz")) if storage.exists(uri)]
    if not found:
        raise UserError(f"{root}: contains neither {name} nor {name}.gz, which Fashion-MNIST consists of")
    data = storage.read_bytes(found[0])
    try:
        data = gzip.decompress(data) if found[0].endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{found[0]}: is damaged ({error}); fetch it again") from error
    rank = 1 + len(item_shape)
    header_bytes = 4 * (1 + rank)
    header = np.frombuffer(data[:header_bytes].ljust(header_bytes, b"\0"), ">i4")
    if header[0] != _IDX_UINT8 + rank or tuple(header[2:]) != item_shape:
        raise UserError(f"{found[0]}: is no idx file of bytes with items of shape {item_shape}")
    values = np.frombuffer(data[header_bytes:], np.uint8)
    if header[1] < 0:
        raise UserError(f"{found[0]}: its header is damaged, as it has {header[1]:,} items; fetch it again")
    num_bytes = int(np.prod(header[1:], dtype=np.int64))
    if values.size != num_bytes:
        fault = "is truncated" if values.size < num_bytes else "is too long"
        raise UserError(f"{found[0]}: {fault}; it has {values.size:,} bytes instead of {num_bytes:,}. Fetch it again")
    return values.reshape(header[1:])


class LabelledImageNet64(Source):
    """ImageNet-64 of Chrabaszcz et al. (2017): `train_data_batch_1.npz` to `_10`, `val_data.npz`; 1000 labels.

    The whole image, squashed by a box filter. The release of van den Oord et al. (2016) has other pixels and other likelihoods.
    Each file contains `data` (uint8, `[rows, 3 * 64 * 64]`, channel after channel) and `labels` (1 to 1000).
    """

    def __init__(self, root: str, split: str) -> None:
        """Set the folder with the files and the split ("train" or "test")."""
        self.root = root
        self.name = "imagenet64-labelled"
        self.split = split

    @property
    def address(self) -> str:
        """The folder with the files."""
        return self.root

    def listing(self) -> Listing:
        """List one item per row, named by file and position."""
        pattern = "train_data_batch_*.npz" if self.split == "train" else "val_data.npz"
        files = sorted(Path(self.root).glob(pattern), key=lambda path: (len(path.name), path.name))
        if not files:
            raise UserError(f"{self.root}: contains no {pattern}, so it is not the labelled ImageNet-64 in npz form")
        if self.split == "train" and len(files) != _IMAGENET64_TRAIN_FILES:
            say(f"{self.root}: contains {len(files)} of the release's {_IMAGENET64_TRAIN_FILES} files {pattern}")
        items: list[Item] = []
        for path in files:
            stored = map_npz_array(path, "labels")
            if stored.ndim != 1 or stored.dtype.kind not in "iu":
                raise UserError(f"{path}: labels are {stored.dtype} {stored.shape}; they should be integers [rows]")
            labels = np.asarray(stored).astype(np.int64)
            rows = map_npz_array(path, "data")
            if rows.ndim != 2 or rows.shape[1] != 3 * 64 * 64 or rows.dtype != np.uint8 or len(rows) != len(labels):
                raise UserError(f"{path}: data is {rows.dtype} {rows.shape} with {len(labels)} labels; it should be uint8 [rows, 12288]")
            if len(labels) and not (labels.min() >= 1 and labels.max() <= 1000):
                raise UserError(f"{path}: labels run from {labels.min()} to {labels.max()}; they should be in 1..1000")
            versions = source_version(str(path)), storage.version(str(path))
            items += [
                Item(f"{path.stem}/{row:06d}", int(label) - 1, rows.shape[1], (path.name, row), *versions)
                for row, label in enumerate(labels)
            ]
        return Listing(items, tuple(f"{label:04d}" for label in range(1, 1001)))

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        """Map each file at its first use."""
        mapped: dict[str, npt.NDArray[Any]] = {}

        def read(locator: tuple[str, int]) -> Images:
            name, row = locator
            if name not in mapped:
                mapped[name] = map_npz_array(Path(self.root) / name, "data")
            return np.ascontiguousarray(mapped[name][row].reshape(3, 64, 64).transpose(1, 2, 0))

        yield read


class Lsun(Source):
    """One category of LSUN as published: an lmdb of encoded images, without labels."""

    def __init__(self, directory: str, *, name: str, split: str) -> None:
        """Set the `<category>_train_lmdb` or `_val_lmdb` folder, the name (like "lsun-bedroom") and the split ("train" or "test")."""
        self.directory = directory
        self.name = name
        self.split = split

    @property
    def address(self) -> str:
        """The folder of the lmdb."""
        return self.directory

    def listing(self) -> Listing:
        """List every key."""
        with self._transaction() as transaction:
            keys = list(transaction.cursor().iternext(keys=True, values=False))
        file = str(Path(self.directory) / "data.mdb")
        versions = source_version(file), storage.version(file)
        return Listing([Item(key.decode("utf-8", "backslashreplace"), UNLABELLED, 0, key, *versions) for key in keys], ())

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        """Read by key."""
        with self._transaction() as transaction:
            yield lambda key: bytes(transaction.get(key) or b"")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        import lmdb

        try:
            with (
                lmdb.open(self.directory, readonly=True, lock=False, readahead=False, create=False) as environment,
                environment.begin(buffers=False) as transaction,
            ):
                self._require_whole(environment)
                yield transaction
        except lmdb.Error as error:
            raise UserError(f"{self.directory}: is not an lmdb folder as LSUN publishes it ({error})") from error

    def _require_whole(self, environment: Any) -> None:
        """Refuse a file that ends before its last page: to read memory beyond the end of a mapped file kills the process."""
        num_bytes = (Path(self.directory) / "data.mdb").stat().st_size
        expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if num_bytes < expected:
            raise UserError(f"{self.directory}: data.mdb is truncated; it has {num_bytes:,} bytes instead of {expected:,}. Fetch it again")


def official_imagenet64(root: str, split: str) -> FileSource:
    """Open ImageNet-64 of van den Oord et al. (2016): PNG files in `train_64x64` and `valid_64x64`, folders or tars; no labels.

    Raises:
        UserError: The files are not there, or belong to the labelled release.
    """
    if any(Path(root).glob("*_data*.npz")):
        raise UserError(f"{root}: contains the labelled ImageNet-64 (npz files); that is the source 'imagenet64-labelled'")
    stem = "train_64x64" if split == "train" else "valid_64x64"
    return file_source(_first_existing(root, [stem, f"{stem}.tar", f"{stem}.zip"]), name="imagenet64-official", split=split, labels="none")


def ilsvrc2012(root: str, split: str, *, labels: str = "auto") -> FileSource:
    """Open ILSVRC2012: `train` or the tar of tars `ILSVRC2012_img_train.tar`; `val` in folders, or the flat tar with a table.

    Args:
        split: "train" or "test" (the 50,000 validation images).
        labels: "none" for no labels; for a flat validation split, the address of a table; see `training.data.sources.labels`.

    Raises:
        UserError: The files are not there.
    """
    stem = "train" if split == "train" else "val"
    uri = _first_existing(root, [stem, f"ILSVRC2012_img_{stem}.tar", f"{stem}.tar", f"{stem}.zip"])
    in_folders = labels == "auto" or (split == "train" and labels != "none")
    return file_source(uri, name="imagenet", split=split, labels="folders" if in_folders else labels)


def lsun_splits(name: str, root: str) -> dict[str, Source]:
    """Open the splits of one category of LSUN that are in a folder.

    Args:
        name: Like "lsun-bedroom"; "lsun-church-outdoor" or "lsun-church_outdoor" for the files of `church_outdoor`.

    Raises:
        UserError: There is no training split.
    """
    category = name.removeprefix("lsun-")
    if not (Path(root) / f"{category}_train_lmdb").is_dir():
        category = category.replace("-", "_")
    folders = {"train": Path(root) / f"{category}_train_lmdb", "test": Path(root) / f"{category}_val_lmdb"}
    if not folders["train"].is_dir():
        raise UserError(f"{root}: contains no folder {category}_train_lmdb")
    name = name.replace("_", "-")  # the name of a data set has no underscore
    return {split: Lsun(str(folder), name=name, split=split) for split, folder in folders.items() if folder.is_dir()}


PUBLISHED: dict[str, Callable[[str, str], Source]] = {
    "digits": lambda _, split: digits(split),
    "digits-few": lambda _, split: few_digits(split),
    "cifar10": Cifar10,
    "fashion-mnist": FashionMnist,
    "imagenet64-official": official_imagenet64,
    "imagenet64-labelled": LabelledImageNet64,
    "imagenet": ilsvrc2012,
}
"""Published data sets by name: folder and split to source."""

NEED_NO_FOLDER = {"digits", "digits-few", "cifar10", "fashion-mnist"}
READ_S3 = {"fashion-mnist"}
"""Published data sets whose folder may be an S3 prefix."""


def _first_existing(root: str, names: Sequence[str]) -> str:
    for name in names:
        if (Path(root) / name).exists():
            return str(Path(root) / name)
    raise UserError(f"{root}: contains none of {', '.join(names)}")
