"""What a study of trained models, or of their samples, leaves: files for people and programs, and its numbers as MLflow draws them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluation.records.protocol_card import as_plain


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """An evaluation, a comparison, a sweep of averages, a replay of early stopping or a file's score, as it is kept.

    Attributes:
        kind: Which.
        title: One line.
        text: What was found, in lines for people.
        models: What was looked at, by what it is called: checkpoints, a run, or a file of samples.
        protocol: The card that the numbers share.
        points: (metric, step) -> value; a number that belongs to no training step is at 0, None is no number.
        files: Name -> content: the page, the numbers with their cards, pictures.
    """

    kind: Literal["evaluation", "comparison", "ema-sweep", "replay-stopping", "score-batch"]
    title: str
    text: str
    models: Mapping[str, str]
    protocol: Mapping[str, Any]
    points: Mapping[tuple[str, int], float | int | None]
    files: Mapping[str, bytes]

    @property
    def key(self) -> str:
        """Names what was found: the same numbers of the same models by the same protocol have the same key, whenever they were taken."""
        points = sorted([name, step, value] for (name, step), value in self.points.items())
        identity = json.dumps([dict(self.models), self.protocol, as_plain(points)], sort_keys=True)
        return f"{self.kind}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

    def write(self, folder: Path) -> str:
        """Writes the files into a folder; returns their paths as one line."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return "  ".join(str(folder / name) for name in self.files)


def as_json(value: Mapping[str, Any]) -> bytes:
    """Plain values as the content of a file."""
    return (json.dumps(value, indent=2) + "\n").encode()
