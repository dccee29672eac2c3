"""Local copies of archives, unpacked once per node for all its processes."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import shutil
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training import storage
from training.config.errors import UserError
from training.data.cache.disk_cache import TMPDIR_REMEDY, CacheEntry, default_cache_dir, explain_local_disk_errors, get_or_make, reserve

_DECOMPRESSORS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@contextlib.contextmanager
def local_archive(uri: str) -> Iterator[Path]:
    """Provide a local, uncompressed file of an archive: itself, or this node's copy; refuse a damaged one, and a disk without room."""
    decompress = _DECOMPRESSORS.get(Path(uri).suffix.lower())
    if decompress is None and not storage.is_s3(uri):
        with storage.open_local(uri) as path:
            yield path
        return

    def make(partial: Path) -> None:
        if decompress is None:
            storage.download(uri, partial)
            return
        with storage.open_local(uri) as packed:
            try:
                with decompress(packed) as source, partial.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            except (zlib.error, EOFError, lzma.LZMAError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise UserError(
                    f"{uri}: is not a whole compressed file ({error}); copy it again, or rename it if it is an archive of another kind"
                ) from error

    version = storage.version(uri)
    entry = _cached_file(f"{uri} {version}", make, storage.size(uri))
    if storage.version(uri) != version:
        entry.path.unlink(missing_ok=True)
        raise UserError(f"{uri}: was overwritten while it was copied to this node; run this again")
    try:
        yield entry.path
    finally:
        entry.release()


def map_npz_array(path: Path, name: str) -> npt.NDArray[Any]:
    """Memory-map one array of an .npz: in place if it is stored uncompressed, else from this node's copy; refuse what is not there."""
    try:
        with zipfile.ZipFile(path) as archive:
            try:
                member = archive.getinfo(f"{name}.npy")
            except KeyError as error:
                names = ", ".join(item.removesuffix(".npy") for item in archive.namelist())
                raise UserError(f"{path}: has no array {name!r}; it has {names}") from error
            if member.compress_type == zipfile.ZIP_STORED:
                return _map_stored(path, member.header_offset)

            def extract(partial: Path) -> None:
                with archive.open(member) as source, partial.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)

            identity = f"{path} {name} {path.stat().st_size} {path.stat().st_mtime_ns}"
            # Another process may evict the file once it is mapped: the mapping stays valid.
            entry = _cached_file(identity, extract, member.file_size)
            mapped: npt.NDArray[Any] = np.load(entry.path, mmap_mode="r", allow_pickle=False)
        return mapped
    except (UserError, storage.StorageError):
        raise
    except (zipfile.BadZipFile, zlib.error, tokenize.TokenError, NotImplementedError, OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: is not a whole .npz file of plain arrays ({error})") from error


def _cached_file(identity: str, make: Callable[[Path], None], num_bytes: int) -> CacheEntry:
    """Return the cached file of that identity, made by `make` if no process made it before, with at least `num_bytes` bytes."""

    def reserve_and_make(partial: Path) -> None:
        with explain_local_disk_errors(partial.parent, TMPDIR_REMEDY):
            with reserve(partial.parent, num_bytes, remedy=TMPDIR_REMEDY):
                pass
            make(partial)

    return get_or_make(default_cache_dir() / f"archive-{hashlib.sha256(identity.encode()).hexdigest()[:32]}", reserve_and_make)


def _map_stored(path: Path, header_offset: int) -> npt.NDArray[Any]:
    with path.open("rb") as file:
        file.seek(header_offset + 26)  # the two lengths in the local header, which may differ from those in the central directory
        lengths = file.read(4)
        start = header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        file.seek(start)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise UserError(f"{path}: contains pickled objects, which could run code; store plain arrays")
        return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order="F" if fortran else "C")
