"""Schedules as people write them: cron expressions, intervals, time zones, and their plain words.

The door to this corner of core: the scheduler, `app.schedules`, the CLI and the dashboard import from here.
Pure: no clock is read, every function is told what "after" or "now" is.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import cache
from itertools import islice
from zoneinfo import ZoneInfo, available_timezones

from pgqueue.core.cron_fires import EPOCH, CronExpression, Fire, IntervalSchedule, check_fire_moment
from pgqueue.core.cron_grammar import ALIASES, EXPRESSION_CHARS_MAX, check_expression
from pgqueue.core.cron_misfire import (
    FIRES_LISTED_MAX,
    DueFires,
    Misfire,
    Schedule,
    check_max_catch_up,
    check_misfire,
    due_fires,
)
from pgqueue.core.cron_wall import clock_changes
from pgqueue.core.cron_words import describe_fields
from pgqueue.core.durations import parse_duration
from pgqueue.errors import InvalidSchedule, InvalidTime, InvalidTimezone

__all__ = [
    "ALIASES",
    "EPOCH",
    "EXPRESSION_CHARS_MAX",
    "FIRES_LISTED_MAX",
    "INTERVAL_S_MAX",
    "INTERVAL_S_MIN",
    "CronExpression",
    "DueFires",
    "Fire",
    "IntervalSchedule",
    "Misfire",
    "Schedule",
    "check_max_catch_up",
    "check_misfire",
    "check_timezone",
    "clock_change_notes",
    "describe_cron",
    "due_fires",
    "parse_cron",
    "parse_interval",
]

INTERVAL_S_MIN = 1.0
INTERVAL_S_MAX = 366 * 86_400.0
"""A year, leap years included."""

_ZONE_CHARS_MAX = 64
_PROVED_FIRES = 5
_PROOF_START = datetime(2024, 1, 1)  # noqa: DTZ001 - a wall time; any would do, this one is in a leap year


def parse_cron(expression: str) -> CronExpression:
    """A cron expression of five fields, or one of ALIASES, checked and proved to fire.

    Raises InvalidSchedule, whose message ends with the expression and a caret line under the bad part.
    Five fires are computed, because a text can be well-formed and still never fire (30 February).
    """
    fields = check_expression(expression)
    cron = CronExpression(" ".join(expression.split()), fields)
    for _wall in islice(cron.walls(_PROOF_START), _PROVED_FIRES):
        pass
    return cron


def parse_interval(every: str | float | timedelta, *, anchor: datetime = EPOCH) -> IntervalSchedule:
    """A fixed period of 1 second to 1 year: "15m", seconds, or a timedelta; else InvalidSchedule.

    It fires at the multiples of the period counted from `anchor` (aware; InvalidTime otherwise).
    """
    try:
        seconds = parse_duration(every, field="every", minimum_s=INTERVAL_S_MIN, maximum_s=INTERVAL_S_MAX)
    except InvalidTime as fault:
        raise InvalidSchedule("every", fault.reason, limit=fault.limit) from fault
    return IntervalSchedule(seconds, check_fire_moment(anchor, "anchor"))


def check_timezone(name: str) -> ZoneInfo:
    """The IANA zone of that name; InvalidTimezone for anything that the zone data do not list.

    Names are looked up in the list and never tried as file names. "localtime" is refused: it is another
    zone on each host.
    """
    if not isinstance(name, str):
        raise InvalidTimezone("tz", f"needs a zone's name such as Europe/Berlin, not {type(name).__name__}")
    if name not in _zones():
        raise InvalidTimezone("tz", _zone_fault(name))
    return ZoneInfo(name)


def describe_cron(expression: CronExpression | str) -> str:
    """An expression in plain words: "at 02:30 on Monday to Friday". Text is parsed first, and may be refused."""
    cron = expression if isinstance(expression, CronExpression) else parse_cron(expression)
    return describe_fields(cron.fields)


def clock_change_notes(
    schedule: Schedule, *, after: datetime, until: datetime, tz: ZoneInfo, limit: int = 20
) -> list[str]:
    """What the clock changes in (after, until] do to the schedule, one line per affected local minute.

    Only the hours around each change are computed, so a look-ahead of months is cheap for any schedule.
    """
    start, end = check_fire_moment(after, "after"), check_fire_moment(until, "until")
    if isinstance(schedule, IntervalSchedule):
        return []
    notes: list[str] = []
    for change_at, change in clock_changes(start, end, tz):
        notes += schedule.change_notes(change_at, change, tz)
        if len(notes) >= limit:
            break
    return notes[:limit]


@cache
def _zones() -> frozenset[str]:
    # Walking the zone directories takes about 20 ms, so once per process.
    return frozenset(available_timezones()) - {"localtime"}


def _zone_fault(name: str) -> str:
    if not name:
        return "is empty; write a zone's name such as Europe/Berlin, or UTC"
    if len(name) > _ZONE_CHARS_MAX:
        return f"is not a time zone: {len(name)} characters"
    if name == "localtime":
        return "localtime differs from host to host; write the zone's name, such as Europe/Berlin"
    members = sorted(zone for zone in _zones() if zone.startswith(name.removesuffix("/") + "/"))
    if members:
        return f"is a region, not a zone; write for example {members[0]}"
    lowered = {zone.lower(): zone for zone in sorted(_zones())}
    near = get_close_matches(name.lower(), lowered, n=1, cutoff=0.75)
    hint = f"did you mean {lowered[near[0]]}?" if near else "write a name such as Europe/Berlin, or UTC"
    return f"is not in this host's time zone data; {hint}"
