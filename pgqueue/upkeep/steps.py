"""Recorded steps go when nothing is known of their job any more, in batches."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Done, Duty

PRUNE_BATCH: Final = 500

_START: Final = ("-infinity", 0, "")


def steps_duty(interval_s: float, *, keep_days: int) -> Duty:
    """The duty: a batch a round, the next at once while there is more. Where it stopped is remembered.

    Steps of jobs that are still known (dead letters, mostly) are passed by; at the end it starts from the oldest again.
    """
    after: tuple[Any, int, str] = _START

    def run(conn: psycopg.Connection[Any]) -> Done:
        nonlocal after
        row = conn.execute(
            statement("prune_steps"),
            {
                "keep_days": keep_days,
                "batch": PRUNE_BATCH,
                "after_at": after[0],
                "after_id": after[1],
                "after_name": after[2],
            },
        ).fetchone()
        assert row is not None  # noqa: S101 - the statement always has one row
        looked, deleted, at, job_id, name = row
        more = looked >= PRUNE_BATCH
        after = (at, job_id, name) if more else _START
        return Done(deleted, again_in_s=0.05 if more else None)

    return Duty("steps", interval_s, run, alone=True)
