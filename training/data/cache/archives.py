"""What a node keeps beside the staged data: local copies of archives, unpacked once for all processes."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from training import storage
from training.data.cache.disk_cache import Hold, default_cache_dir, hold, make_room, making_room
from training.data.sources.source import SourceError

_DECOMPRESSORS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_REMEDY = "free some space there, or point TMPDIR elsewhere"


@contextlib.contextmanager
def local_archive(uri: str) -> Iterator[Path]:
    """A local, uncompressed file of an archive: the file itself, or this node's copy of it.

    Raises:
        SourceError: It is compressed and damaged.
        StorageError: It can't be read, or the disk has no room.
    """
    decompress = _DECOMPRESSORS.get(Path(uri).suffix.lower())
    if decompress is None and not storage.is_s3(uri):
        with storage.open_local(uri) as path:
            yield path
        return

    def make(partial: Path) -> None:
        if decompress is None:
            storage.download(uri, partial)
            return
        with storage.open_local(uri) as packed, _opened(decompress, packed, uri) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)

    version = storage.version(uri)
    held = kept(f"{uri} {version}", make, storage.size(uri))
    if storage.version(uri) != version:
        held.path.unlink(missing_ok=True)
        raise SourceError(f"{uri}: was overwritten while it was copied to this node; run this again")
    try:
        yield held.path
    finally:
        held.release()


def kept(identity: str, make: Callable[[Path], None], num_bytes: int) -> Hold:
    """The file of that identity on this node, made by `make` if no process made it before.

    Args:
        identity: What the file depends on.
        make: Writes it to the path that it is given.
        num_bytes: Its size, or the least that it will be.

    Raises:
        DatasetError: The disk has no room for it.
        SourceError: It had, but not until the end.
    """

    def fill(partial: Path) -> None:
        try:
            with making_room(partial.parent):
                make_room(partial.parent, num_bytes, remedy=_REMEDY)
            make(partial)
        except OSError as error:
            if isinstance(error, storage.StorageError):
                raise
            raise SourceError(f"{partial.parent}: {error.strerror or error}; {_REMEDY}") from error

    return hold(default_cache_dir() / f"archive-{hashlib.sha256(identity.encode()).hexdigest()[:32]}", fill)


def npz_array(path: Path, name: str) -> npt.NDArray[Any]:
    """One array of an .npz, memory-mapped: in place where it is stored plainly, from this node's copy where it is compressed.

    Raises:
        SourceError: The file is no .npz, or has no such array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            try:
                entry = archive.getinfo(f"{name}.npy")
            except KeyError as error:
                names = ", ".join(item.removesuffix(".npy") for item in archive.namelist())
                raise SourceError(f"{path}: has no array {name!r}; it has {names}") from error
            if entry.compress_type == zipfile.ZIP_STORED:
                return _map_stored(path, entry.header_offset)
            identity = f"{path} {name} {path.stat().st_size} {path.stat().st_mtime_ns}"
            # Once mapped it is there even if another process removes its name.
            held = kept(identity, lambda partial: _extract(archive, entry, partial), entry.file_size)
            mapped: npt.NDArray[Any] = np.load(held.path, mmap_mode="r", allow_pickle=False)
        return mapped
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: is not a whole .npz file of plain arrays ({error})") from error


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, partial: Path) -> None:
    with archive.open(entry) as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _map_stored(path: Path, header_offset: int) -> npt.NDArray[Any]:
    with path.open("rb") as file:
        file.seek(header_offset + 26)  # the local header's two lengths, which may differ from the central directory's
        lengths = file.read(4)
        start = header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        file.seek(start)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise SourceError(f"{path}: holds pickled objects, which could run code; store plain arrays")
        return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order="F" if fortran else "C")


@contextlib.contextmanager
def _opened(decompress: Callable[[Path], Any], packed: Path, uri: str) -> Iterator[IO[bytes]]:
    try:
        with decompress(packed) as source:
            yield source
    except (gzip.BadGzipFile, EOFError, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise SourceError(f"{uri}: is not a whole compressed file ({error}); copy it again") from error
