"""Minutes, hours and days of work counted from history, and samples of the queues' depth and lag.

Called by whoever does a fleet's chores; the counting itself is SQL (sql/schema/46_stats.sql).
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Done, Duty

ROLLUPS_S: Final = 15.0  # so a minute is counted 15 to 30 s after its end
SAMPLES_S: Final = 20.0  # so that no minute goes without; the first look in a minute takes its sample
RECOUNT_S: Final = 600.0
PRUNE_S: Final = 600.0
STEP_PAUSE_S: Final = 0.05
MINUTES_MAX: Final = 10  # counted in one step; more only after a time without anybody to count
PRUNE_BATCH: Final = 2_000  # of each grain


def rollups_duty() -> Duty:
    """The minutes that have ended since the last time."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        row = conn.execute(statement("roll_up"), {"minutes_max": MINUTES_MAX}).fetchone()
        written, behind = row or (0, False)
        if written:
            conn.execute(statement("summarize_days"))
        return Done(written, again_in_s=STEP_PAUSE_S if behind else None)

    return Duty("rollups", ROLLUPS_S, run, alone=True)


def recount_duty() -> Duty:
    """Each day once more after its end; `changed` is how many rows of the rollups had been wrong."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        row = conn.execute(statement("recount"), {"minutes_max": MINUTES_MAX}).fetchone()
        corrected, behind = row or (0, False)
        return Done(corrected, again_in_s=STEP_PAUSE_S if behind else None)

    return Duty("recount", RECOUNT_S, run, alone=True)


def samples_duty() -> Duty:
    """Depth and lag of each queue, once a minute."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        return Done(max(0, conn.execute(statement("sample_queues")).rowcount))

    return Duty("samples", SAMPLES_S, run, alone=True)


def prune_stats_duty() -> Duty:
    """Rollups past their time."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        row = conn.execute(statement("prune_stats"), {"batch": PRUNE_BATCH}).fetchone()
        pruned = int(row[0]) if row is not None else 0
        return Done(pruned, again_in_s=STEP_PAUSE_S if pruned >= PRUNE_BATCH else None)

    return Duty("stats_retention", PRUNE_S, run, alone=True)
