"""Cron expressions in the dialect of KFP's scheduler: six fields, seconds first.

KFP reads them with robfig/cron 1.2 (`cron.Parse`), which differs from a crontab in more than the seconds: the last
field may be left out, so that five fields are accepted *with another meaning* ("0 2 * * *" is minute 2 of each hour);
Sunday is 0 and 7 is an error; names are the first three letters; "5/10" goes on from 5; there is no zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}
_DAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("seconds", 0, 59, {}),
    ("minutes", 0, 59, {}),
    ("hours", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)
_NAMED = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_LAST_DAY_AHEAD = 5 * 366
"""Days after which KFP gives up looking for the next time."""


class CronError(ValueError):
    """The expression is not one, or not what it seems; one line with the form that it should have."""


@dataclass(frozen=True, slots=True)
class Cron:
    """When something runs.

    Attributes:
        text: The expression.
        fields: The values of each field: seconds, minutes, hours, day of the month, month, day of the week (Sunday 0).
        stars: Whether a field has a star, which decides how the two days go together.
    """

    text: str
    fields: tuple[frozenset[int], ...]
    stars: tuple[bool, ...]

    def times(self, after: datetime, zone: tzinfo) -> Iterator[datetime]:
        """The next times in a zone, at most five years ahead. An hour that a clock skips or repeats counts as it stands on it."""
        local = after.astimezone(zone)
        seconds, minutes, hours, _, months, _ = self.fields
        for ahead in range(_LAST_DAY_AHEAD):
            day = local.date() + timedelta(days=ahead)
            if day.month not in months or not self._on_day(day.day, (day.weekday() + 1) % 7):
                continue
            for hour in sorted(hours):
                for minute in sorted(minutes):
                    for second in sorted(seconds):
                        time = datetime(day.year, day.month, day.day, hour, minute, second, tzinfo=zone)
                        if time > after:
                            yield time

    def _on_day(self, day_of_month: int, day_of_week: int) -> bool:
        matches = day_of_month in self.fields[3], day_of_week in self.fields[5]
        # As in a crontab: two restrictions are alternatives, a star leaves the other one alone.
        return all(matches) if self.stars[3] or self.stars[5] else any(matches)


def parse(text: str) -> Cron:
    """The expression, read as KFP will read it.

    Raises:
        CronError: It has another number of fields, a value out of range, or no time at all.
    """
    words = text.split()
    if text.strip().startswith("@"):
        _refuse_name(text.strip())
    if re.match(r"(CRON_)?TZ=", text.strip()):
        raise CronError(f"cron {text!r}: KFP knows no zone in an expression; say it by --time-zone")
    if len(words) == 5:
        raise CronError(
            f"cron {text!r} has five fields; KFP's has six, with seconds first, and would read yours as "
            f"{_misread(words)}: write '0 {' '.join(words)}'"
        )
    if len(words) != 6:
        raise CronError(f"cron {text!r} has {len(words)} fields; six are needed: second, minute, hour, day of month, month, day of week")
    fields = tuple(_field(word, *definition) for word, definition in zip(words, _FIELDS, strict=True))
    stars = tuple(any(part[:1] in "*?" for part in word.split(",")) for word in words)
    cron = Cron(" ".join(words), fields, stars)
    if not any(cron._on_day(day, week) for day, week in _possible_days(fields[4])):
        raise CronError(f"cron {text!r} never comes: no {', '.join(_month_names(fields[4]))} has such a day")
    return cron


def _refuse_name(text: str) -> None:
    every = re.fullmatch(r"@every\s+(\S+)", text)
    if every:
        raise CronError(f"cron {text!r}: give --every {every[1]} in its place")
    known = _NAMED.get(text)
    raise CronError(f"cron {text!r}: write {known!r}" if known else f"cron {text!r} is no expression; it reads like '0 0 2 * * *'")


def _misread(words: list[str]) -> str:
    """What KFP makes of five fields, which it takes for second, minute, hour, day of month and month."""
    second, minute, hour, _, _ = words
    if hour == "*" and second.isdigit() and minute.isdigit():
        return f"minute {minute} of every hour"
    return f"second {second}, minute {minute}, hour {hour}"


def _field(word: str, name: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    values: set[int] = set()
    for part in word.split(","):
        match = re.fullmatch(r"(?P<first>[*?]|\w+)(-(?P<last>\w+))?(/(?P<step>\d+))?", part)
        if match is None or (match["first"] in "*?" and match["last"]):
            raise CronError(f"cron: {part!r} is not a value for the {name}; it reads like 5, 1-5, */10 or 1,15")
        if match["first"] in "*?":
            first, last = low, high
        else:
            first = _number(match["first"], part, name, low, high, names)
            last = _number(match["last"], part, name, low, high, names) if match["last"] else high if match["step"] else first
        step = int(match["step"] or 1)
        if step == 0 or first > last:
            raise CronError(f"cron: {part!r} for the {name} has {'a step of 0' if step == 0 else 'its end before its beginning'}")
        values.update(range(first, last + 1, step))
    return frozenset(values)


def _number(word: str, part: str, name: str, low: int, high: int, names: dict[str, int]) -> int:
    value = names.get(word.lower(), int(word) if word.isdigit() else None)
    if value is None or not low <= value <= high:
        known = f" or {', '.join(names)}" if names else ""
        sunday = "; Sunday is 0" if name == "day of the week" and word == "7" else ""
        raise CronError(f"cron: {part!r} is not a value for the {name}, which is {low} to {high}{known}{sunday}")
    return value


def _possible_days(months: frozenset[int]) -> Iterator[tuple[int, int]]:
    """Every day of these months with every day of the week that it can fall on: in the years ahead all of them do."""
    longest = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
    for month in months:
        for day in range(1, longest.get(month, 31) + 1):
            for week in range(7):
                yield day, week


def _month_names(months: frozenset[int]) -> list[str]:
    return [name.capitalize() for name, number in _MONTHS.items() if number in months]
