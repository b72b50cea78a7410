"""What becomes of fires that nobody handled in time: which are enqueued, which are recorded as missed.

Called through core.cron by the scheduler's tick. Pure; its work is bounded whatever the length of a downtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast, get_args
from zoneinfo import ZoneInfo

from pgqueue.core.cron_fires import CronExpression, Fire, IntervalSchedule
from pgqueue.errors import InvalidSchedule

Schedule = CronExpression | IntervalSchedule
Misfire = Literal["skip", "latest", "all"]

FIRES_LISTED_MAX = 10_000
"""Most fires that one tick lists, fired and missed together; older ones are only counted."""


@dataclass(frozen=True, slots=True)
class DueFires:
    """The verdict on all fires since the last handled one; both lists are oldest first.

    `missed_total` counts every missed fire, listed or not. It is arithmetic for intervals; for a cron
    expression with more than FIRES_LISTED_MAX of them it is a lower bound and `missed_total_exact` is False.
    """

    fire: list[Fire]
    missed: list[Fire]
    missed_total: int
    missed_total_exact: bool

    @property
    def newest(self) -> Fire | None:
        """The latest fire of both lists: the next tick's `last_fire`. None when nothing was due."""
        return max((*self.fire[-1:], *self.missed[-1:]), key=lambda fire: fire.at, default=None)


def due_fires(
    schedule: Schedule,
    *,
    last_fire: datetime,
    now: datetime,
    tz: ZoneInfo,
    misfire: str,
    max_catch_up: int,
    grace_s: float,
) -> DueFires:
    """Decide over the fires in (last_fire, now] by the schedule's misfire policy.

    - `skip`: fires at most `grace_s` seconds late are enqueued, older ones are missed.
    - `latest`: only the newest is enqueued, the others are missed.
    - `all`: the newest `max_catch_up` are enqueued, older ones are missed.

    At most FIRES_LISTED_MAX fires are listed; what is older than those is missed under every policy.
    A `now` before `last_fire` (a clock that stepped back) finds nothing due.
    Raises InvalidSchedule for a bad option, InvalidTime for a naive moment.
    """
    policy = check_misfire(misfire)
    keep = check_max_catch_up(max_catch_up)
    grace = _check_grace(grace_s)
    tail = schedule.newest_fires(last_fire, now, tz, FIRES_LISTED_MAX)
    if policy == "skip":
        keep = sum((now - fire.at).total_seconds() <= grace for fire in tail.fires)
    elif policy == "latest":
        keep = 1
    split = max(0, len(tail.fires) - keep)
    fire, missed = tail.fires[split:], tail.fires[:split]
    return DueFires(fire, missed, tail.total - len(fire), missed_total_exact=tail.exact)


def check_misfire(value: object) -> Misfire:
    """`value` if it is a misfire policy; else InvalidSchedule."""
    if isinstance(value, str) and value in get_args(Misfire):
        return cast("Misfire", value)
    raise InvalidSchedule("misfire", "not a policy; write skip, latest or all")


def check_max_catch_up(value: object) -> int:
    """`value` if it is a number of fires that `all` may enqueue at once; else InvalidSchedule."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= FIRES_LISTED_MAX:
        return value
    raise InvalidSchedule("max_catch_up", "needs a whole number of fires", limit=f"1 to {FIRES_LISTED_MAX}")


def _check_grace(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    raise InvalidSchedule("grace_s", "needs a number of seconds that is not negative")
