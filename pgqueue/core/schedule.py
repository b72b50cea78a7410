"""A schedule as it is defined: what it enqueues, when, and what happens to fires that nobody handled in time.

Called by registration, `app.schedules`, the CLI and the scheduler; pure. The moments of cron expressions and
intervals come from core.cron, the plan of one tick from core.schedule_plan.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, TypedDict, cast, get_args

import orjson

from pgqueue.core.cron import (
    EPOCH,
    INTERVAL_S_MAX,
    Misfire,
    check_max_catch_up,
    check_misfire,
    check_timezone,
    parse_cron,
    parse_interval,
)
from pgqueue.core.durations import check_moment, parse_duration
from pgqueue.core.names import HEADERS_BYTES_MAX, check_headers, check_priority, check_queue, check_task
from pgqueue.core.payload import encode_args
from pgqueue.core.schedule_plan import Timing
from pgqueue.errors import InvalidName, InvalidOption, InvalidSchedule

NAME_CHARS_MAX = 120
JITTER_S_MAX = 86_400.0
GRACE_S_MAX = INTERVAL_S_MAX
DEFAULT_CATCH_UP = 100
DEFAULT_GRACE_S = 60.0
OWN_HEADERS_BYTES = 512
"""Room kept for what a fire writes into its job's headers."""

Overlap = Literal["allow", "skip"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class ScheduleOptions(TypedDict, total=False):
    """What may be said of a schedule besides its name, its task and its times; see `define_schedule`."""

    tz: str
    queue: str | None
    priority: int | None
    headers: Mapping[str, str] | None
    misfire: str
    max_catch_up: int
    grace: str | float | timedelta
    overlap: str
    jitter: str | float | timedelta
    starts_at: datetime | None
    ends_at: datetime | None


@dataclass(frozen=True, slots=True)
class ScheduleDefinition:
    """One schedule, checked; `define_schedule` makes it.

    Either `cron` or `every_s` is set. `args` is JSON text. `queue` and `priority` are None where the task's
    own hold. Intervals count from `starts_at`, or from 1970-01-01 UTC if there is none.
    """

    name: str
    task: str
    cron: str | None
    every_s: float | None
    tz: str = "UTC"
    args: str = "{}"
    queue: str | None = None
    priority: int | None = None
    headers: Mapping[str, str] | None = None
    misfire: Misfire = "latest"
    max_catch_up: int = DEFAULT_CATCH_UP
    grace_s: float = DEFAULT_GRACE_S
    overlap: Overlap = "allow"
    jitter_s: float = 0.0
    starts_at: datetime | None = None
    ends_at: datetime | None = None

    @property
    def timing(self) -> Timing:
        """When it fires."""
        return timing_of(self.cron, self.every_s, self.tz, self.starts_at, self.ends_at)

    def as_json(self) -> str:
        """The definition as the JSON that the database function `put_schedule` takes."""
        columns = {name: getattr(self, name) for name in self.__dataclass_fields__}
        columns["args"] = orjson.Fragment(self.args)
        return orjson.dumps(columns).decode()


def define_schedule(
    *,
    name: str,
    task: str,
    cron: str | None = None,
    every: str | float | timedelta | None = None,
    args: Mapping[str, Any] | None = None,
    tz: str = "UTC",
    queue: str | None = None,
    priority: int | None = None,
    headers: Mapping[str, str] | None = None,
    misfire: str = "latest",
    max_catch_up: int = DEFAULT_CATCH_UP,
    grace: str | float | timedelta = DEFAULT_GRACE_S,
    overlap: str = "allow",
    jitter: str | float | timedelta = 0,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
) -> ScheduleDefinition:
    """Check a schedule's options and prove that it fires.

    cron: five fields or a name such as @daily, read in the zone `tz` · every: instead of it, a period of
    1 second to 1 year · misfire: `skip`, `latest` or `all` (at most `max_catch_up`) · grace: how late `skip`
    still fires · overlap: `skip` leaves a fire out while the last one's job lives · jitter: jobs start up to
    so much later, always the same for the same fire · starts_at, ends_at: aware; no fire before or after.
    Raises InvalidSchedule, InvalidTimezone, InvalidTime, InvalidName, InvalidOption or InvalidArguments.
    """
    if (cron is None) == (every is None):
        raise InvalidSchedule("cron", "give either a cron expression or every=, and not both")
    starts_at = None if starts_at is None else check_moment(starts_at, field="starts_at")
    ends_at = None if ends_at is None else check_moment(ends_at, field="ends_at")
    if starts_at is not None and ends_at is not None and ends_at < starts_at:
        raise InvalidSchedule("ends_at", "lies before starts_at; it would never fire")
    definition = ScheduleDefinition(
        name=check_schedule_name(name),
        task=check_task(task),
        cron=None if cron is None else parse_cron(cron).text,
        every_s=None if every is None else parse_interval(every).every_s,
        tz=str(check_timezone(tz)),
        args=encode_args(args or {}),
        queue=None if queue is None else check_queue(queue),
        priority=None if priority is None else check_priority(priority),
        headers=_checked_headers(headers),
        misfire=check_misfire(misfire),
        max_catch_up=check_max_catch_up(max_catch_up),
        grace_s=parse_duration(grace, field="grace", maximum_s=GRACE_S_MAX),
        overlap=check_overlap(overlap),
        jitter_s=parse_duration(jitter, field="jitter", maximum_s=JITTER_S_MAX),
        starts_at=starts_at,
        ends_at=ends_at,
    )
    if ends_at is not None and definition.timing.next_fire(EPOCH) is None:
        raise InvalidSchedule("ends_at", "comes before the first fire; it would never fire")
    return definition


def check_schedule_name(name: str) -> str:
    """Return a schedule's name such as `promo-expiry`: ASCII letters, digits, `_`, `.` and `-`; else InvalidName."""
    limit = f"1–{NAME_CHARS_MAX} characters"
    if not isinstance(name, str):
        raise InvalidName("schedule", f"its name must be text, not {type(name).__name__}", limit=limit)
    if len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name):
        reason = "must hold only ASCII letters, digits, _, . and - and start with a letter, a digit or _"
        raise InvalidName("schedule", reason, limit=limit)
    return name


def check_overlap(value: object) -> Overlap:
    """`value` if it is an overlap rule; else InvalidSchedule."""
    if isinstance(value, str) and value in get_args(Overlap):
        return cast("Overlap", value)
    raise InvalidSchedule("overlap", "not a rule; write allow or skip")


@lru_cache(maxsize=1024)
def timing_of(
    cron: str | None, every_s: float | None, tz: str, starts_at: datetime | None, ends_at: datetime | None
) -> Timing:
    """When a schedule with these columns fires. Raises InvalidSchedule or InvalidTimezone, as rows may come from SQL."""
    if cron is not None:
        return Timing(parse_cron(cron), check_timezone(tz), starts_at, ends_at)
    if every_s is None:
        raise InvalidSchedule("cron", "neither a cron expression nor an interval is set")
    schedule = parse_interval(every_s, anchor=starts_at or EPOCH)
    return Timing(schedule, check_timezone(tz), starts_at, ends_at)


def _checked_headers(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    if not headers:
        return None
    checked = check_headers(headers)
    bytes_max = HEADERS_BYTES_MAX - OWN_HEADERS_BYTES
    if len(orjson.dumps(checked)) > bytes_max:
        raise InvalidOption("headers", "are too large for a schedule", limit=f"≤ {bytes_max} bytes as JSON")
    return checked
