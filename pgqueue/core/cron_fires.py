"""Schedules and the instants at which they fire: cron expressions over local clocks, and fixed intervals.

Called through core.cron by the scheduler, the previews and the doctor. Pure: "now" is always passed in.
croniter finds matching wall times on a calendar without zones; what they mean in a zone is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter

from pgqueue.core.cron_grammar import refuse_never
from pgqueue.core.cron_wall import WallMinute, repeat_start, resolve, wall_at
from pgqueue.core.durations import check_moment, format_duration
from pgqueue.errors import InvalidTime

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEAR_MIN, YEAR_MAX = 1970, 9900
"""Years in which fires are computed: room on both sides for zones and for the longest look-ahead."""

_MINUTE = timedelta(minutes=1)
_WINDOW_FIRES_MAX = 512
"""Fires computed at once while looking back; a window that holds more is halved."""


@dataclass(frozen=True, slots=True)
class Fire:
    """One moment at which a schedule fires.

    `at` is the instant in UTC. `wall_key` names the run, so that every scheduler writes the same row: the
    scheduled local minute ("2026-11-01T01:30") when the hour field is fixed, else the instant in ISO form.
    `note` says in words what a clock change did to this fire; it does not take part in comparisons.
    """

    at: datetime
    wall_key: str
    note: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class FireTail:
    """The newest fires of a stretch, oldest first; `total` counts all of it, or at least, if not `exact`."""

    fires: list[Fire]
    total: int
    exact: bool


@dataclass(frozen=True, slots=True)
class CronExpression:
    """A checked cron expression; `parse_cron` makes it.

    An hour field that does not start with `*` is fixed: each matching local minute fires once per local
    day; in an overlap at its first occurrence, in a gap at the first instant after it (several minutes
    lost in one gap are one fire). Otherwise fires follow elapsed time: each instant at which the local
    clock matches. When day-of-month and weekday are both restricted, either one is enough.
    """

    text: str
    fields: tuple[str, ...]

    @property
    def hour_is_fixed(self) -> bool:
        return not self.fields[1].startswith("*")

    def __str__(self) -> str:
        return self.text

    def next_fire(self, after: datetime, tz: ZoneInfo) -> Fire:
        """The first fire later than `after` (aware)."""
        return next(self.iter_fires(after, tz))

    def fires_between(self, after: datetime, until: datetime, tz: ZoneInfo, limit: int) -> list[Fire]:
        """The fires in (after, until], oldest first, at most `limit`."""
        end = check_fire_moment(until, "until")
        return list(islice(takewhile(lambda fire: fire.at <= end, self.iter_fires(after, tz)), limit))

    def iter_fires(self, after: datetime, tz: ZoneInfo) -> Iterator[Fire]:
        """All fires later than `after`, without end."""
        start = check_fire_moment(after, "after")
        return self._once_per_wall_minute(start, tz) if self.hour_is_fixed else self._elapsed(start, tz)

    def newest_fires(self, after: datetime, until: datetime, tz: ZoneInfo, limit: int) -> FireTail:
        """The newest `limit` fires in (after, until], looking back from `until` in windows.

        The work follows `limit`, not the length of the stretch. `total` is exact if the windows reached
        `after`.
        """
        start, end = check_fire_moment(after, "after"), check_fire_moment(until, "until")
        found: list[Fire] = []
        span = timedelta(days=1)
        while end > start and len(found) <= limit:
            opening = start if end - start <= span else end - span
            window = self.fires_between(opening, end, tz, _WINDOW_FIRES_MAX)
            if len(window) == _WINDOW_FIRES_MAX and end - opening > _MINUTE * _WINDOW_FIRES_MAX:
                span = (end - opening) / 2
                continue
            if len(window) < _WINDOW_FIRES_MAX // 4:
                span *= 2
            found = window + found
            end = opening
        return FireTail(found[-limit:], len(found), exact=end <= start)

    def change_notes(self, change_at: datetime, change: timedelta, tz: ZoneInfo) -> list[str]:
        """What one change of the zone's clock by `change` at `change_at` does to the fires around it."""
        if change > timedelta(0) and not self.hour_is_fixed:
            opening = wall_at(change_at, tz)
            lost = list(takewhile(lambda wall: wall < opening, self.walls(opening - change - _MINUTE)))
            return [f"{_missing(lost, tz)}: no fire"] if lost else []
        around = self.fires_between(
            change_at - abs(change) - _MINUTE, change_at + abs(change), tz, _WINDOW_FIRES_MAX
        )
        return list(dict.fromkeys(fire.note for fire in around if fire.note is not None))

    def walls(self, after: datetime) -> Iterator[datetime]:
        """The matching wall times later than the naive `after`, as if clocks were never changed."""
        # One croniter per walk: the object is stateful.
        search = croniter(" ".join(self.fields), after.replace(second=0, microsecond=0), ret_type=datetime)
        while True:
            try:
                wall: datetime = search.get_next(datetime)
            except CroniterBadDateError:
                refuse_never(self.text)
            yield wall

    def _once_per_wall_minute(self, after: datetime, tz: ZoneInfo) -> Iterator[Fire]:
        # resolve(wall).first never decreases as wall grows, so comparing with the last instant skips both
        # the second pass of an overlap and the other minutes lost in one gap.
        latest = after
        for wall in self.walls(wall_at(after, tz)):
            meaning = resolve(wall, tz)
            if meaning.first > latest:
                latest = meaning.first
                yield Fire(latest, wall.isoformat(timespec="minutes"), self._fixed_note(wall, meaning, tz))

    def _elapsed(self, after: datetime, tz: ZoneInfo) -> Iterator[Fire]:
        latest, start = after, wall_at(after, tz)
        repeat = repeat_start(after, tz)
        while True:
            skipped: list[datetime] = []
            for wall in self.walls(start):
                meaning = resolve(wall, tz)
                if not meaning.exists:
                    skipped.append(wall)
                    continue
                in_second_pass = meaning.second is not None and meaning.first <= latest
                at = meaning.second if meaning.second is not None and in_second_pass else meaning.first
                if repeat is not None and at >= repeat and not in_second_pass:
                    # The clock was set back before this wall time came: walk the repeated minutes first.
                    start = wall_at(repeat, tz) - _MINUTE
                    latest = repeat - timedelta(microseconds=1)
                    repeat = None
                    break
                yield Fire(at, at.isoformat(), _elapsed_note(wall, meaning, skipped, tz))
                skipped.clear()
                latest = at
                if meaning.second is not None and not in_second_pass and repeat is None:
                    repeat = repeat_start(at, tz)

    def _fixed_note(self, wall: datetime, meaning: WallMinute, tz: ZoneInfo) -> str | None:
        if meaning.second is not None:
            return f"{_twice(wall, tz)}: fires at the first"
        if meaning.exists:
            return None
        lost = [wall]
        for later in self.walls(wall):
            other = resolve(later, tz)
            if other.exists:
                break
            lost.append(later)
        landing = wall_at(meaning.first, tz)
        day = "" if landing.date() == wall.date() else f" on {landing:%Y-%m-%d}"
        verb = "fires" if len(lost) == 1 else "fire once"
        return f"{_missing(lost, tz)}: {verb} at {landing:%H:%M}{day}"


@dataclass(frozen=True, slots=True)
class IntervalSchedule:
    """Fires at every multiple of `every_s` seconds from `anchor`, so that all schedulers agree on the instants.

    `parse_interval` makes it. Clock changes do not matter to it; it takes a zone only to be used like a
    CronExpression.
    """

    every_s: float
    anchor: datetime = EPOCH

    @property
    def text(self) -> str:
        return f"every {format_duration(self.every_s)}"

    def __str__(self) -> str:
        return self.text

    def next_fire(self, after: datetime, tz: ZoneInfo) -> Fire:
        """The first fire later than `after` (aware)."""
        return next(self.iter_fires(after, tz))

    def fires_between(self, after: datetime, until: datetime, tz: ZoneInfo, limit: int) -> list[Fire]:
        """The fires in (after, until], oldest first, at most `limit`."""
        end = check_fire_moment(until, "until")
        return list(islice(takewhile(lambda fire: fire.at <= end, self.iter_fires(after, tz)), limit))

    def iter_fires(self, after: datetime, tz: ZoneInfo) -> Iterator[Fire]:  # noqa: ARG002 - one interface
        """All fires later than `after`, without end."""
        index = self._index(check_fire_moment(after, "after"))
        while True:
            index += 1
            yield self._fire(index)

    def newest_fires(self, after: datetime, until: datetime, tz: ZoneInfo, limit: int) -> FireTail:  # noqa: ARG002
        """The newest `limit` fires in (after, until]; the total is arithmetic and always exact."""
        before = self._index(check_fire_moment(after, "after"))
        last = max(before, self._index(check_fire_moment(until, "until")))
        first_listed = max(before, last - limit) + 1
        return FireTail([self._fire(i) for i in range(first_listed, last + 1)], last - before, exact=True)

    @property
    def _period(self) -> timedelta:
        return timedelta(seconds=self.every_s)

    def _index(self, moment: datetime) -> int:
        return (moment - self.anchor) // self._period

    def _fire(self, index: int) -> Fire:
        # Adding to a datetime with a ZoneInfo moves its wall clock; in UTC it moves the instant.
        at = self.anchor.astimezone(UTC) + index * self._period
        return Fire(at, at.isoformat())


def check_fire_moment(value: datetime, name: str) -> datetime:
    """`value` in UTC, if it is aware and within the years that schedules cover; else InvalidTime."""
    moment = check_moment(value, field=name)
    if not YEAR_MIN <= moment.year <= YEAR_MAX:
        raise InvalidTime(name, "lies outside the years that schedules cover", limit=f"{YEAR_MIN}-{YEAR_MAX}")
    return moment.astimezone(UTC)


def _twice(wall: datetime, tz: ZoneInfo) -> str:
    return f"{wall:%H:%M} occurs twice on {_on(wall.date(), tz)}"


def _missing(lost: list[datetime], tz: ZoneInfo) -> str:
    if len(lost) == 1:
        return f"{lost[0]:%H:%M} does not exist on {_on(lost[0].date(), tz)}"
    return f"{lost[0]:%H:%M} to {lost[-1]:%H:%M} do not exist on {_on(lost[0].date(), tz)}"


def _on(day: date, tz: ZoneInfo) -> str:
    return f"{day.isoformat()} in {tz}"


def _elapsed_note(wall: datetime, meaning: WallMinute, skipped: list[datetime], tz: ZoneInfo) -> str | None:
    if skipped:
        return f"{_missing(skipped, tz)}: no fire"
    if meaning.second is not None:
        return f"{_twice(wall, tz)}: fires both times"
    return None
