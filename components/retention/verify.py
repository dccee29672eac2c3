"""Check every file of a run or of a data set against the digests that were stored with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from components.steps.runs import EXPERIMENT
from training import storage
from training.checkpoints import checkpoint
from training.config.errors import UserError, in_one_line
from training.config.experiment import Experiment
from training.config.validation import parse_json
from training.data.format.manifest import MANIFEST, read_manifest
from training.tracking.metrics_file import METRICS, parse_metrics

_CHECKPOINT = re.compile(r"(.*/step=\d{8})/[^/]+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The check of a directory.

    Attributes:
        num_digests: Files whose size and sha256 were compared.
        num_parsed: JSON files without a digest, which can be parsed.
        num_unchecked: Other files, which have no digest: pictures, arrays, logs.
        damaged: Each damaged file, with what is wrong.
        incomplete: Directories of checkpoints that are being written, or were interrupted; nobody reads them.
    """

    num_digests: int
    num_parsed: int
    num_unchecked: int
    damaged: tuple[str, ...]
    incomplete: tuple[str, ...]


def verify(directory_uri: str) -> Verification:
    """Check all checkpoints, data sets and JSON files at or below a directory.

    A checkpoint's `complete.json` and a data set's manifest have the size and sha256 of each file; other JSON files are parsed.

    Raises:
        UserError: There is nothing to check.
        StorageError: The storage does not answer.
    """
    directory_uri = directory_uri.rstrip("/")
    if not directory_uri:  # the storage takes an empty address for the current folder
        raise UserError("the address is empty or /; name the directory of a run, a checkpoint or a data set")
    uris = set(storage.list_uris(directory_uri))
    checkpoints = sorted({match[1] for uri in uris if (match := _CHECKPOINT.match(uri))})
    data_sets = sorted(uri.removesuffix(f"/{MANIFEST}") for uri in uris if uri.endswith(f"/{MANIFEST}"))
    incomplete = [uri for uri in checkpoints if f"{uri}/{checkpoint.COMPLETE}" not in uris]
    damaged: list[str] = []
    listed = [each for uri in (*checkpoints, *data_sets) if uri not in incomplete for each in _digests(uri, damaged)]
    damaged += [f"{each.uri}: {problem}" for each in listed if (problem := each.problem())]
    lists = {storage.join(uri, checkpoint.COMPLETE) for uri in checkpoints} | {storage.join(uri, MANIFEST) for uri in data_sets}
    others = sorted(uri for uri in uris - lists - {each.uri for each in listed} if not _CHECKPOINT.match(uri))
    parsed = [uri for uri in others if uri.endswith((".json", f"/{METRICS}"))]
    damaged += [f"{uri}: {problem}" for uri in parsed if (problem := _parse(uri))]
    if not (listed or parsed or damaged or incomplete):
        raise UserError(f"{directory_uri}: there is no run, checkpoint or data set there; name the directory of one")
    return Verification(
        num_digests=len(listed),
        num_parsed=len(parsed),
        num_unchecked=len(others) - len(parsed),
        damaged=tuple(damaged),
        incomplete=tuple(incomplete),
    )


@dataclass(frozen=True, slots=True)
class _Digest:
    """A file's size in bytes and its sha256."""

    uri: str
    num_bytes: int
    sha256: str

    def problem(self) -> str:
        """Return what is wrong with the file; empty if nothing is."""
        try:
            with storage.open_local(self.uri) as path:
                found = checkpoint.size_and_sha256(path)
        except storage.ObjectNotFoundError:
            return "is missing"
        if found["num_bytes"] != self.num_bytes:
            return f"has {found['num_bytes']:,} bytes instead of {self.num_bytes:,}"
        return "" if found["sha256"] == self.sha256 else "has another sha256"


def _digests(uri: str, damaged: list[str]) -> Iterator[_Digest]:
    """Yield what the directory's own list of files says; where that list is damaged, say so."""
    if _CHECKPOINT.match(f"{uri}/{checkpoint.COMPLETE}"):
        name = storage.join(uri, checkpoint.COMPLETE)
        try:
            files = storage.read_json(name)["files"]
            yield from (_Digest(storage.join(uri, file), int(each["num_bytes"]), str(each["sha256"])) for file, each in files.items())
        except (storage.StorageError, KeyError, TypeError, ValueError) as error:
            if getattr(error, "transient", False):
                raise
            damaged.append(f"{name}: does not list the checkpoint's files")
        return
    try:
        shards = read_manifest(uri).shards
    except UserError as error:
        damaged.append(str(error))
        return
    yield from (_Digest(storage.join(uri, shard.file), shard.num_bytes, shard.sha256) for shard in shards)


def _parse(uri: str) -> str:
    """Return what is wrong with a file that has no digest; empty if it can be parsed."""
    try:
        text = storage.read_bytes(uri)
    except storage.ObjectNotFoundError:
        return ""  # removed since the listing
    try:
        if uri.endswith(f"/{METRICS}"):
            parse_metrics(text, uri.removesuffix(f"/{METRICS}"))
            return ""
        parse_json(text)
        if uri.endswith(f"/{EXPERIMENT}"):
            Experiment.from_json(text)
    except storage.StorageError as error:  # of the metrics; it names the line
        return str(error).removeprefix(f"{uri}: ")
    except ValueError as error:
        return f"can't be read ({in_one_line(error)})"
    return ""
