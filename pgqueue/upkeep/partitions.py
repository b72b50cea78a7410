"""Day partitions of history and audit, made ahead of time. Called by whoever does a fleet's chores."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Done, Duty

PARTITIONS_S: Final = 3600.0


def partitions_duty(*, ahead_days: int) -> Duty:
    """The duty; what is locked is left for a later round, since a waiting lock would queue everybody."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        made = conn.execute(statement("ensure_partitions"), {"ahead_days": ahead_days}).fetchone()
        return Done(made[0] if made else 0)

    return Duty("partitions", PARTITIONS_S, run, alone=True)
