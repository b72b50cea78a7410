"""Windows that have ended: one job of each takes a place in its lane, and its call gathers the others.

A worker's duty. The database's clock says which have ended; an advisory lock sees to it that each is led once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import psycopg

from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Done, Duty
from pgqueue.upkeep.promote import AHEAD_S, DAWN
from pgqueue.upkeep.search import Place, Search

WINDOWS_BATCH: Final = 500
ROUND_BATCHES_MAX: Final = (
    20  # then other duties get a turn, and the next round goes on where this one stopped
)


def windows_duty(interval_s: float, on_ready: Callable[[], None]) -> Duty:
    """The duty; `on_ready` tells this process's claimer, the statement itself wakes the others."""
    search = Search.over(run_at=DAWN, queue="", task="", key="")

    def run(conn: psycopg.Connection[Any]) -> Done:
        search.begin()
        led = 0
        for _ in range(ROUND_BATCHES_MAX):
            found = _lead(conn, search.at)
            if found is None:
                search.leave()
                break
            seen, now_led, last = found
            led += now_led
            if now_led:
                on_ready()
            if seen:
                search.saw(last)
            if seen < WINDOWS_BATCH:
                search.finish()
                break
        if search.under_way:
            return Done(led, again_in_s=0)
        row = conn.execute(statement("next_window")).fetchone()
        return Done(led, again_in_s=None if row is None or row[0] is None else row[0] + AHEAD_S)

    return Duty("windows", interval_s, run)


def _lead(conn: psycopg.Connection[Any], after: Place) -> tuple[int, int, Place] | None:
    """Lead the next windows: how many were seen, how many lead now, and the last one. None: another process does it."""
    with conn.transaction():
        # Two at once would each see a window without a leader, and give it two. The lock comes first: the statement
        # after it sees what the last holder did.
        row = conn.execute(statement("try_windows")).fetchone()
        if row is None or not row[0]:
            return None
        found = conn.execute(statement("lead_windows"), {**after, "batch": WINDOWS_BATCH}).fetchone()
    if found is None:
        return 0, 0, after
    return found[0], found[1], dict(zip(after, found[2:], strict=True))
