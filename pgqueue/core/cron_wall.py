"""Wall clocks and instants: which moments a local minute names, and where a zone's clock jumps.

Called by core.cron only. Pure: zone data come in as a `ZoneInfo`, moments as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

_SECOND = timedelta(seconds=1)
_SCAN_STEP = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class WallMinute:
    """What one local wall time means in a zone. All instants are UTC.

    `first` is the instant that a fixed local time uses: the only one, the first of two in an overlap,
    or, when the wall time falls into a gap (`exists` is False), the first instant after the gap.
    `second` is the other instant in an overlap.
    """

    first: datetime
    second: datetime | None
    exists: bool


def wall_at(instant: datetime, tz: ZoneInfo) -> datetime:
    """The naive local time that a clock in `tz` shows at `instant`."""
    return instant.astimezone(tz).replace(tzinfo=None, fold=0)


def resolve(wall: datetime, tz: ZoneInfo) -> WallMinute:
    """The instants at which a clock in `tz` shows the naive time `wall` (PEP 495 semantics)."""
    earlier, later = _offsets(wall, tz)
    at_earlier = (wall - earlier).replace(tzinfo=UTC)
    if earlier == later:
        return WallMinute(at_earlier, None, exists=True)
    at_later = (wall - later).replace(tzinfo=UTC)
    if earlier > later:
        return WallMinute(at_earlier, at_later, exists=True)
    # In a gap fold=0 answers with the offset before the jump, so the two readings lie on either side of it.
    return WallMinute(_jump_between(at_later, at_earlier, tz), None, exists=False)


def repeat_start(instant: datetime, tz: ZoneInfo) -> datetime | None:
    """The instant at which the clock is set back, if `instant` lies in the minutes that will be repeated."""
    local = instant.astimezone(tz)
    if local.fold:
        return None
    earlier, later = _offsets(local.replace(tzinfo=None), tz)
    if earlier <= later:
        return None
    return _jump_between(instant, instant + (earlier - later), tz)


def clock_changes(after: datetime, until: datetime, tz: ZoneInfo) -> Iterator[tuple[datetime, timedelta]]:
    """Each instant in (after, until] at which the zone's UTC offset changes, with the change.

    A change that is undone within _SCAN_STEP is not seen; no zone has had one.
    """
    start = after.astimezone(UTC)
    while start < until:
        end = min(start + _SCAN_STEP, until.astimezone(UTC))
        change = _offset(end, tz) - _offset(start, tz)
        if change:
            yield _jump_between(start, end, tz), change
        start = end


def _offset(instant: datetime, tz: ZoneInfo) -> timedelta:
    return wall_at(instant, tz) - instant.replace(tzinfo=None)


def _offsets(wall: datetime, tz: ZoneInfo) -> tuple[timedelta, timedelta]:
    aware = wall.replace(tzinfo=tz, fold=0)
    before, after = aware.utcoffset(), aware.replace(fold=1).utcoffset()
    if before is None or after is None:  # a ZoneInfo always answers for a datetime
        raise AssertionError(f"zone {tz} gave no UTC offset")
    return before, after


def _jump_between(before: datetime, after: datetime, tz: ZoneInfo) -> datetime:
    """The first second of (before, after] that has the UTC offset of `after`: bisection over one jump."""
    target = _offset(after, tz)
    base = before.replace(microsecond=0)
    low, high = 0, math.ceil((after - base) / _SECOND)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(base + middle * _SECOND, tz) == target:
            high = middle
        else:
            low = middle
    return base + high * _SECOND
