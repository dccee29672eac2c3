"""Image files in a folder, an S3 prefix, a zip or a tar: listed once, each read by where it lies."""

from __future__ import annotations

import contextlib
import os
import tarfile
import zipfile
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from training import storage
from training.data.cache.archives import local_archive
from training.data.images.decoding import ImageError
from training.data.sources.labels import assign_labels, outer_folders
from training.data.sources.source import Item, Listing, Reader, Source, SourceError

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"])
"""What counts as an image by its name; anything else in a folder or archive is left alone."""


TEST_FOLDERS = ("test", "val", "valid", "validation")
"""What a folder of test images is called, where it lies beside one that is called train."""


class FileSource(Source):
    """Image files with names, whose labels follow from the names or a table.

    Attributes:
        class_names: Names of the labels, where another split has fixed them; empty takes what is found.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, uri: str, *, name: str, split: str, labels: str = "auto") -> None:
        """Args: where the files are; what to call the data set; which split this is; see `training.data.sources.labels`."""
        self.uri = uri
        self.name = name
        self.split = split
        self.labels = labels

    @property
    def place(self) -> str:
        """The address."""
        return self.uri

    def listing(self) -> Listing:
        """Every image file, sorted by name."""
        found = sorted(item for item in self.find() if is_image_name(item[0]))
        if not found:
            raise SourceError(f"{self.uri}: holds no image (no name ends in {', '.join(sorted(IMAGE_SUFFIXES))})")
        folders = set(outer_folders([key for key, _, _, _ in found]))
        if "train" in folders and folders.intersection(TEST_FOLDERS) and folders <= {"train", *TEST_FOLDERS}:
            raise SourceError(
                f"{self.uri}: holds training and test images ({', '.join(sorted(folders))}); name the folder in which these lie "
                "(unpack an archive first), or each by itself"
            )
        labels, class_names = assign_labels([key for key, _, _, _ in found], self.labels, self.class_names)
        items = [Item(key, label, *rest) for (key, *rest), label in zip(found, labels, strict=True)]
        return Listing(items, class_names)

    @abstractmethod
    def find(self) -> Iterator[tuple[str, int, Any, str]]:
        """Name, size, locator and version of every file; another file of the same name has another version."""


def is_image_name(key: str) -> bool:
    """Whether the name is an image's, and not one of those that archivers and editors hide beside images."""
    path = PurePosixPath(key)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


class FolderSource(FileSource):
    """A folder on a disk that every worker sees, at any depth; links are followed."""

    def find(self) -> Iterator[tuple[str, int, str, str]]:
        """Walks the folder."""
        root = Path(self.uri)
        seen = set()
        for directory, folders, names in os.walk(root, followlinks=True, onerror=_refuse):
            real = os.path.realpath(directory)
            if real in seen:  # a link that leads back up
                folders.clear()
                continue
            seen.add(real)
            for name in names:
                path = Path(directory) / name
                key = os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")
                try:
                    status = path.stat()
                except OSError:  # a link to nothing: reading it will say so, if it is wanted
                    yield key, 0, str(path), ""
                else:
                    yield key, status.st_size, str(path), str(status.st_mtime_ns)

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        """Reads whole files."""
        yield _read_path


class BucketSource(FileSource):
    """Everything below an S3 prefix."""

    concurrency = 16

    def find(self) -> Iterator[tuple[str, int, str, str]]:
        """Lists the prefix."""
        prefix = self.uri.rstrip("/") + "/"
        for uri, num_bytes, version in storage.list_objects(self.uri):
            yield uri.removeprefix(prefix), num_bytes, uri, version

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        """Reads whole objects."""
        yield _read_object


class ZipSource(FileSource):
    """A zip file; one in S3 is copied once to each node that works."""

    def find(self) -> Iterator[tuple[str, int, str, str]]:
        """Reads the central directory."""
        with self._opened() as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    if entry.flag_bits & 1:
                        raise SourceError(f"{self.uri}: {entry.filename} is encrypted; unpack it first")
                    yield entry.filename, entry.file_size, entry.filename, f"{entry.CRC:08x}"

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        """Unpacks one member at a time."""
        with self._opened() as archive:

            def read(name: str) -> bytes:
                try:
                    return archive.read(name)
                except (zipfile.BadZipFile, ValueError, EOFError) as error:
                    raise ImageError(f"is damaged in the archive ({error})") from error

            yield read

    @contextlib.contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with local_archive(self.uri) as path, zipfile.ZipFile(path) as archive:
                yield archive
        except zipfile.BadZipFile as error:
            raise SourceError(f"{self.uri}: is not a whole zip file ({error}); copy it again") from error


class TarSource(FileSource):
    """A tar, with tars inside as ILSVRC2012 has them: the inner one's name becomes a folder.

    A compressed one is unpacked to a plain tar once on each node that works, because a compressed stream can't be
    entered in the middle.
    """

    def find(self) -> Iterator[tuple[str, int, tuple[int, int], str]]:
        """Reads the headers only, also those inside."""
        version = storage.version(self.uri)  # a header says nothing about the content
        try:
            with local_archive(self.uri) as path, tarfile.open(path, "r:") as archive:
                for key, num_bytes, locator in self._members(archive, "", 0):
                    yield key, num_bytes, locator, version
        except (tarfile.TarError, EOFError) as error:
            raise SourceError(f"{self.uri}: is not a whole tar file ({error}); copy it again") from error

    def _members(self, archive: tarfile.TarFile, folder: str, base: int) -> Iterator[tuple[str, int, tuple[int, int]]]:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all, and typeshed hides them
            if not member.isfile():
                continue
            name = member.name.removeprefix("./").lstrip("/")
            if name.endswith(".tar"):
                inside = archive.extractfile(member)
                with tarfile.open(fileobj=inside, mode="r:") as inner:
                    yield from self._members(inner, f"{folder}{PurePosixPath(name).stem}/", base + member.offset_data)
            else:
                yield folder + name, member.size, (base + member.offset_data, member.size)
        _require_end(archive)

    @contextlib.contextmanager
    def open(self) -> Iterator[Reader]:
        """Reads by offset."""
        with local_archive(self.uri) as path, path.open("rb") as file:
            yield lambda locator: _read_part(file, *locator)


def file_source(uri: str, *, name: str, split: str, labels: str = "auto") -> FileSource:
    """The source for what lies at that address.

    Raises:
        SourceError: It is none of a folder, an S3 prefix, a zip or a tar, or there is nothing.
    """
    lower = uri.lower()
    kind: type[FileSource]
    if lower.endswith(".zip"):
        kind = ZipSource
    elif lower.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        kind = TarSource
    elif storage.is_s3(uri):
        return BucketSource(uri, name=name, split=split, labels=labels)
    elif (folder := storage.local_path(uri)).is_dir():
        return FolderSource(str(folder), name=name, split=split, labels=labels)
    else:
        raise SourceError(
            f"{uri}: is neither a folder nor a .zip or .tar" if folder.exists() else f"{uri}: there is no such file or folder"
        )
    if not storage.exists(uri):
        raise SourceError(f"{uri}: there is no such file")
    return kind(uri, name=name, split=split, labels=labels)


def _require_end(archive: tarfile.TarFile) -> None:
    """Looks for the empty block that ends a tar: tarfile takes a damaged header, or none, for the end."""
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged or cut off at byte {archive.offset:,}")


def _refuse(error: OSError) -> None:
    raise SourceError(f"{error.filename}: can't be listed ({error.strerror})") from error


def _read_path(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"can't be read ({error.strerror})") from error


def _read_object(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except storage.ObjectNotFoundError as error:
        raise ImageError("is gone since it was listed") from error


def _read_part(file: IO[bytes], offset: int, num_bytes: int) -> bytes:
    file.seek(offset)
    return file.read(num_bytes)
