"""Idempotency keys whose life is over go, in batches."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Done, Duty

EXPIRE_BATCH: Final = 1_000


def expiry_duty(interval_s: float) -> Duty:
    """The duty; one batch a round, the next at once while there is more."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        row = conn.execute(statement("expire_keys"), {"batch": EXPIRE_BATCH}).fetchone()
        expired = row[0] if row is not None else 0
        return Done(expired, again_in_s=0.05 if expired >= EXPIRE_BATCH else None)

    return Duty("expiry", interval_s, run, alone=True)
