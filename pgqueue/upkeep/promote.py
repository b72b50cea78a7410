"""Due jobs take their place in their lanes: on time by a timer when the next moment is known, else each interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import psycopg

from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Done, Duty

PROMOTE_BATCH: Final = 1_000
ROUND_BATCHES_MAX: Final = 20  # then other duties get a turn
AHEAD_S: Final = 0.0005  # a timer that fires a hair late spares the round that would find nothing


def promote_duty(interval_s: float, on_ready: Callable[[], None]) -> Duty:
    """The duty; `on_ready` tells this process's claimer, the statement itself wakes the others."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        total = 0
        for _ in range(ROUND_BATCHES_MAX):
            promoted = sum(
                row[1] for row in conn.execute(statement("promote_due"), {"batch": PROMOTE_BATCH}).fetchall()
            )
            total += promoted
            if promoted:
                on_ready()
            if promoted < PROMOTE_BATCH:
                break
        else:
            return Done(total, again_in_s=0)
        row = conn.execute(statement("next_due")).fetchone()
        return Done(total, again_in_s=None if row is None or row[0] is None else row[0] + AHEAD_S)

    return Duty("promote", interval_s, run)
