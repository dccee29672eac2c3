"""gc, verify: what the storage root contains, what of it may go, and whether it is undamaged."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from pipelines.cli import options
from pipelines.cli.services import connect
from training.config.errors import UserError

if TYPE_CHECKING:
    from components.retention.collect import Collection

_UNITS = {"": 1} | {f"{letter}{end}": base**power for power, letter in enumerate("kMGT", 1) for end, base in (("B", 1000), ("iB", 1024))}


def gc(
    root: str = typer.Argument(..., help="Storage root: the directory that contains runs/, like s3://iddpm."),
    delete: bool = typer.Option(False, "--delete", help="Delete the garbage whose grace time is over; without it nothing is deleted."),
    days: float = typer.Option(30.0, min=0, help="Days without a write after which a run or sweep may lose something."),
    grace_hours: float = typer.Option(24.0, min=0, help="Hours between the look that first finds garbage and the one that deletes it."),
    max_size: str = typer.Option("", help="Delete nothing while the root is not larger than this, like 500GB."),
    include_unknown: bool = typer.Option(False, "--include-unknown", help="Count runs that MLflow has never heard of as garbage."),
    as_json: bool = options.JSON,
) -> None:
    """List what a storage root contains, and what of it is garbage; with --delete, delete garbage that an earlier look found.

    A run stays while MLflow shows it, the registry has it, or a sweep or another run names it: delete a run in MLflow to give it up.
    Of a run that stays, the best, the last and every named checkpoint stay. Data sets and reference statistics are never deleted.
    """
    from components.retention.collect import collect
    from components.retention.survey import Policy

    policy = Policy(days=days, grace_hours=grace_hours, max_bytes=_parse_size(max_size), include_unknown=include_unknown)
    connect()
    found = collect(root, policy, delete=delete)
    if as_json:
        print(json.dumps(_as_dict(found), indent=2))
    else:
        _print(root, found, delete)


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]i?B|)", text.strip())
    if text and match is None:
        raise UserError(f"--max-size {text}: is not a size; write bytes, or a number with kB, MB, GB, TB, kiB, MiB, GiB or TiB, like 500GB")
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0


def _as_dict(found: Collection) -> dict[str, object]:
    return {
        "directories": [dataclasses.asdict(directory) for directory in found.directories],
        "deletable": [each.name for each in found.deletable],
        "waiting": {each.name: _date(when) for each, when in found.waiting.items()},
        "deleted": [each.name for each in found.deleted],
        "spared": [each.name for each in found.spared],
        "outdated": {"files": len(found.outdated), "num_bytes": sum(entry.num_bytes for entry in found.outdated)},
    }


def _print(root: str, found: Collection, delete: bool) -> None:
    from training.console import format_bytes

    rows: list[tuple[str | None, ...]] = [("directory", "state", "size", "last write", "why")]
    rows += [
        (each.name, each.state, format_bytes(each.num_bytes), _date(each.modified) if each.modified else "", each.reason)
        for each in found.directories
    ]
    options.print_table(rows)
    when = dict.fromkeys(found.deleted, "deleted") | dict.fromkeys(found.spared, "needed again, spared")
    when = dict.fromkeys(found.deletable, "now") | {each: f"from {_date(time)}" for each, time in found.waiting.items()} | when
    if when:
        rows = [("garbage", "size", "may go", "why")]
        rows += [(each.name, format_bytes(each.num_bytes), text, each.reason) for each, text in sorted(when.items(), key=_name)]
        print()
        options.print_table(rows)
    total = sum(directory.num_bytes for directory in found.directories)
    old = sum(entry.num_bytes for entry in found.outdated)
    if found.outdated:
        print(f"\n{len(found.outdated)} small files of rayjobs/ and runs-told/, which nothing reads any more: {format_bytes(old)}", end="")
    now, later, gone = (sum(each.num_bytes for each in part) for part in (found.deletable, found.waiting, found.deleted))
    print(f"\n{root}: {format_bytes(total)}", end="")
    if delete:
        print(f"; deleted {format_bytes(gone + old)}, {format_bytes(later)} of garbage wait for their time")
    else:
        print(f"; {format_bytes(now + old)} may be deleted now (--delete does that), {format_bytes(later)} later")


def _name(item: tuple[object, str]) -> str:
    return str(getattr(item[0], "name", ""))


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def verify(
    run: str = typer.Argument(
        ..., help="Directory of a run, a checkpoint or a data set (s3:// or a path), a run's key, runs:/ID, or models:/NAME@ALIAS."
    ),
    as_json: bool = options.JSON,
) -> None:
    """Check every file against its stored size and sha256, and name each damaged one; the exit status is 1 if there is one."""
    from components.retention.verify import verify as check
    from evaluation.records.run_directory import run_uri_of
    from evaluation.selection.resolve import is_tracked, resolve_model

    connect()
    if is_tracked(run):
        run = run_uri_of(resolve_model(run).checkpoint_uri)
    found = check(run)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        for line in found.damaged:
            print(line)
        for uri in found.incomplete:
            print(f"{uri}: is incomplete: it is being written, or that was interrupted; nothing reads it")
        print(
            f"{len(found.damaged)} damaged; compared {found.num_digests} files with their sha256, read {found.num_parsed} JSON files; "
            f"{found.num_unchecked} others have no digest"
        )
    if found.damaged:
        raise typer.Exit(1)
