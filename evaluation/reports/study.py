"""The results of a study of trained models or of samples: files for people and programs, and metrics for MLflow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluation.records.protocol_card import as_plain
from training import storage


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
