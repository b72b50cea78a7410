"""Durations and moments as people write them ("5m", "1h30m"), turned into checked numbers.

Called by every room that takes a delay, a timeout or an interval; pure.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta

from pgqueue.errors import InvalidTime

DURATION_S_MAX = 10 * 365.25 * 86_400
"""Ten years: longer delays are typing errors, and far from where intervals overflow in Postgres."""
YEAR_MAX = 9998
"""Postgres knows later years, Python's datetime does not; one year of room for time zones."""

_TEXT_CHARS_MAX = 64
_UNITS_S: dict[str, float] = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1, "ms": 0.001}
_RANKS = {unit: rank for rank, unit in enumerate(_UNITS_S)}
_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h|d|w)")
_BARE_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_GRAMMAR = 'write numbers with units ms, s, m, h, d or w, largest first, like "30s", "5m" or "1h30m"'


def parse_duration(
    value: str | float | timedelta,
    *,
    field: str,
    minimum_s: float = 0,
    maximum_s: float = DURATION_S_MAX,
) -> float:
    """Return a duration in seconds from text with units, a number of seconds, or a timedelta.

    Raises InvalidTime for anything else: a string without a unit, a bool, NaN, infinity, or a value
    outside `minimum_s … maximum_s`.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str):
        seconds = _parse_text(value, field)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidTime(
            field, f"must be text, seconds or a timedelta, not {type(value).__name__}; {_GRAMMAR}"
        )
    else:
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
    if not math.isfinite(seconds):
        raise InvalidTime(
            field, "must be a finite number of seconds", limit=f"≤ {format_duration(maximum_s)}"
        )
    if seconds < minimum_s:
        below = "must not be negative" if minimum_s == 0 else "is too short"
        raise InvalidTime(field, below, limit=f"≥ {format_duration(minimum_s)}")
    if seconds > maximum_s:
        raise InvalidTime(field, "is too long", limit=f"≤ {format_duration(maximum_s)}")
    return seconds


def format_duration(seconds: float) -> str:
    """Return a duration for people: its two largest units ("1h 30m"), or "2.5s", "250ms"."""
    if not math.isfinite(seconds):
        return f"{seconds}s"
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if seconds < 0.9995:
        return "0s" if seconds == 0 else f"{seconds * 1000:.3g}ms"
    if seconds < 59.95:
        return f"{seconds:.3g}s"
    left = round(seconds)
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            break  # "1d 0h 3m" reads as "1d": precision below the next unit is noise
        if len(parts) == 2:
            break
    return " ".join(parts)


def check_moment(value: datetime, *, field: str) -> datetime:
    """Return `value` if it is an aware datetime that Postgres and Python can both hold.

    Raises InvalidTime for a naive datetime (it would silently be read in the session's zone), for a
    year past 9998, and for anything that is not a datetime.
    """
    if not isinstance(value, datetime):
        raise InvalidTime(field, f"must be a datetime with a time zone, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidTime(
            field, "has no time zone; pass datetime.now(UTC) or attach tzinfo, such as ZoneInfo('UTC')"
        )
    if value.year > YEAR_MAX:
        raise InvalidTime(field, "lies too far in the future", limit=f"year ≤ {YEAR_MAX}")
    return value


def parse_moment(text: str, *, field: str) -> datetime:
    """Return a moment written as 2026-12-01T08:00Z. Raises InvalidTime, also for one without a zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidTime(field, "is not a moment; write it as 2026-12-01T08:00Z") from None
    return check_moment(moment, field=field)


def _parse_text(text: str, field: str) -> float:
    compact = text.strip()
    if len(compact) > _TEXT_CHARS_MAX:
        raise InvalidTime(field, f"is not a duration; {_GRAMMAR}", limit=f"≤ {_TEXT_CHARS_MAX} characters")
    if _BARE_NUMBER.fullmatch(compact):
        raise InvalidTime(field, f'has no unit; write "{compact}s" for seconds')
    total, position, last_rank = 0.0, 0, -1
    for part in _PART.finditer(compact):
        between = compact[position : part.start()]
        rank = _RANKS[part[2]]
        if between.strip(" ") or rank <= last_rank:
            raise InvalidTime(field, f"is not a duration; {_GRAMMAR}")
        total += float(part[1]) * _UNITS_S[part[2]]
        position, last_rank = part.end(), rank
    if position == 0 or position != len(compact):
        raise InvalidTime(field, f"is not a duration; {_GRAMMAR}")
    return total
