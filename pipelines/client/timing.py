"""When a schedule runs, as a person says it: by a cron expression in a zone, or by an interval."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pipelines.client.cron import Cron, parse
from pipelines.client.durations import parse_duration

_SECONDS_BETWEEN_RUNS = 60


class ScheduleError(ValueError):
    """A schedule that can't be, is not there, or is not ours; one line with the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """When a schedule runs: by a cron expression or by an interval.

    Attributes:
        cron: The expression, or None.
        every_seconds: The interval, or 0.
        zone: The one zone in which the cluster reads all its expressions.
        meant: How it was said, where that was in another zone; for people.
    """

    cron: Cron | None = None
    every_seconds: int = 0
    zone: str = "UTC"
    meant: str = ""

    def next_times(self, count: int, after: datetime | None = None) -> list[datetime]:
        """The next times by the clock; none for an interval, which counts from when KFP last ran it."""
        if self.cron is None:
            return []
        return list(islice(self.cron.times(after or datetime.now(UTC), zone_of(self.zone)), count))


def timing_of(cron: str, every: str, *, time_zone: str = "", cluster_zone: str = "UTC") -> Timing:
    """When a schedule runs, as a person says it.

    Args:
        cron: Six fields, seconds first; empty with `every`.
        every: A length of time; empty with `cron`.
        time_zone: In which the expression is meant; empty means the cluster's.
        cluster_zone: In which KFP reads it.

    Raises:
        CronError: The expression is not one.
        ScheduleError: Both or neither are given, a zone is unknown, or the expression can't be said in the cluster's zone.
    """
    if bool(cron) == bool(every):
        raise ScheduleError("say when: either --cron '0 0 2 * * *' (second, minute, hour, day, month, weekday) or --every 24h")
    zone_of(cluster_zone)
    if every:
        seconds = parse_duration(every, "--every")
        if seconds < _SECONDS_BETWEEN_RUNS:
            raise ScheduleError(f"--every {every}: at least 1 minute must lie between two runs")
        if time_zone:
            raise ScheduleError("--time-zone goes with --cron; an interval has no zone")
        return Timing(every_seconds=seconds, zone=cluster_zone)
    parsed = parse(cron)
    if len(parsed.fields[0]) > 1:
        raise ScheduleError(f"cron {cron!r} would run {len(parsed.fields[0])} times a minute; its first field is the second, like 0")
    if not time_zone or time_zone == cluster_zone:
        return Timing(cron=parsed, zone=cluster_zone)
    return Timing(cron=_in_cluster_zone(parsed, time_zone, cluster_zone), zone=cluster_zone, meant=f"{parsed.text} in {time_zone}")


def zone_of(name: str) -> ZoneInfo:
    """The zone of that name.

    Raises:
        ScheduleError: There is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ScheduleError(f"there is no time zone {name!r}; it reads like Europe/Berlin or UTC") from error


def interval_words(seconds: int) -> str:
    """An interval in the form that `--every` takes."""
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def _in_cluster_zone(cron: Cron, zone: str, cluster_zone: str) -> Cron:
    """The same times said in the cluster's zone, where that can be said at all."""
    remedy = (
        f"write the expression in {cluster_zone}, or have the cluster's zone changed "
        "(cronScheduleTimezone in ConfigMap pipeline-install-config)"
    )
    shifts = _hours_ahead(zone_of(zone), zone_of(cluster_zone))
    if len(shifts) > 1:
        hours = " or ".join(f"{shift:+g} h" for shift in sorted(shifts))
        raise ScheduleError(f"KFP has one zone for all schedules, {cluster_zone}, and {zone} is {hours} from it by season; {remedy}")
    shift = shifts.pop()
    second, minute, hour, *days = cron.text.split()
    if shift == 0 or hour in ("*", "?"):
        return cron
    moved = [each - shift for each in cron.fields[2]]
    other_day = any(not 0 <= each < 24 for each in moved) and set(days) - {"*", "?"}
    if shift % 1 or other_day:
        raise ScheduleError(f"KFP has one zone for all schedules, {cluster_zone}, and this can't be said there of {zone}; {remedy}")
    return parse(" ".join([second, minute, ",".join(f"{each % 24:g}" for each in sorted(moved, key=lambda h: h % 24)), *days]))


def _hours_ahead(here: ZoneInfo, there: ZoneInfo) -> set[float]:
    """By how many hours one zone's clocks are ahead of another's in the two years to come."""
    now = datetime.now(UTC)
    moments = [now + timedelta(days=days) for days in range(0, 730, 7)]
    offsets = [(moment.astimezone(here).utcoffset(), moment.astimezone(there).utcoffset()) for moment in moments]
    return {(ours - theirs).total_seconds() / 3600 for ours, theirs in offsets if ours is not None and theirs is not None}
