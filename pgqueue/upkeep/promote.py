"""Due jobs take their place in their lanes: on time by a timer when the next moment is known, else each interval."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import psycopg

from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Done, Duty
from pgqueue.upkeep.search import Search

PROMOTE_BATCH: Final = 1_000
ROUND_BATCHES_MAX: Final = 20  # then other duties get a turn
AHEAD_S: Final = 0.0005  # a timer that fires a hair late spares the round that would find nothing
DAWN: Final = datetime(
    1, 1, 2, tzinfo=UTC
)  # before every moment; the day before may lie in the year 0 elsewhere


def promote_duty(interval_s: float, on_ready: Callable[[], None]) -> Duty:
    """The duty; `on_ready` tells this process's claimer, the statement itself wakes the others."""
    search = Search.over(run_at=DAWN, id=0)

    def run(conn: psycopg.Connection[Any]) -> Done:
        search.begin()
        total = 0
        for _ in range(ROUND_BATCHES_MAX):
            rows = conn.execute(statement("promote_due"), {**search.at, "batch": PROMOTE_BATCH}).fetchall()
            promoted = sum(row[1] for row in rows)
            total += promoted
            if rows:
                search.saw({"run_at": rows[0][2], "id": rows[0][3]})
                on_ready()
            if promoted < PROMOTE_BATCH:
                search.finish()
                break
        else:
            return Done(total, again_in_s=0)
        row = conn.execute(statement("next_due"), search.at).fetchone()
        return Done(total, again_in_s=None if row is None or row[0] is None else row[0] + AHEAD_S)

    return Duty("promote", interval_s, run)
