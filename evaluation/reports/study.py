"""The results of a study of trained models or of samples: files for people and programs, and metrics for MLflow."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training import storage
from training.config.plain import as_plain


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """The results of an evaluation, a comparison, an EMA sweep, a replay of early stopping, a batch score or a search for
    copies.

    Attributes:
        text: The results for a terminal.
        models: Name -> URI of what was studied: checkpoints, a run, or a file of samples.
        protocol: The protocol card that the numbers share.
        points: (metric, step) -> value; the step is 0 for a number that belongs to no training step; the value is None if it is unknown.
        files: Name -> content: the page, the numbers with their cards, pictures.
    """

    kind: Literal["evaluation", "comparison", "ema-sweep", "guidance-sweep", "replay-stopping", "score-batch", "memorisation"]
    title: str
    text: str
    models: Mapping[str, str]
    protocol: Mapping[str, Any]
    points: Mapping[tuple[str, int], float | int | None]
    files: Mapping[str, bytes]

    @property
    def key(self) -> str:
        """Identify the results: the same models, protocol and numbers always give the same key."""
        points = sorted([name, step, value] for (name, step), value in self.points.items())
        identity = json.dumps([dict(self.models), self.protocol, as_plain({"points": points})["points"]], sort_keys=True)
        return f"{self.kind}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

    def write(self, folder: Path) -> str:
        """Write the files into a folder, and return their paths in one line."""
        for name, content in self.files.items():
            storage.write_bytes(str(folder / name), content)
        return "  ".join(str(folder / name) for name in self.files)


def as_json(value: Mapping[str, Any]) -> bytes:
    """Return plain values as the content of a JSON file."""
    return (json.dumps(value, indent=2) + "\n").encode()


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as the content of a CSV file. Its columns are the keys of all of them; a row is empty where it lacks one."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
