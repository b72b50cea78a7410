"""What is promised of a queue and whose it is: the attributes that people and configuration give it; pure.

Called by the control room, and through it by the command line. The CHECK constraints of `queues` repeat the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, TypedDict, Unpack

from pgqueue.core.durations import parse_duration
from pgqueue.errors import InvalidOption

TIERS: Final = ("critical", "standard")
SECONDS_MIN: Final = 0.001
SECONDS_MAX: Final = 366 * 86_400
WORDS_CHARS_MAX: Final = 200
LIMIT_MAX: Final = 2**31 - 1


class ObjectiveOptions(TypedDict, total=False):
    """How the attributes are written; one that is left out stays as it is, None takes it back to what is configured.

    sla: a due job is to start within this ("5s", or seconds); sla_target: the share of starts that are to keep it.
    run_objective: a run is to take at most this; run_target: the share of ended jobs that are to succeed within it.
    dead_letter_limit: dead letters allowed per 15 minutes. tier: "critical" wakes people, "standard" warns.
    """

    sla: str | float | None
    sla_target: str | float | None
    run_objective: str | float | None
    run_target: str | float | None
    dead_letter_limit: str | int | None
    tier: str | None
    owner: str | None
    display_name: str | None


@dataclass(frozen=True, slots=True)
class Objectives:
    """Attributes by their column's name, only those that are given."""

    given: Mapping[str, str | float | None]

    @classmethod
    def checked(cls, **options: Unpack[ObjectiveOptions]) -> Self:
        """Read them. Raises InvalidTime or InvalidOption that name the attribute."""
        if not options:
            raise InvalidOption("attributes", "none given; give one or more, such as --sla 5s")
        given: dict[str, str | float | None] = {}
        for name, value in options.items():
            if name not in _READ:
                raise InvalidOption("attributes", f"{name} is none; they are {', '.join(_READ)}")
            column, read = _READ[name]
            given[column] = None if value is None else read(value, name)
        return cls(given)


def _seconds(value: Any, field: str) -> float:
    return parse_duration(value, field=field, minimum_s=SECONDS_MIN, maximum_s=SECONDS_MAX)


def _share(value: Any, field: str) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 < share < 1:
        raise InvalidOption(field, "must be a share such as 0.99", limit="above 0 and below 1")
    return share


def _count(value: Any, field: str) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = -1
    if not 0 <= count <= LIMIT_MAX:
        raise InvalidOption(field, "must be a count", limit=f"0–{LIMIT_MAX}")
    return count


def _tier(value: Any, field: str) -> str:
    if value not in TIERS:
        raise InvalidOption(field, f"must be {' or '.join(TIERS)}")
    return str(value)


def _words(value: Any, field: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= WORDS_CHARS_MAX or not value.isprintable():
        raise InvalidOption(field, "must be printable text", limit=f"1–{WORDS_CHARS_MAX} characters")
    return value


_READ: Final[Mapping[str, tuple[str, Callable[[Any, str], str | float]]]] = {
    "sla": ("sla_s", _seconds),
    "sla_target": ("sla_target", _share),
    "run_objective": ("run_objective_s", _seconds),
    "run_target": ("run_target", _share),
    "dead_letter_limit": ("dead_letter_limit", _count),
    "tier": ("tier", _tier),
    "owner": ("owner", _words),
    "display_name": ("display_name", _words),
}
