"""Times of schedules: cron expressions in the dialect of KFP's scheduler, intervals, and time zones.

KFP reads cron expressions with robfig/cron 1.2 (`cron.Parse`). It differs from a crontab in more than the seconds: the
last field may be left out, so that five fields are accepted *with another meaning* ("0 2 * * *" is minute 2 of each
hour); Sunday is 0, and 7 is an error; names have three letters; an expression has no time zone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterBadDateError, CroniterError, croniter

from training.config.errors import UserError

_DAY_MINUTES = 24 * 60
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MIN_INTERVAL_SECONDS = 60
_YEARS_AHEAD = 5  # KFP looks no further for the next time
_MAX_INTERVAL_SECONDS = _YEARS_AHEAD * 366 * 86400
_FIELDS = (
    ("second", "0 to 59"),
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31"),
    ("month", "1 to 12 or jan to dec"),
    ("day of the week", "0 to 6 or sun to sat; Sunday is 0"),
)
_PART = re.compile(r"([*?]|(\d+|[a-z]{3})(-(\d+|[a-z]{3}))?)(/\d+)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """When a schedule runs: by a cron expression or by an interval.

    Attributes:
        cron: The expression in the cluster's zone; empty with an interval.
        every_seconds: The interval; 0 with an expression.
        zone: The one zone in which the cluster reads all expressions.
        written_as: The user's own expression and zone, if the zone is another one; for people.
    """

    cron: str = ""
    every_seconds: int = 0
    zone: str = "UTC"
    written_as: str = ""

    def next_times(self, count: int) -> list[datetime]:
        """Return the next times; none for an interval, which counts from the last run on the server."""
        return next_times(self.cron, self.zone, count) if self.cron else []


def parse_timing(cron: str, every: str, *, time_zone: str = "", cluster_zone: str = "UTC") -> Timing:
    """Read a schedule's options.

    Args:
        cron: Six fields, seconds first; empty with `every`.
        every: An interval like "24h"; empty with `cron`.
        time_zone: Zone in which the expression is written; empty is the cluster's.
        cluster_zone: Zone in which KFP reads it.

    Raises:
        UserError: Both or neither are given, one cannot be read, or the expression has no equivalent in the cluster's zone.
    """
    if bool(cron) == bool(every):
        raise UserError("give either --cron '0 0 2 * * *' (second, minute, hour, day, month, weekday) or --every 24h")
    find_zone(cluster_zone)
    if every:
        seconds = parse_duration(every, "--every")
        if seconds < _MIN_INTERVAL_SECONDS:
            raise UserError(f"--every {every}: the interval must be at least 1m")
        if seconds > _MAX_INTERVAL_SECONDS:
            raise UserError(f"--every {every}: the interval must be at most {_MAX_INTERVAL_SECONDS // 86400}d, five years")
        if time_zone:
            raise UserError("--time-zone goes with --cron; an interval has no zone")
        return Timing(every_seconds=seconds, zone=cluster_zone)
    cron = parse_cron(cron)
    if (values := _values(cron.split()[0], 0)) == ["*"] or len(values) > 1:
        raise UserError(f"cron {cron!r} would run many times a minute; its first field is the second, like 0")
    if not time_zone or time_zone == cluster_zone:
        return Timing(cron=cron, zone=cluster_zone)
    return Timing(cron=_in_cluster_zone(cron, time_zone, cluster_zone), zone=cluster_zone, written_as=f"{cron} in {time_zone}")


def parse_cron(text: str) -> str:
    """Return an expression with single spaces; refuse one that KFP's scheduler refuses, misreads, or never runs."""
    text = " ".join(text.split())
    words = text.split()
    if text.startswith("@"):
        interval = text.removeprefix("@every ")
        remedy = f"give --every {interval} instead" if interval != text else "write '0 0 0 * * *' for every midnight"
        raise UserError(f"cron {text!r}: KFP reads six fields; {remedy}")
    if re.match(r"(CRON_)?TZ=", text):
        raise UserError(f"cron {text!r}: KFP reads no zone in an expression; give it as --time-zone")
    if len(words) == 5:
        raise UserError(
            f"cron {text!r} has five fields; KFP's has six, with seconds first, and would run it in minute {words[1]} of hour {words[2]}: "
            f"write '0 {text}'"
        )
    if len(words) != len(_FIELDS):
        raise UserError(f"cron {text!r} has {len(words)} fields; six are needed: second, minute, hour, day of month, month, day of week")
    for number, word in enumerate(words):
        for part in word.split(","):
            _check_part(text, part, number)
    try:
        next_times(text, "UTC", 1)
    except CroniterBadDateError as error:
        raise UserError(f"cron {text!r} never runs: no such day exists; correct its day or its month") from error
    return text


def next_times(cron: str, zone: str, count: int, after: datetime | None = None) -> list[datetime]:
    """Return the next times of an expression in a zone.

    Raises:
        CroniterError: It is no expression, or has no time in the next five years.
    """
    start = (after or datetime.now(UTC)).astimezone(find_zone(zone))
    # With a star in one of the two days both must hold, else one of them: croniter calls this cron's bug, and KFP has it.
    times = croniter(cron, start, second_at_beginning=True, implement_cron_bug=True, max_years_between_matches=_YEARS_AHEAD)
    _, minute, hour, *_ = cron.split()
    hours, minutes = _all_values(hour, 2, 24), _all_values(minute, 1, 60)
    found: list[datetime] = []
    while len(found) < count:
        time: datetime = times.get_next(datetime)
        if time.hour in hours and time.minute in minutes:  # croniter moves a time that the clocks leave out in spring; KFP skips it
            found.append(time)
    return found


def parse_duration(text: str, option: str) -> int:
    """Return the seconds of a duration.

    Args:
        text: A duration like "90s", "1h30m" or "2d".
        option: The option that it was given as, for the message.

    Raises:
        UserError: It is no duration, or zero.
    """
    parts = re.findall(r"(\d+)([smhd])", text)
    seconds = sum(int(count) * _UNIT_SECONDS[unit] for count, unit in parts)
    if "".join(count + unit for count, unit in parts) != text or seconds == 0:
        raise UserError(f"{option} {text!r} is not a duration; write it like 90s, 30m, 24h or 1h30m")
    return seconds


def format_interval(seconds: int) -> str:
    """Return an interval in the form that `--every` takes."""
    parts = []
    for unit, size in reversed(_UNIT_SECONDS.items()):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def find_zone(name: str) -> ZoneInfo:
    """Return the time zone of that name; raise UserError if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UserError(f"there is no time zone {name!r}; write it like Europe/Berlin or UTC") from error


def _check_part(text: str, part: str, number: int) -> None:
    name, values = _FIELDS[number]
    bounds = part.partition("/")[0]
    try:
        if not _PART.fullmatch(part) or (number == 5 and "7" in bounds):
            raise CroniterError(part)
        _values(part, number)
        if len(ends := [_values(end, number)[0] for end in bounds.split("-")]) == 2 and ends[0] > ends[1]:
            raise CroniterError(part)
    except CroniterError as error:
        raise UserError(f"cron {text!r}: {part!r} is no {name}, which is {values}; write it like 5, 1-5, */10 or 1,15") from error


def _values(field: str, number: int) -> list[Any]:
    """Return the values of one field; `["*"]` if it takes all."""
    fields = ["0", "0", "0", "*", "*", "*"]
    fields[number] = field
    values: list[Any] = croniter.expand(" ".join(fields), second_at_beginning=True)[0][(number - 1) % len(_FIELDS)]  # seconds are last
    return values


def _in_cluster_zone(cron: str, zone: str, cluster_zone: str) -> str:
    """Translate an expression into the cluster's zone; raise UserError if it has no equivalent there."""
    remedy = (
        f"write the expression in {cluster_zone}, or have the cluster's zone changed "
        "(cronScheduleTimezone in ConfigMap pipeline-install-config)"
    )
    shifts = _offsets_between(find_zone(zone), find_zone(cluster_zone))
    if len(shifts) > 1:
        by_season = " or ".join(f"{shift:+g} h" for shift in sorted(shifts))
        raise UserError(f"KFP has one zone for all schedules, {cluster_zone}, and {zone} differs by {by_season} with the season; {remedy}")
    shift = shifts.pop()
    if shift == 0:
        return cron
    second, minute, hour, *days = cron.split()
    minutes, hours = _all_values(minute, 1, 60), _all_values(hour, 2, 24)
    times = [60 * each + past - round(60 * shift) for each in hours for past in minutes]
    changes_day = any(not 0 <= each < _DAY_MINUTES for each in times) and set(days) - {"*", "?"}
    hours_there, minutes_there = {each // 60 % 24 for each in times}, {each % 60 for each in times}
    # A shift by half an hour may put minutes of one hour into two.
    if changes_day or len(hours_there) * len(minutes_there) > len(times):
        raise UserError(f"KFP has one zone for all schedules, {cluster_zone}, and {cron!r} in {zone} has no equivalent there; {remedy}")
    return " ".join([second, minute if shift % 1 == 0 else _field(minutes_there, 60), _field(hours_there, 24), *days])


def _all_values(field: str, number: int, count: int) -> list[int]:
    values = _values(field, number)
    return list(range(count)) if values == ["*"] else values


def _field(values: set[int], count: int) -> str:
    return "*" if len(values) == count else ",".join(map(str, sorted(values)))


def _offsets_between(zone: ZoneInfo, other: ZoneInfo) -> set[float]:
    """Return the hours by which the first zone is ahead of the other in the next two years."""
    now = datetime.now(UTC)
    times = [now + timedelta(days=days) for days in range(0, 730, 7)]
    return {
        (time.astimezone(zone).replace(tzinfo=None) - time.astimezone(other).replace(tzinfo=None)).total_seconds() / 3600 for time in times
    }
