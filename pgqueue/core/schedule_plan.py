"""When a schedule fires, what one tick of the scheduler writes, and what a preview shows.

Called by core.schedule, the scheduler's tick and the previews; pure: "now" is always the database's, passed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import islice
from typing import Literal
from zoneinfo import ZoneInfo

from pgqueue.core.cron import (
    CronExpression,
    DueFires,
    Fire,
    Schedule,
    clock_change_notes,
    describe_cron,
    due_fires,
)

MISSED_ROWS_MAX = 100
"""Missed fires that get a row of their own in one tick; one more row tells of all older ones."""
FIRES_PER_TICK_MAX = 1_000
"""Jobs that one tick enqueues; the schedule is due again at once for the rest."""
PREVIEW_FIRES_MAX = 1_000
PREVIEW_NOTE_DAYS = 60

_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Timing:
    """A schedule's moments: its expression or interval, its zone, and the window it is confined to."""

    schedule: Schedule
    tz: ZoneInfo
    starts_at: datetime | None = None
    ends_at: datetime | None = None

    @property
    def words(self) -> str:
        """In plain words, without the zone."""
        if isinstance(self.schedule, CronExpression):
            return describe_cron(self.schedule)
        return str(self.schedule)

    def next_fire(self, after: datetime) -> Fire | None:
        """The first fire later than `after`, None if the window has no more."""
        return next(self.iter_fires(after), None)

    def iter_fires(self, after: datetime) -> Iterator[Fire]:
        """All fires later than `after`, to the window's end."""
        for fire in self.schedule.iter_fires(self.begin(after), self.tz):
            if self.ends_at is not None and fire.at > self.ends_at:
                return
            yield fire

    def begin(self, after: datetime) -> datetime:
        """`after`, or the last instant before the window if that is later."""
        return after if self.starts_at is None else max(after, self.starts_at - _INSTANT)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One row of schedule_runs to be written, with a job (`enqueue`) or without (`missed`)."""

    run_key: str
    fire_at: datetime
    run_at: datetime
    outcome: Literal["enqueue", "missed"]
    note: str | None


@dataclass(frozen=True, slots=True)
class TickPlan:
    """What one tick of one schedule does.

    `decided_until` becomes its last_fire_at, `next_fire_at` its plan (None: it fires no more).
    `missed_total` counts missed fires without a row of their own too; a lower bound unless `missed_exact`.
    """

    runs: tuple[PlannedRun, ...]
    decided_until: datetime
    next_fire_at: datetime | None
    missed_total: int
    missed_exact: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """A schedule in words, its next fires, and what clock changes will do to it."""

    words: str
    tz: str
    fires: tuple[Fire, ...]
    notes: tuple[str, ...]


def plan_tick(
    timing: Timing,
    *,
    name: str,
    last_fire_at: datetime,
    now: datetime,
    misfire: str,
    max_catch_up: int,
    grace_s: float,
    jitter_s: float,
) -> TickPlan:
    """Decide over the fires in (last_fire_at, now] by the misfire policy, and find the one after them."""
    begin = timing.begin(last_fire_at)
    end = now if timing.ends_at is None else min(now, timing.ends_at)
    due = due_fires(
        timing.schedule,
        last_fire=begin,
        now=end,
        tz=timing.tz,
        misfire=misfire,
        max_catch_up=max_catch_up,
        grace_s=grace_s,
    )
    if end < now and misfire == "skip":
        due = _older(due, now, grace_s)
    fires = due.fire[:FIRES_PER_TICK_MAX]
    newest = max((*fires[-1:], *due.missed[-1:]), key=lambda fire: fire.at, default=None)
    decided_until = last_fire_at if newest is None else newest.at
    after = timing.next_fire(decided_until)
    return TickPlan(
        runs=(*_missed_runs(due, begin), *(_run(fire, name, jitter_s) for fire in fires)),
        decided_until=decided_until,
        next_fire_at=None if after is None else after.at,
        missed_total=due.missed_total,
        missed_exact=due.missed_total_exact,
    )


def jitter_of(name: str, run_key: str, jitter_s: float) -> float:
    """Seconds by which a fire's job starts later: from 0 up to `jitter_s`, the same on every host and at every try."""
    if jitter_s == 0:
        return 0.0
    digest = sha256(f"{name}\n{run_key}".encode()).digest()
    return jitter_s * int.from_bytes(digest[:6], "big") / 2**48


def preview(timing: Timing, *, after: datetime, count: int) -> Preview:
    """The next `count` fires (at most PREVIEW_FIRES_MAX), and notes on the clock changes of the next 60 days."""
    fires = tuple(islice(timing.iter_fires(after), min(count, PREVIEW_FIRES_MAX)))
    until = after + timedelta(days=PREVIEW_NOTE_DAYS)
    notes = clock_change_notes(timing.schedule, after=after, until=until, tz=timing.tz)
    return Preview(timing.words, str(timing.tz), fires, tuple(notes))


def _older(due: DueFires, now: datetime, grace_s: float) -> DueFires:
    """`skip` after the window's end: a fire's age counts to now, not to the end."""
    late = [fire for fire in due.fire if (now - fire.at).total_seconds() > grace_s]
    return DueFires(
        due.fire[len(late) :],
        [*due.missed, *late],
        due.missed_total + len(late),
        missed_total_exact=due.missed_total_exact,
    )


def _run(fire: Fire, name: str, jitter_s: float) -> PlannedRun:
    delay = timedelta(seconds=jitter_of(name, fire.wall_key, jitter_s))
    return PlannedRun(fire.wall_key, fire.at, fire.at + delay, "enqueue", fire.note)


def _missed_runs(due: DueFires, begin: datetime) -> Iterator[PlannedRun]:
    listed = due.missed[-MISSED_ROWS_MAX:]
    untold = due.missed_total - len(listed)
    if untold > 0:
        # Named by the fire after the stretch, so that two schedulers that tell of it write one row.
        end = (listed or due.fire)[0]
        least = "" if due.missed_total_exact else "at least "
        note = f"{least}{untold} fires between {_said(begin)} and {_said(end.at)} were missed without a row of their own"
        yield PlannedRun(f"missed-before:{end.wall_key}", begin, begin, "missed", note)
    for fire in listed:
        yield PlannedRun(fire.wall_key, fire.at, fire.at, "missed", fire.note)


def _said(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
