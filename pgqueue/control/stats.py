"""What ended in the last minutes and how long it took, from the rollups: `pgqueue stats`. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pgqueue.control.desk import Desk
from pgqueue.control.rows import RecentWork
from pgqueue.errors import InvalidOption

MINUTES_MAX: Final = 48 * 60  # minutes are kept 48 hours


def recent_work(desk: Desk, minutes: int) -> Sequence[RecentWork]:
    """The last so many minutes that are counted, by queue (`task` None) and by task; percentiles are approximate.

    Empty when nothing ended, or nothing was counted yet. Raises InvalidOption, DatabaseUnreachable.
    """
    if not 1 <= minutes <= MINUTES_MAX:
        raise InvalidOption("minutes", f"1 to {MINUTES_MAX}")
    return desk.rows(RecentWork, "recent_work", {"minutes": minutes})
