"""Delete garbage from a storage root, beside trainings that run.

What a look finds to be garbage is noted with the time in `<root>/gc/seen.json`. A later look deletes it, once it has been garbage for
the grace time without interruption: a reader that found it before has finished by then. Just before, the directory is listed again, and
MLflow is asked again, once for a few runs and sweeps together: it may have thousands of runs. The directory of a whole run is marked
before that (`deleting.json`), and a training that starts there refuses it after its own first write: of the two, one sees what the other
wrote. Just before the first deletion all of these directories are listed again. One that is written to after that stays; but what only
it names may be deleted already.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from components.launch.logs import PIPELINES
from components.retention.survey import Directory, Garbage, Policy, group, outdated, survey
from evaluation.records.run_directory import DELETING, EVALUATIONS, RESULT
from training import storage
from training.checkpoints.checkpoint import COMPLETE
from training.config.errors import UserError
from training.console import say
from training.tracking.references import Records, read_records

T = TypeVar("T")

SEEN = "gc/seen.json"
_OWNERS_AT_ONCE = 20
"""Runs and sweeps for which MLflow's records are read once."""


@dataclass(kw_only=True, slots=True)
class Collection:
    """A look at a storage root, and what was deleted.

    Attributes:
        directories: Everything below the storage root, as it was found.
        deletable: Garbage that may be deleted now.
        waiting: Other garbage -> the time from which it may be, in seconds since 1970.
        spared: What was about to be deleted when something began to need it.
        outdated: Small files that nothing reads any more; with `delete` they are deleted.
    """

    directories: list[Directory]
    deletable: list[Garbage]
    waiting: dict[Garbage, float]
    deleted: list[Garbage] = field(default_factory=list)
    spared: list[Garbage] = field(default_factory=list)
    outdated: list[storage.Stored] = field(default_factory=list)


def collect(
    root_uri: str,
    policy: Policy,
    *,
    delete: bool = False,
    records: Callable[[], Records] = read_records,
    clock: Callable[[], float] = time.time,
) -> Collection:
    """Look at a storage root; with `delete`, delete the garbage that an earlier look has seen a grace time ago.

    Args:
        root_uri: The directory that contains `runs/`.
        records: Reads MLflow's records.
        clock: The time, in seconds since 1970.

    Raises:
        UserError: There are no runs, or MLflow is not the one of this storage root.
        TrackingError: MLflow can't be reached; without it nothing is known to be garbage.
        StorageError: The storage can't be read, or refuses to delete.
    """
    root_uri = storage.absolute(root_uri).rstrip("/")
    if not root_uri:  # the storage takes an empty address for the current folder
        raise UserError("the address of the storage root is empty or /; name the directory that contains runs/, like s3://iddpm")
    found = records()  # first: what begins to be written after it is too young to be deleted
    stored = storage.list_objects(root_uri)
    read = functools.cache(_read_text)

    def look(found: Records) -> list[Directory]:
        return survey(root_uri, stored, found, policy, now=clock(), read=lambda uris: _in_parallel(read, uris))

    def look_again() -> set[str]:
        """Return the names of what is garbage by now. A directory that was written to since the first look stays, and what it names."""
        nonlocal found, stored
        found = records()
        whole = {each.name for each in deletable if each.name == each.owner}
        stored = [entry for entry in stored if "/".join(entry.uri.removeprefix(f"{root_uri}/").split("/")[:2]) not in whole]
        stored += [entry for name in sorted(whole) for entry in storage.list_objects(storage.join(root_uri, name))]
        return {each.name for directory in look(found) for each in directory.garbage}

    directories = look(found)
    _require_own_records(root_uri, directories, found)
    garbage = [each for directory in directories for each in directory.garbage]
    names = {each.name for each in garbage}

    def still_garbage() -> set[str]:
        nonlocal found, names
        if (fresh := records()) != found:
            found, names = fresh, {each.name for directory in look(fresh) for each in directory.garbage}
        return names

    seen = _note_seen(root_uri, garbage, clock())
    may_go = {each: max(seen[each.name] + policy.grace_seconds, each.modified + policy.idle_seconds) for each in garbage}
    is_large = sum(directory.num_bytes for directory in directories) > policy.max_bytes
    deletable = sorted((each for each, when in may_go.items() if when <= clock() and is_large), key=lambda each: each.name)
    waiting = {each: when for each, when in may_go.items() if each not in deletable}
    old = outdated(root_uri, stored, found, policy, now=clock()) if is_large else []
    collection = Collection(directories=directories, deletable=deletable, waiting=waiting, outdated=old)
    if delete:
        _in_parallel(storage.delete, [entry.uri for entry in old])
    if delete and deletable:
        names = look_again()
        owners = [list(of_owner) for _, of_owner in itertools.groupby(deletable, key=lambda each: each.owner)]
        for first in range(0, len(owners), _OWNERS_AT_ONCE):
            for of_owner, is_gone in _delete(root_uri, owners[first : first + _OWNERS_AT_ONCE], still_garbage):
                (collection.deleted if is_gone else collection.spared).extend(of_owner)
    return collection


def _require_own_records(root_uri: str, directories: Sequence[Directory], records: Records) -> None:
    """Refuse an MLflow that does not know this storage root: to it, everything here looks like garbage."""
    names = {each.name for each in directories if each.state != "kept" and not each.name.startswith(f"{PIPELINES}/")}
    if not names:
        raise UserError(f"{root_uri}: there are no runs and no sweeps below it; name the storage root, which contains runs/")
    if not any(storage.absolute(run.directory_uri).startswith(f"{root_uri}/") for run in records.runs):
        raise UserError(
            f"MLflow knows none of the {len(names)} runs and sweeps in {root_uri}; is MLFLOW_TRACKING_URI that of their MLflow?"
        )


def _note_seen(root_uri: str, garbage: Sequence[Garbage], now: float) -> dict[str, float]:
    """Return since when each has been garbage without interruption, and store it; a reader without the right to write begins anew."""
    uri = storage.join(root_uri, SEEN)
    try:
        before: dict[str, float] = storage.read_json(uri, dict[str, float])
    except storage.ObjectNotFoundError:
        before = {}
    seen = {each.name: min(before.get(each.name, now), now) for each in garbage}
    if seen != before:
        try:
            storage.write_json(uri, seen)
        except storage.StorageError as error:
            say(f"{error}; the grace time of what was found begins with the first look that can write")
    return seen


def _read_text(uri: str) -> str:
    try:
        return storage.read_bytes(uri).decode(errors="replace")
    except storage.ObjectNotFoundError:
        return ""  # replaced or removed since the listing


def _in_parallel(call: Callable[[str], T], uris: Sequence[str]) -> list[T]:
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(call, uris))


def _delete(
    root_uri: str, owners: Sequence[Sequence[Garbage]], still_garbage: Callable[[], set[str]]
) -> Iterator[tuple[Sequence[Garbage], bool]]:
    """Delete the garbage of some runs and sweeps; yield that of each, and False where something began to need it since it was found."""
    whole = [garbage[0].owner for garbage in owners if any(each.name == each.owner for each in garbage)]
    marks = {owner: storage.join(root_uri, owner, DELETING) for owner in whole}
    try:
        for mark_uri in marks.values():
            storage.write_json(mark_uri, {"since": time.time()})
        names = still_garbage()
        for garbage in owners:
            owner = garbage[0].owner
            if owner in marks:  # a training honours a mark for an hour, which the deletions before this one may have taken
                storage.write_json(marks[owner], {"since": time.time()})
            found, _ = group(root_uri, storage.list_objects(storage.join(root_uri, owner)))
            is_written = any(files.modified > garbage[0].modified for files in found)
            is_needed = is_written or any(each.name not in names for each in garbage)
            mark_uri = marks.pop(owner, "")  # it stays where the deletion is interrupted
            if is_needed and mark_uri:
                storage.delete(mark_uri)
            for each in () if is_needed else garbage:
                _delete_directory(storage.join(root_uri, each.name))
            yield garbage, not is_needed
    finally:
        for mark_uri in marks.values():
            storage.delete(mark_uri)


def _delete_directory(uri: str) -> None:
    """Delete a directory so that an interruption leaves an unfinished run or an incomplete checkpoint, never a damaged one.

    A run's result goes first, then its scores: a training that goes on there would stop early by a score whose checkpoint is gone.
    """
    uris = storage.list_uris(uri)
    for file_uri in uris:
        if file_uri.rpartition("/")[2] == RESULT:
            storage.delete(file_uri)
    storage.delete_prefix(storage.join(uri, EVALUATIONS))
    for file_uri in uris:
        if file_uri.rpartition("/")[2] == COMPLETE:
            storage.delete(file_uri)
    for directory_uri in storage.list_dirs(uri):
        storage.delete_prefix(directory_uri)
    for file_uri in storage.list_uris(uri):
        if file_uri.rpartition("/")[2] != DELETING:
            storage.delete(file_uri)
    storage.delete_prefix(uri)
