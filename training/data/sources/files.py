"""Image files in a folder, an S3 prefix, a zip or a tar: listed once, and read in place."""

from __future__ import annotations

import contextlib
import lzma
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from training import storage
from training.config.errors import UserError
from training.data.cache.archives import local_archive
from training.data.images.decode import ImageError
from training.data.sources.labels import assign_labels, images_beside_folders, outer_folders
from training.data.sources.source import Item, Listing, Reader, Source, source_version

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"])
"""Suffixes of image files; other files in a folder or archive are ignored."""

_REFUSED_SUFFIXES = frozenset([".heic", ".heif", ".avif", ".jxl", ".jp2"])
"""Suffixes of photos in formats that are not decoded. They count as images, so that each is refused by name and none is lost."""

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_ARCHIVE_SUFFIXES = (".zip", *_TAR_SUFFIXES, ".rar", ".7z")
"""Suffixes of archives, also of those that are not read."""

TEST_FOLDERS = ("test", "val", "valid", "validation")
"""Names of a folder of test images next to one named "train"."""

_TRAIN_NAMES = {"train", "training"}
_SPLIT_NAMES = {*_TRAIN_NAMES, *TEST_FOLDERS, "testing"}

_MAX_LINKS = 40  # links to links that are followed, as Linux does

_ZIP_DAMAGE = (ValueError, IndexError, OverflowError, struct.error)
"""The errors of Python's reader about names, lengths and places in a zip that can't be."""


class FileEntry(NamedTuple):
    """A file of a source: the fields of an `Item` but its label."""

    key: str
    num_bytes: int
    locator: Any
    version: str
    earlier_version: str = ""


class FileSource(Source):
    """Image files with names; the labels follow from the names or from a table.

    Attributes:
        class_names: Names of the labels, where another split has fixed them; empty takes those that are found.
        outer_uri: Folder of this split's folder, where the listing tells its images beside those of `split_folders`.
        split_folders: Names of the folders of the training and the test images.
    """

    class_names: tuple[str, ...] = ()
    outer_uri: str = ""
    split_folders: tuple[str, ...] = ()

    def __init__(self, uri: str, *, name: str, split: str, labels: str = "auto") -> None:
        """Set the address, the data set's name, the split ("train" or "test") and the rule of `training.data.sources.labels`."""
        self.uri = uri
        self.name = name
        self.split = split
        self.labels = labels

    @property
    def address(self) -> str:
        """The address of the files."""
        return self.uri

    def listing(self) -> Listing:
        """List every image file, sorted by name."""
        entries = list(self.find())
        found = sorted(entry for entry in entries if is_image_name(entry.key))
        hidden = sorted(entry.key for entry in entries if _is_in_hidden_folder(entry.key))
        if not found:
            if hidden:
                raise UserError(
                    f"{self.uri}: contains images in hidden folders alone, like {hidden[0]}; take the dot from the folder's name"
                )
            archives = sorted(key for key, *_ in entries if key.lower().endswith(_ARCHIVE_SUFFIXES) and not _is_hidden(key))
            if archives:
                shown = ", ".join(archives[:3]) + (", ..." if len(archives) > 3 else "")
                raise UserError(
                    f"{self.uri}: contains no image but archives ({shown}); unpack them and name the folder of what was in them"
                )
            raise UserError(f"{self.uri}: contains no image (no name ends in {', '.join(sorted(IMAGE_SUFFIXES))})")
        keys = [entry.key for entry in found]
        folders = set(outer_folders(keys))
        names = {folder.lower() for folder in folders}
        if names & _TRAIN_NAMES and len(names) > 1 and names <= _SPLIT_NAMES:
            raise UserError(
                f"{self.uri}: contains training and test images ({', '.join(sorted(folders))}); call their folders 'train' and 'test' and "
                "name the folder of both (not an archive: unpack it first), or name one of them"
            )
        try:
            labels, class_names = assign_labels(keys, self.labels, self.class_names)
        except UserError as error:
            raise UserError(f"{self.uri}: {error}") from error
        strays = images_beside_folders(keys, self.class_names) if self.labels == "auto" and not class_names else ()
        items = [Item(key, label, *rest) for (key, *rest), label in zip(found, labels, strict=True)]
        table = PurePosixPath(self.labels).name
        others = [key for key, *_ in entries if not is_image_name(key) and not _is_hidden(key) and PurePosixPath(key).name != table]
        others.sort(key=lambda key: (not key.lower().endswith(_ARCHIVE_SUFFIXES), key))
        unused = sorted(filter(is_image_name, _names_beside(self.outer_uri, self.split_folders))) if self.outer_uri else ()
        return Listing(items, class_names, tuple(others), strays, tuple(unused), tuple(hidden))

    @abstractmethod
    def find(self) -> Iterator[FileEntry]:
        """Yield every file, image or not, in any order."""


def _names_beside(uri: str, folders: Collection[str]) -> Iterator[str]:
    """Yield the names of a folder's files without those of the named sub-folders, which may be millions. In S3 only sub-folders count."""
    if storage.is_s3(uri):
        others = [each for each in storage.list_dirs(uri) if each.rpartition("/")[2] not in folders]
        yield from (found.removeprefix(f"{uri.rstrip('/')}/") for each in others for found in storage.list_uris(each))
        return
    root = storage.local_path(uri)
    for child in root.iterdir():
        if child.is_dir() and child.name in folders:
            continue
        for path in paths_below(child, lambda _: None) if child.is_dir() else [child]:
            yield _escaped(os.fsencode(path.relative_to(root).as_posix()))


def is_image_name(key: str) -> bool:
    """Return True for the name of an image; hidden files, which archivers and editors leave next to images, don't count."""
    return _has_image_suffix(key) and not _is_hidden(key)


def _has_image_suffix(key: str) -> bool:
    return PurePosixPath(key).suffix.lower() in IMAGE_SUFFIXES | _REFUSED_SUFFIXES


def _is_hidden(key: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(key).parts)


def _is_in_hidden_folder(key: str) -> bool:
    """Return True for an image that a person may have put into a folder whose name begins with a dot."""
    *folders, name = PurePosixPath(key).parts
    return _has_image_suffix(name) and not _is_hidden(name) and _is_hidden(key) and "__MACOSX" not in folders


class FolderSource(FileSource):
    """A folder on a disk that every worker sees, at any depth; links are followed."""

    def find(self) -> Iterator[FileEntry]:
        """Walk the folder."""
        root = Path(self.uri)
        for path in paths_below(root, _refuse):
            key = _escaped(os.fsencode(path.relative_to(root).as_posix()))
            try:
                status = path.stat()
            except OSError:  # a broken link; if it is an image, reading it raises the error
                yield FileEntry(key, 0, str(path), "")
            else:
                yield FileEntry(key, status.st_size, str(path), str(status.st_mtime_ns))

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        """Read whole files."""

        def read(path: str) -> bytes:
            try:
                if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for without end
                    raise ImageError("is a pipe, a socket or a device and not a file; remove it from the folder")
                return Path(path).read_bytes()
            except OSError as error:
                raise ImageError(f"can't be read ({error.strerror})") from error

        yield read


class BucketSource(FileSource):
    """Everything below an S3 prefix."""

    concurrency = 16

    def find(self) -> Iterator[FileEntry]:
        """List the prefix."""
        prefix = self.uri.rstrip("/") + "/"
        for uri, num_bytes, version, _ in storage.list_objects(self.uri):
            yield FileEntry(uri.removeprefix(prefix), num_bytes, uri, version)

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        """Read whole objects."""

        def read(uri: str) -> bytes:
            try:
                return storage.read_bytes(uri)
            except storage.ObjectNotFoundError as error:
                raise ImageError("was removed after it was listed") from error

        yield read


class ZipSource(FileSource):
    """A zip file; one in S3 is copied once to each node that works."""

    def find(self) -> Iterator[FileEntry]:
        """Read the central directory."""
        with self._opened() as archive:
            for entry in archive.infolist():
                if not entry.filename:
                    raise UserError(f"{self.uri}: is not a whole zip file (a name in it is empty); copy it again")
                if not entry.is_dir():
                    if entry.flag_bits & 1:
                        raise UserError(f"{self.uri}: {entry.filename} is encrypted; unpack it first")
                    key = _member_key(entry.filename.replace("\\", "/"))  # some programs for Windows write backslashes
                    yield FileEntry(key, entry.file_size, entry.filename, f"{entry.CRC:08x}")

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        """Unpack one member at a time."""
        with self._opened() as archive:

            def read(name: str) -> bytes:
                try:
                    return archive.read(name)
                except NotImplementedError as error:
                    raise ImageError("is compressed by a method that Python can't undo; unpack the archive first") from error
                except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, *_ZIP_DAMAGE) as error:
                    raise ImageError(f"is damaged in the archive ({error})") from error

            yield read

    @contextlib.contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        with contextlib.ExitStack() as stack:
            path = stack.enter_context(local_archive(self.uri))
            try:
                archive = stack.enter_context(zipfile.ZipFile(path))
            except (zipfile.BadZipFile, NotImplementedError, *_ZIP_DAMAGE) as error:
                raise UserError(
                    f"{self.uri}: is not a whole zip file ({error}); copy it again, or rename it if it is an archive of another kind"
                ) from error
            yield archive


class TarSource(FileSource):
    """A tar, with tars inside as ILSVRC2012 has them: the name of an inner tar becomes a folder.

    A compressed one is unpacked to a plain tar once per node, because a compressed stream can't be read from the middle.
    """

    def find(self) -> Iterator[FileEntry]:
        """Read only the headers, including those of inner tars."""
        versions = source_version(self.uri), storage.version(self.uri)  # a header contains no checksum of the content
        try:
            with local_archive(self.uri) as path, tarfile.open(path, "r:", encoding="utf-8") as archive:
                for key, place in self._members(archive, "", 0):
                    yield FileEntry(key, place[1] if place else 0, place, *versions)
        except (tarfile.TarError, EOFError) as error:
            raise UserError(
                f"{self.uri}: is not a whole tar file ({error}); copy it again, or rename it if it is an archive of another kind"
            ) from error

    def _members(self, archive: tarfile.TarFile, folder: str, base: int) -> Iterator[tuple[str, tuple[int, int] | None]]:
        """Yield key and place (offset, size) of every file; a link has the place of its target, or None where that is missing."""
        places: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        inner_tars: dict[str, tarfile.TarInfo] = {}
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would collect them all, and typeshed hides them
            key = _member_key(member.name)
            if member.issparse():
                raise UserError(f"{self.uri}: {key} is stored without its zeros; make the archive without --sparse")
            if member.islnk():
                links[key] = _member_key(member.linkname)
            elif member.issym():
                links[key] = _member_key(posixpath.normpath(posixpath.join(posixpath.dirname(key), member.linkname)))
            elif member.isfile() and key.endswith(".tar") and not _is_hidden(key):
                inner_tars[key] = member
            elif member.isfile():
                places[key] = base + member.offset_data, member.size
                yield folder + key, places[key]
        _require_end(archive)
        for key, target in links.items():
            for _ in range(_MAX_LINKS):
                target = links.get(target, target)
            yield folder + key, places.get(target)
        parents = {posixpath.dirname(key) for key in inner_tars}
        # A folder with all inner tars and nothing beside them is left out: earlier releases did, and find their data sets by the keys.
        is_left_out = len(parents) == 1 and all(key.startswith(f"{parent}/") for parent in parents for key in (*places, *links))
        for key, member in inner_tars.items():
            name = posixpath.basename(key) if is_left_out else key
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:", encoding="utf-8") as inner:
                yield from self._members(inner, f"{folder}{name.removesuffix('.tar')}/", base + member.offset_data)

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        """Read by offset."""
        with local_archive(self.uri) as path, path.open("rb") as file:
            yield lambda place: _read_part(file, place)


def file_source(uri: str, *, name: str, split: str, labels: str = "auto") -> FileSource:
    """Return the source for the files at that address: a folder, an S3 prefix, a zip or a tar; refuse any other."""
    if not storage.is_s3(uri) and (folder := storage.local_path(uri)).is_dir():  # also where it is named like an archive
        return FolderSource(str(folder), name=name, split=split, labels=labels)
    lower = uri.lower()
    kind: type[FileSource]
    if lower.endswith(".zip"):
        kind = ZipSource
    elif lower.endswith(_TAR_SUFFIXES):
        kind = TarSource
    elif storage.is_s3(uri):
        return BucketSource(uri, name=name, split=split, labels=labels)
    else:
        reason = "is neither a folder nor a .zip or .tar" if folder.exists() else "there is no such file or folder"
        raise UserError(f"{uri}: {reason}; check the address")
    if not storage.exists(uri):
        raise UserError(f"{uri}: there is no such file; check the address")
    return kind(uri, name=name, split=split, labels=labels)


def _require_end(archive: tarfile.TarFile) -> None:
    """Check for the empty block that ends a tar; tarfile takes a damaged or missing header for the end."""
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged or cut off at byte {archive.offset:,}")


def paths_below(root: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """Yield what is no folder, at any depth, with links to folders followed; `on_error` is called for a folder that can't be listed."""
    for directory, folders, names in os.walk(root, followlinks=True, onerror=on_error):
        folders[:] = [name for name in folders if not _is_loop(Path(directory) / name, root)]
        yield from (Path(directory) / name for name in names)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: can't be listed ({error.strerror})") from error


def _is_loop(folder: Path, root: Path) -> bool:
    """Return True for a link to a folder above it, also above the root: below that, all images would be found a second time."""
    if not folder.is_symlink():
        return False
    within = (root / above for above in folder.relative_to(root).parents)
    return any(folder.samefile(above) for above in (*within, *root.resolve().parents))


def _member_key(name: str) -> str:
    """Return the name under which a member of an archive is unpacked, below the folder it is unpacked to."""
    name = "/".join(part for part in name.split("/") if part not in ("", ".", ".."))
    return _escaped(name.encode("utf-8", "surrogateescape"))  # not as this machine's locale encodes it


def _escaped(name: bytes) -> str:
    """Return a file name with the bytes that are not UTF-8 as backslash and number."""
    return name.decode("utf-8", "backslashreplace")


def _read_part(file: IO[bytes], place: tuple[int, int] | None) -> bytes:
    if place is None:
        raise ImageError("is a link to no file of the archive")
    offset, num_bytes = place
    file.seek(offset)
    return file.read(num_bytes)
