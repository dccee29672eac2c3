"""The nightly check of one model: the history of its scores, and the judgement of a night as a pure function of that history.

The history is `<run>/nightly/history.json`. Each night has the parameters by which it was judged, so an old judgement can be replayed
(`History.until`). The order of the nights is what counts: a missing night changes nothing, and a second check on one day is one more
score. A check that is tried again replaces its own night.

Only scores of one protocol are compared. Each checkpoint of a run has its own nights and its own baseline. So a check of one checkpoint
changes nothing for another, and a baseline begins when a model's alias moves within a run. Within the nights of a checkpoint, a changed
protocol begins a new baseline; so does a level that a person accepts (`accept`). Nothing else does.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator

from evaluation.monitoring.detector import Rule, Trace, watch
from evaluation.records.intervals import jackknife_error, jackknife_excess, student_factor
from evaluation.records.paired import Difference
from evaluation.records.result import EvaluationResult
from training import storage
from training.config.errors import UserError
from training.config.validation import adapter

HISTORY = "nightly/history.json"
NUMBERS_VERSION = 1
"""Raise it with a change of the code that changes the distance of the same model on purpose."""


def _read_rule(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a stored rule with the fields of today: the baseline of an earlier version did not grow."""
    return {"max_baseline_nights": 0, **stored}


@dataclass(frozen=True, kw_only=True, slots=True)
class Night:
    """One score of the model.

    Attributes:
        id: Name of the evaluation; a check that is tried again has the same.
        at: Time of the evaluation, UTC.
        distance: The score; None if it is not finite.
        standard_error: Over the draw of samples, by the jackknife; None if unknown.
        excess: Amount by which the squared error is too large (`intervals.jackknife_excess`); None if unknown, as in earlier versions.
        redrawn: The scores from new noise, if the first one was suspicious.
        protocol: What a comparable score has in common with this one; None for scores of earlier versions, which did not record it.
        versions: Packages and device. They are no part of the protocol: a library that makes the model worse has to be found.
        evaluation_uri: The evaluation; empty for scores of earlier versions.
        rule: The parameters by which this night is judged.
    """

    id: str
    at: datetime
    distance: float | None
    standard_error: float | None = None
    excess: float | None = None
    redrawn: tuple[float, ...] = ()
    protocol: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    evaluation_uri: str = ""
    rule: Annotated[Rule, BeforeValidator(_read_rule)] = field(default_factory=Rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """A person's decision that the level of a night, `first_night`, is the new normal."""

    first_night: str
    at: datetime
    by: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """All nights of a run in the order of their checks, whatever the clocks of their machines said, and the accepted levels."""

    nights: tuple[Night, ...] = ()
    accepted: tuple[Acceptance, ...] = ()

    def until(self, night_id: str) -> History:
        """Return the history as it was when that night was judged."""
        nights = self.nights[: [night.id for night in self.nights].index(night_id) + 1]
        return History(nights=nights, accepted=tuple(each for each in self.accepted if each.at <= nights[-1].at))

    def of_checkpoint(self, name: str = "") -> History:
        """Return the history of one checkpoint's weights, named as by `checkpoint_name`; empty takes those of the last night."""
        names = self.checkpoints
        wanted = name if name and any(names) else next(reversed(names), "")
        return dataclasses.replace(self, nights=tuple(night for night, each in zip(self.nights, names, strict=True) if each == wanted))

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The name of each night's checkpoint, as `checkpoint_name` gives it.

        Nights of an earlier version name none. They count as nights of the first checkpoint that is named; "" if none is.
        """
        names = [str((night.protocol or {}).get("checkpoint", "")) for night in self.nights]
        first = next(filter(None, names), "")
        return tuple(name or first for name in names)

    def with_night(self, night: Night) -> History:
        """Return the history with that night, in place of one with the same id."""
        nights = {each.id: each for each in self.nights} | {night.id: night}
        return dataclasses.replace(self, nights=tuple(nights.values()))

    def with_acceptance(self, accepted: Acceptance) -> History:
        """Return the history with that acceptance."""
        return dataclasses.replace(self, accepted=(*(each for each in self.accepted if each != accepted), accepted))


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """The judgement of a history's last night.

    Attributes:
        direction: +1 if the model has become worse, -1 if it has become better, 0 if it is healthy.
        text: The judgement in one sentence, with its numbers.
        since: Time of the first night at the new level; None if healthy.
        change: Mean of the nights since then less the baseline's centre. It is an estimate that is a little too large: an alarm
            is raised when noise adds to the change.
        change_error: Standard error of `change`; NaN where no night is finite.
        baseline_reason: Why the baseline began anew; empty if it did not.
        num_missing: Number of nights without a score since the baseline began, from the usual time between two.
        changed_versions: Packages that differ from the first night's, in words.
        nights: The nights since the baseline began.
        trace: The detector's state after each of them.
    """

    direction: int
    text: str
    since: datetime | None
    change: float
    change_error: float
    baseline_reason: str
    num_missing: int
    changed_versions: tuple[str, ...]
    nights: tuple[Night, ...]
    trace: Trace

    @property
    def night(self) -> Night:
        """The night that is judged."""
        return self.nights[-1]

    @property
    def is_suspicious(self) -> bool:
        """True if the night's first score has to be drawn again."""
        return bool(self.trace.suspicious[-1])

    @property
    def began(self) -> bool:
        """True if the night before was judged otherwise, so that people have to be told."""
        return len(self.nights) == 1 or _direction(self.trace, -2) != self.direction


@dataclass(frozen=True, kw_only=True, slots=True)
class SameNoise:
    """The night's samples beside those of the baseline's first night, from the same noise.

    New noise each night makes scores independent, which the judgement needs. Common noise takes most of the draw out of the difference of
    two nights: it says how much the model has changed, and judges nothing.

    Attributes:
        first: Time of the baseline's first night.
        difference: Tonight's distance less that of the first night.
        first_png, png: Sample grids of the first night and of tonight.
    """

    first: datetime
    difference: Difference
    first_png: bytes
    png: bytes

    def __str__(self) -> str:
        """Return the difference in words."""
        samples = f"{self.difference.num_images:,} samples from the noise of {_day(self.first)}"
        if self.difference.value == 0 and not self.difference.standard_error:
            return f"{samples} have exactly the distance of that night"
        return f"{samples} have a distance that differs from that night's by {self.difference}"


def night_of(result: EvaluationResult, *, name: str, uri: str, rule: Rule, redrawn: tuple[float, ...] = ()) -> Night:
    """Return the night of an evaluation."""
    return Night(
        id=name,
        at=datetime.fromisoformat(result.created_at).astimezone(UTC),
        distance=_finite(result.distance),
        standard_error=_finite(
            jackknife_error(result.distance_without_blocks) if result.distance_of_halves else result.distance_standard_error
        ),
        excess=_finite(jackknife_excess(result.distance_of_halves)),
        redrawn=redrawn,
        protocol=protocol_of(result),
        versions={**result.protocol["versions"], "device": str(result.protocol["device"])},
        evaluation_uri=uri,
        rule=rule,
    )


def protocol_of(result: EvaluationResult) -> dict[str, Any]:
    """Return everything that two comparable scores have in common: the checkpoint, how it is sampled, and what it is compared with."""
    distance = result.protocol["distance"]
    sampled = {name: distance.get(name) for name in ("num_samples", "labels", "low_res", "quantization", "precision")}
    return {
        "checkpoint": checkpoint_name(result.step, result.weights),
        "numbers_version": NUMBERS_VERSION,
        **sampled,
        **{f"sampling.{name}": value for name, value in distance["sampling"].items()},
        **{f"reference.{name}": value for name, value in distance["reference"].items() if name != "class_counts"},
    }


def checkpoint_name(step: int, weights: str) -> str:
    """Return the name of a checkpoint's weights in a night's protocol."""
    return f"step {step}, {weights}"


def judge(history: History, checkpoint: str = "") -> Judgement:
    """Judge the last night of a run's history, or the last one of a checkpoint's weights; raise UserError if there is no such night.

    `checkpoint`: see `History.of_checkpoint`.
    """
    own = history.of_checkpoint(checkpoint)
    if not own.nights:
        others = f" (its run has nights of {'; '.join(dict.fromkeys(history.checkpoints))})" if history.nights else ""
        raise UserError(f"the model has no nightly score yet{others}; `iddpm run nightly-fid --param model=MODEL` scores it once")
    start, reason = _baseline_start(own)
    number = history.nights.index(own.nights[0])
    if number and not reason:
        before, this = history.checkpoints[number - 1 : number + 1]
        reason = f"the nights of {this} begin on {_day(own.nights[0].at)}, after nights of {before}"
    nights = own.nights[start:]
    last = nights[-1]
    redrawn = [statistics.fmean(night.redrawn) if night.redrawn else math.nan for night in nights]
    columns = zip(*((night.distance, night.standard_error, night.excess) for night in nights), strict=True)
    scores, errors, excess = ([math.nan if value is None else value for value in column] for column in columns)
    trace = watch(scores, redrawn, errors, last.rule, excess)
    direction = _direction(trace)
    since = _first_night_of_change(trace, direction)
    pooled = trace.suspicious & np.isfinite(redrawn)  # else the night is its first score
    num_scores = np.where(pooled, [len(night.redrawn) for night in nights], 1)
    is_level = np.isfinite(trace.value) & (np.arange(len(nights)) >= (since if direction else len(nights) - 1))
    num_level = int(is_level.sum())
    change = float(np.mean(trace.value[is_level]) - trace.centre[-1]) if num_level else math.nan
    # The mean weights nights equally, and a night has s^2 / n for the mean of its n scores.
    variance = float((1 / num_scores[is_level]).sum()) / num_level**2 + 1 / max(int(trace.num_baseline[-1]), 1) if num_level else math.nan
    change_error = float(trace.spread[-1]) * math.sqrt(variance)
    return Judgement(
        direction=direction,
        text=_describe(trace, last, direction, change, change_error, nights[since].at, len(nights) - since),
        since=nights[since].at if direction else None,
        change=change,
        change_error=change_error,
        baseline_reason=reason,
        num_missing=_num_missing([night.at for night in nights]),
        changed_versions=tuple(_differences(nights[0].versions, last.versions)),
        nights=nights,
        trace=trace,
    )


def read_history(run_uri: str) -> History | None:
    """Read a model's history; None if there is none yet. A damaged one is a `StorageError`."""
    uri = storage.join(run_uri, HISTORY)
    try:
        return _parse(uri, storage.read_bytes(uri))
    except storage.ObjectNotFoundError:
        return None


def update_history(run_uri: str, change: Callable[[History | None], History]) -> History:
    """Replace a run's history by the result of `change`, and return it. `change` gets the stored history, None if there is none yet.

    Checks of two schedules may end at the same time. Then `change` is called again, with the history that the other check has written.
    """
    uri = storage.join(run_uri, HISTORY)
    changed = History()

    def change_bytes(stored: bytes | None) -> bytes:
        nonlocal changed
        changed = change(None if stored is None else _parse(uri, stored))
        return adapter(History).dump_json(changed, indent=2)

    storage.update_bytes(uri, change_bytes)
    return changed


def _parse(uri: str, stored: bytes) -> History:
    try:
        return storage.parse_record(uri, stored, History)
    except storage.StorageError as error:
        remedy = "restore an earlier version of it, or move it away: then the next night begins a new baseline"
        raise storage.StorageError(f"{error}; {remedy}") from error


def accept(run_uri: str, *, reason: str, by: str, checkpoint: str = "") -> Judgement:
    """Accept the level of the last night: a new baseline begins with it. Return the judgement that is overruled.

    Args:
        checkpoint: See `History.of_checkpoint`.

    Raises:
        UserError: There is no such night, its distance is not finite, or the reason or the name is empty.
    """
    if not (reason.strip() and by.strip()):
        raise UserError("a new level needs a reason and a name: give --reason and --by")
    judgement = judge(read_history(run_uri) or History(), checkpoint)
    if judgement.night.distance is None:
        raise UserError(f"the night {judgement.night.id} has no finite distance, so no baseline can begin with it; check the model again")
    now = datetime.now(UTC).replace(microsecond=0)  # scores have whole seconds too, and one of this second comes after the acceptance
    accepted = Acceptance(first_night=judgement.night.id, at=now, by=by.strip(), reason=reason.strip())
    update_history(run_uri, lambda stored: (stored or History()).with_acceptance(accepted))
    return judgement


def _baseline_start(history: History) -> tuple[int, str]:
    """Return the index of the first night that can be compared with the last one, and why it is not the first of all."""
    start, reason = 0, ""
    accepted = {each.first_night: each for each in history.accepted}
    known: Mapping[str, Any] | None = None
    for index, night in enumerate(history.nights):
        if known is not None and night.protocol is not None and night.protocol != known:
            start, reason = index, f"the protocol changed on {_day(night.at)}: {'; '.join(_differences(known, night.protocol))}"
        if night.id in accepted:
            who = accepted[night.id]
            start, reason = index, f"{who.by} accepted the level of {_day(night.at)}: {who.reason}"
        known = night.protocol or known
    return start, reason


def _direction(trace: Trace, index: int = -1) -> int:
    """Return +1 for worse, -1 for better, 0 for healthy. One rule that says worse is enough."""
    signs = (int(trace.jump[index]), int(trace.slow[index]))
    return max(signs) if max(signs) > 0 else min(signs)


def _first_night_of_change(trace: Trace, direction: int) -> int:
    """Return the index of the first night at the new level: Page's estimate for slow change, and the first of a row of jumps."""
    last = len(trace.value) - 1
    jumped = last
    while jumped > 0 and trace.jump[jumped - 1] == direction:
        jumped -= 1
    if int(trace.slow[-1]) != direction or not direction:
        return jumped
    zeros = np.flatnonzero((trace.up if direction > 0 else trace.down) == 0)
    return min(jumped, int(zeros[-1]) + 1) if len(zeros) else jumped


def _describe(trace: Trace, last: Night, direction: int, change: float, error: float, since: datetime, num_nights: int) -> str:
    value, centre, spread, limit = (float(each[-1]) for each in (trace.value, trace.centre, trace.spread, trace.limit))
    num_baseline, wanted = int(trace.num_baseline[-1]), last.rule.baseline_nights
    against = f"{value:.4g} against {centre:.4g} (mean of {num_baseline} healthy {'score' if num_baseline == 1 else 'scores'})"
    if direction and not math.isfinite(value):  # a night of an earlier version: such an evaluation is an error since
        return "the distance is not finite: the samples are no images, or their features overflow"
    if direction:
        kind = (
            "a jump"
            if trace.jump[-1]
            else f"the cumulative sum is {max(trace.up[-1], trace.down[-1]):.3g}, the limit is {last.rule.decision_interval:g}"
        )
        nights = "1 night" if num_nights == 1 else f"{num_nights} nights"
        # The error is 0 after a baseline of equal scores whose own errors are unknown or 0.
        half_width = student_factor(int(trace.degrees_of_freedom[-1])) * error
        sure = f" ± {half_width:.2g} (95%), {abs(change) / error:.1f} standard errors" if error > 0 else ""
        return f"{against}; {'worse' if direction > 0 else 'better'} by {abs(change):.3g}{sure}, since {_day(since)} ({nights}); {kind}"
    if not num_baseline:
        return f"{value:.4g}, the first score of the baseline; no change can be detected yet"
    if num_baseline < wanted:
        so_far = f"so far only a jump of more than {limit:.3g} can be detected" if math.isfinite(limit) else "no change can be detected yet"
        return f"{against}; the baseline has {num_baseline + 1} of {wanted} nights, {so_far}"
    redrawn = ", suspicious at first and drawn again" if last.redrawn else ""
    away = f", {(value - centre) / spread:+.1f} standard deviations" if spread > 0 else ""
    return (
        f"{against}{away}{redrawn}; the sums are {trace.up[-1]:.2g} (worse) and "
        f"{trace.down[-1]:.2g} (better), the limit is {last.rule.decision_interval:g}"
    )


def _num_missing(times: list[datetime]) -> int:
    """Return the number of nights without a score: gaps of more than one and a half times the usual one."""
    gaps = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(times)]
    usual = statistics.median(gaps) if len(gaps) > 1 else 0.0
    return sum(round(gap / usual) - 1 for gap in gaps if gap > 1.5 * usual) if usual > 0 else 0


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys([*before, *after]) if before and after else {}
    return [f"{name} {before.get(name)} -> {after.get(name)}" for name in names if before.get(name) != after.get(name)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _day(when: datetime) -> str:
    return f"{when:%Y-%m-%d}"
