"""Claims of dead workers come back: a free liveness lock tells within seconds, the lease in any case.

Looks at claims, not at worker rows, so a missing row hides nothing; every taking-back passes the fence.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

import psycopg

from pgqueue.core.events import Events, JobsRescued
from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Done, Duty

CLAIMS_PAGE: Final = 200
_START: Final = uuid.UUID(int=0)


def rescue_duty(
    interval_s: float, events: Events, actor: Callable[[], str], on_ready: Callable[[], None]
) -> Duty:
    """The duty: watch, bury, take back. Each statement commits by itself, so a slow round keeps nothing locked."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        conn.execute(statement("watch_workers"))
        causes = {
            str(worker_id): cause for worker_id, cause in conn.execute(statement("bury_workers")).fetchall()
        }
        changed = take_back(conn, events, actor(), causes)
        if causes:
            conn.execute(statement("forget_sleepers"))
        if changed:
            on_ready()
        return Done(changed)

    return Duty("rescue", interval_s, run)


def take_back(conn: psycopg.Connection[Any], events: Events, actor: str, causes: dict[str, str]) -> int:
    """Take every open claim of workers that are not alive back; returns how many jobs."""
    after, total = _START, 0
    held: dict[str, int] = defaultdict(int)
    dead: dict[str, int] = defaultdict(int)
    while True:
        page = conn.execute(statement("dead_claims"), {"after": after, "batch": CLAIMS_PAGE}).fetchall()
        for claim_id, worker_id in page:
            rows = conn.execute(statement("rescue_claim"), {"claim_id": claim_id, "actor": actor}).fetchall()
            for row in rows:
                (dead if row[1] == "dead" else held)[str(worker_id)] += 1
            total += len(rows)
            after = claim_id
        if len(page) < CLAIMS_PAGE:
            break
    for worker_id in {*held, *dead, *causes}:
        events.emit(
            JobsRescued(worker_id, causes.get(worker_id, "orphaned"), held[worker_id], dead[worker_id])
        )
    return total


def forget_duty(interval_s: float) -> Duty:
    """Rows of workers that ended a day ago go."""

    def run(conn: psycopg.Connection[Any]) -> Done:
        conn.execute(statement("forget_sleepers"))
        return Done(max(0, conn.execute(statement("forget_workers")).rowcount))

    return Duty("workers", interval_s, run, alone=True)
