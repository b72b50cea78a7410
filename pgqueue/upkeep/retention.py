"""What is kept long enough goes: whole days by partition, rows of short-lived queues, decided dead letters.

Called by whoever does a fleet's chores. Each round is one bounded step in a transaction of its own.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Done, Duty

RETENTION_S: Final = 600.0
STEP_PAUSE_S: Final = 0.05  # between two steps others get the locks
DEFAULT_BATCH: Final = 1_000
LETTERS_BATCH: Final = 500
SWEEP_BLOCKS: Final = 2_000  # 16 MB of one day


def retention_duty(*, keep_days: int) -> Duty:
    """Days past their time: one partition a round; then what lies in the default partitions."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        part = conn.execute(statement("drop_partition"), {"keep_days": keep_days}).fetchone()
        if part is not None and part[0] is not None:
            return Done(1, again_in_s=STEP_PAUSE_S)
        pruned = _count(conn, "prune_default_partitions", {"keep_days": keep_days, "batch": DEFAULT_BATCH})
        return Done(pruned, again_in_s=STEP_PAUSE_S if pruned else None)

    return Duty("retention", RETENTION_S, run, alone=True)


def queue_retention_duty() -> Duty:
    """Rows of queues that keep their history shorter than the rest: some blocks of one day a round."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        row = conn.execute(statement("sweep_history"), {"blocks": SWEEP_BLOCKS}).fetchone()
        deleted, looked = row or (0, False)
        return Done(deleted, again_in_s=STEP_PAUSE_S if looked else None)

    return Duty("queue_retention", RETENTION_S, run, alone=True)


def dead_letters_duty(*, redriven_days: int, waiting_days: int, actor: str) -> Duty:
    """Redriven letters after `redriven_days`; those nobody decided about after `waiting_days`, 0 = never."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        gone = _count(conn, "prune_redriven", {"keep_days": redriven_days, "batch": LETTERS_BATCH})
        more = gone >= LETTERS_BATCH
        if waiting_days and not more:
            parameters = {"keep_days": waiting_days, "batch": LETTERS_BATCH, "actor": actor}
            discarded = _count(conn, "discard_old_letters", parameters)
            gone += discarded
            more = discarded >= LETTERS_BATCH
        return Done(gone, again_in_s=STEP_PAUSE_S if more else None)

    return Duty("dead_letters", RETENTION_S, run, alone=True)


def _count(conn: psycopg.Connection[Any], name: str, parameters: dict[str, Any]) -> int:
    row = conn.execute(statement(name), parameters).fetchone()
    return int(row[0]) if row is not None else 0
