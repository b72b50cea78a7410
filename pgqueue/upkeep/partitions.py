"""Day partitions of history and audit: made ahead of time, dropped by retention, whole days at once."""

from __future__ import annotations

from typing import Any

import psycopg

from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Done, Duty


def partitions_duty(interval_s: float, *, ahead_days: int, keep_days: int) -> Duty:
    """The duty; a parent that is locked is left for the next round, since a waiting lock would queue everybody."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        made = conn.execute(statement("ensure_partitions"), {"ahead_days": ahead_days}).fetchone()
        dropped = conn.execute(statement("drop_partitions"), {"keep_days": keep_days}).fetchone()
        return Done((made[0] if made else 0) + (dropped[0] if dropped else 0))

    return Duty("partitions", interval_s, run, alone=True)
