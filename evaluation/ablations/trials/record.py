"""The record of a trial: its model, and the results of its measures. One JSON file a trial."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

from evaluation.ablations.definitions.ablation import setting_of
from evaluation.records.result import EvaluationResult
from evaluation.records.stored import CheckedAs
from training import storage
from training.config.plain import PlainRecord
from training.config.validation import KnownFieldsOnly
from training.console import say

_LONGEST_SLUG = 250
"""With ".json" it makes 255 bytes, the longest file name on most disks."""


@dataclass(kw_only=True)
class _StoredMeasures:
    final: EvaluationResult | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationTrial(KnownFieldsOnly, PlainRecord):
    """One trial, finished or failed.

    Attributes:
        role: Its role among the trials; empty where that does not matter.
        values: Short name -> value of what the ablation varies.
        own: Its own overrides, by which the paper's row is found.
        run_uri: Its run's directory; empty where it failed before it had one.
        checkpoint_uri, weights, step, experiment: What was evaluated; the experiment is the checkpoint's.
        data: Name, digest and counts of the data set.
        measures: Name of a measure -> its result.
        error: Why it failed, in one line; empty where it did not.
        seed: As in `Trial`.
    """

    label: str
    role: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    preset: str = ""
    own: tuple[str, ...] = ()
    run_uri: str = ""
    checkpoint_uri: str = ""
    weights: str = ""
    step: int = 0
    experiment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    measures: Annotated[dict[str, Any], CheckedAs(_StoredMeasures)] = field(default_factory=dict)
    tracking_run_id: str = ""
    error: str = ""
    seed: int | None = None

    @property
    def setting(self) -> str:
        """The label without the seed."""
        return setting_of(self.label, self.seed)

    @property
    def final(self) -> dict[str, Any] | None:
        """The reported evaluation as `EvaluationResult.to_dict` gives it; None where there is none."""
        found: dict[str, Any] | None = self.measures.get("final")
        return found

    @classmethod
    def read(cls, uri: str) -> AblationTrial:
        """Read a record.

        Raises:
            StorageError: There is none, or the file is something else.
        """
        return storage.read_record(uri, cls)


def split_by_seed(records: Iterable[AblationTrial]) -> dict[int | None, list[AblationTrial]]:
    """Return seed -> its records, in their order; an ablation without repeated seeds has them all under None."""
    found: dict[int | None, list[AblationTrial]] = {}
    for record in records:
        found.setdefault(record.seed, []).append(record)
    return found


def record_uri(ablation_uri: str, label: str) -> str:
    """Return the URI of a trial's record."""
    return storage.join(ablation_uri, "trials", f"{slug(label)}.json")


def slug(label: str) -> str:
    """Return a label as a file name; that of a long one ends with its digest."""
    name = re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")
    if len(name) <= _LONGEST_SLUG:
        return name
    digest = hashlib.sha256(label.encode()).hexdigest()[:10]
    return f"{name[: _LONGEST_SLUG - 11]}-{digest}"


def read_record(ablation_uri: str, label: str) -> AblationTrial | None:
    """Read a trial's record; None where there is none, or where it is damaged or of another version of this program."""
    uri = record_uri(ablation_uri, label)
    if not storage.exists(uri):
        return None
    try:
        return AblationTrial.read(uri)
    except storage.StorageError as error:
        say(f"{label}: ignoring its record, which cannot be read ({error})")
        return None
