"""Decide what of a storage root is in use, referenced or garbage: a function of its listing, of MLflow's records and of the time.

A reference is any text that contains an address of a run's or sweep's directory, or of something in it: a tag or parameter of a run that
MLflow shows, a registered version, or a file of a directory that stays (an evaluation, a sweep's plan and trials, a nightly history). Only
the part from `runs/` on is compared. So a text can count as a reference by mistake; a real reference is never missed.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from components.launch.logs import PIPELINES
from evaluation.records.run_directory import CHOICE, DELETING, EVALUATIONS, RESULT, SAMPLES
from training import storage
from training.checkpoints.checkpoint import COMPLETE
from training.config.errors import UserError
from training.tracking.references import Records

State = Literal["live", "referenced", "unknown", "garbage"]

# A look ahead: each match may lie in another, as in "s3://ml-pipelines/runs/KEY", where the storage root's own address looks like one.
_ADDRESS = re.compile(r"(?=((?:runs|ablations|tunings|pipelines)/[^\s\"'`,;()<>\\\]]+))")
_DIRECTORY = re.compile(r"((?:runs|ablations|tunings|pipelines)/[^/]+)/(.+)")
_CHECKPOINT = re.compile(r"((?:rebuilt/[^/]+/)?checkpoints/step=\d{8})/[^/]+$")
_INTERMEDIATE = re.compile(rf"((?:{EVALUATIONS}/work|{SAMPLES}/images)-[^/]+)/")
_GUIDE = re.compile(r'"guidance_step":\s*(\d+)')
"""A sampling that is guided by an earlier checkpoint of the same run names that by its step."""
_OWN = re.compile(r'"(?:best_checkpoint|checkpoint|images)_uri":\s*"[^"]*/(checkpoints/step=\d{8}|samples/images-[^"/]+)/?"')
"""A run that was copied names its own checkpoints and images by the addresses of its first place."""
# The score of a checkpoint and a candidate of the final choice do not outlive the checkpoint by design.
_RECORD = re.compile(
    rf"(?:{EVALUATIONS}/(?!step=|choose-)[^/]+\.json|trials/[^/]+\.json|plan\.json|experiment\.json|nightly/history\.json|{RESULT})$"
)

_SMALL_FILES = re.compile(r"(rayjobs/[^/]+|runs-told/[^/]+)")
_KEPT = {"rayjobs": "calls and answers of steps; each goes by its age", "runs-told": "messages of the webhook; each goes by its age"}
_SMALL_FILES_DAYS = 30.0
"""No step of a run and no message waits for so long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """The rules of what may be deleted.

    Attributes:
        days: Nothing is deleted from a directory in which something was written in the last `days`.
        grace_hours: What becomes garbage stays for this long, as a reader may have found it just before; and a directory with a write in
            this time counts as live.
        max_bytes: Delete nothing while the storage root is not larger than this.
        include_unknown: Count directories as garbage that MLflow has never heard of and nothing names.

    Raises:
        UserError: A time is no number of 0 or more. No age is less than NaN, so such a policy would spare nothing.
    """

    days: float = 30.0
    grace_hours: float = 24.0
    max_bytes: int = 0
    include_unknown: bool = False

    def __post_init__(self) -> None:
        """Check the times."""
        for name, value in (("days", self.days), ("grace_hours", self.grace_hours)):
            if not 0 <= value < math.inf:
                raise UserError(f"{name}: {value} is no time; write a number of 0 or more")

    @property
    def idle_seconds(self) -> float:
        """Seconds without a write after which a directory may lose something."""
        return max(self.days * 86_400, self.grace_seconds)

    @property
    def grace_seconds(self) -> float:
        """The grace time in seconds."""
        return self.grace_hours * 3600

    @property
    def small_files_seconds(self) -> float:
        """Seconds after which a told message, and the call and answer of a step that was a job on Ray, serve nothing."""
        return max(self.idle_seconds, _SMALL_FILES_DAYS * 86_400)


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """A directory that nothing needs.

    Attributes:
        modified: Time of the last write in the run or sweep that it belongs to, in seconds since 1970.
    """

    name: str
    num_bytes: int
    reason: str
    modified: float

    @property
    def owner(self) -> str:
        """Address of the run or sweep that it belongs to, or is."""
        return "/".join(self.name.split("/")[:2])


@dataclass(frozen=True, kw_only=True, slots=True)
class Directory:
    """A run or a sweep, or with the state "kept" all else that the storage root contains under one name.

    Attributes:
        name: Its address below the storage root, such as "runs/digits-0123456789ab".
        modified: Time of the last write, in seconds since 1970.
    """

    name: str
    num_bytes: int
    modified: float
    state: State | Literal["kept"]
    reason: str
    garbage: tuple[Garbage, ...] = ()


class Files:
    """The files of one run or sweep: path in it -> size and time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.by_path: dict[str, storage.Stored] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(stored.num_bytes for stored in self.by_path.values())

    @property
    def modified(self) -> float:
        """Time of the last write of anything but the mark of a deletion."""
        return max((stored.modified for path, stored in self.by_path.items() if path != DELETING), default=0.0)

    def groups(self, pattern: re.Pattern[str]) -> dict[str, list[str]]:
        """Return the directories that a pattern's first group names -> their paths."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in self.by_path:
            if match := pattern.match(path):
                found[match[1]].append(path)
        return dict(found)


def named_in(texts: Iterable[str]) -> set[str]:
    """Return the addresses below a storage root that texts contain, and the directories in which these lie."""
    found = {address.rstrip("./:") for text in texts for address in _ADDRESS.findall(text)}
    return found | {address[:end] for address in found for end, letter in enumerate(address) if letter == "/"}


def named_by(records: Records, *, running: bool = False) -> set[str]:
    """Return `named_in` of MLflow's records; with `running`, of running runs alone."""
    shown = [run for run in records.runs if not run.is_deleted]
    if running:
        return named_in(text for run in shown if run.is_running for text in run.texts)
    return named_in([*records.registered, *(text for run in shown for text in run.texts)])


def group(root_uri: str, stored: Iterable[storage.Stored]) -> tuple[list[Files], dict[str, int]]:
    """Return the runs and sweeps below a storage root, and the bytes of all else by its first name."""
    found: dict[str, Files] = {}
    others: dict[str, int] = defaultdict(int)
    prefix = f"{root_uri.rstrip('/')}/"
    for entry in stored:
        path = entry.uri.removeprefix(prefix)
        if match := _DIRECTORY.match(path):
            found.setdefault(match[1], Files(match[1])).by_path[match[2]] = entry
        else:
            others[path.partition("/")[0]] += entry.num_bytes
    return list(found.values()), dict(others)


def survey(
    root_uri: str,
    stored: Sequence[storage.Stored],
    records: Records,
    policy: Policy,
    *,
    now: float,
    read: Callable[[Sequence[str]], list[str]],
) -> list[Directory]:
    """Return every directory below a storage root, with its state and its garbage.

    Args:
        now: The time, in seconds since 1970.
        read: Returns the texts of files, by URI.
    """
    all_files, others = group(root_uri, stored)
    running = named_by(records, running=True)
    named = named_by(records)
    working = _texts_of_running(records)  # one of them, a tag, is the id of the pipeline's run
    shown = {storage.absolute(run.directory_uri) for run in records.runs if run.directory_uri and not run.is_deleted}
    deleted = {storage.absolute(run.directory_uri) for run in records.runs if run.directory_uri and run.is_deleted} - shown

    def state_of(files: Files) -> tuple[State, str]:
        if files.name in running or files.name.removeprefix(f"{PIPELINES}/") in working:
            return "live", "MLflow shows a run that works on it"
        if files.modified > now - policy.grace_seconds:
            return "live", f"written to in the last {policy.grace_hours:g} h"
        if files.name in named:
            return "referenced", "MLflow, the registry or a kept directory names it"
        if files.name.startswith(f"{PIPELINES}/"):
            return "garbage", "logs of a pipeline's run, which nothing names"
        is_deleted = storage.join(root_uri, files.name) in deleted
        if is_deleted or policy.include_unknown:
            return "garbage", "deleted in MLflow, and nothing names it" if is_deleted else "MLflow does not know it, and nothing names it"
        return "unknown", "MLflow has never heard of it"

    remaining = all_files
    while True:  # what stays, for ever or for the time being, may name what would go
        staying = [files for files in remaining if state_of(files)[0] != "garbage" or files.modified > now - policy.idle_seconds]
        if not staying:
            break
        names = {files.name for files in staying}
        remaining = [files for files in remaining if files.name not in names]
        entries = [(files.name, entry.uri) for files in staying for path, entry in files.by_path.items() if _RECORD.match(path)]
        for (owner, _), text in zip(entries, read([uri for _, uri in entries]), strict=True):
            own = [*_OWN.findall(text), *(f"checkpoints/step={int(step):08d}" for step in _GUIDE.findall(text))]
            named |= named_in([text]) | {f"{owner}/{path}" for path in own}
    directories = []
    for files in all_files:
        state, reason = state_of(files)
        directories.append(
            Directory(
                name=files.name,
                num_bytes=files.num_bytes,
                modified=files.modified,
                state=state,
                reason=reason,
                garbage=tuple(_garbage(files, state, reason, named)) if state in ("referenced", "garbage") else (),
            )
        )
    directories += [
        Directory(name=name, num_bytes=size, modified=0.0, state="kept", reason=_KEPT.get(name, "shared; never deleted"))
        for name, size in others.items()
    ]
    return sorted(directories, key=lambda directory: (directory.state == "kept", directory.name))


def outdated(root_uri: str, stored: Iterable[storage.Stored], records: Records, policy: Policy, *, now: float) -> list[storage.Stored]:
    """Return the small files that runs of pipelines leave beside their directories and that nothing reads any more.

    They are the messages that the webhook was sent (`runs-told/`), and calls and answers of steps that were jobs on Ray (`rayjobs/`).
    The messages of a running run stay, however old.
    """
    working = _texts_of_running(records)
    together: dict[str, list[storage.Stored]] = defaultdict(list)
    for entry in stored:
        if match := _SMALL_FILES.match(entry.uri.removeprefix(f"{root_uri.rstrip('/')}/")):
            together[match[1]].append(entry)
    return [
        entry
        for name, files in together.items()
        if max(file.modified for file in files) < now - policy.small_files_seconds
        and not any(name.startswith(f"runs-told/{text}") for text in working if text)
        for entry in files
    ]


def _texts_of_running(records: Records) -> set[str]:
    return {text for run in records.runs if run.is_running and not run.is_deleted for text in run.texts}


def _garbage(files: Files, state: State, reason: str, named: set[str]) -> Iterable[Garbage]:
    """Return what of a referenced directory can go, or the whole of one that is garbage."""

    def garbage(path: str, paths: Iterable[str], reason: str) -> Garbage:
        size = sum(files.by_path[each].num_bytes for each in paths)
        return Garbage(name=f"{files.name}/{path}".rstrip("/"), num_bytes=size, reason=reason, modified=files.modified)

    if state == "garbage":
        yield garbage("", files.by_path, reason)
        return
    checkpoints = files.groups(_CHECKPOINT)
    complete = {path for path in checkpoints if f"{path}/{COMPLETE}" in files.by_path}
    last = max((path for path in complete if path.startswith("checkpoints/")), default="")
    is_chosen = RESULT in files.by_path and f"{EVALUATIONS}/{CHOICE}" in files.by_path
    for path, paths in sorted(checkpoints.items()):
        if f"{files.name}/{path}" in named:
            continue
        if path not in complete:
            yield garbage(path, paths, "incomplete checkpoint")
        elif path.startswith("rebuilt/"):
            yield garbage(path, paths, "rebuilt average, which can be rebuilt")
        elif is_chosen and path != last:
            yield garbage(path, paths, "neither the best nor the last checkpoint, and nothing names it")
    if RESULT in files.by_path:
        for path, paths in sorted(files.groups(_INTERMEDIATE).items()):
            if f"{files.name}/{path}" not in named:
                yield garbage(path, paths, "intermediate results of an evaluation")
