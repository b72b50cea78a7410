"""What a worker holds stays bounded though the database settles more slowly than handlers return."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from rig.wait import wait_for

from pgqueue import JobContext
from pgqueue.worker.claimer import UNSETTLED_BATCHES

SETTLE_BATCH = 16
CLAIM = 50
JOBS = 3_000
LOOKS = 20


@pytest.mark.proves("P23", "F21")
def test_a_worker_claims_no_more_while_its_settlements_wait(make_site: Any) -> None:
    """Somebody holds the row of a job that has ended: its settlement waits, and all others behind it."""
    site = make_site(settle_batch_max=SETTLE_BATCH, claim_batch_max=CLAIM)
    locked = threading.Event()
    admin = site.database.connect()
    admin.execute("BEGIN")

    @site.app.task(name="t")
    def quick(ctx: JobContext, n: int) -> None:
        if n == 0:
            admin.execute("SELECT FROM pgqueue.jobs WHERE id = %s FOR UPDATE", (ctx.job.id,))
            locked.set()

    quick.enqueue_many(None, [{"n": n} for n in range(JOBS)])
    site.start(concurrency=2)
    assert locked.wait(20)
    seen: list[int] = []

    def stands_still() -> bool:
        seen.append(site.one("SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'"))
        return len(seen) >= LOOKS and len(set(seen[-LOOKS:])) == 1

    wait_for(stands_still, 20, "claims come to an end")
    bound = UNSETTLED_BATCHES * SETTLE_BATCH
    # The round of claims under way when the bound is met still counts, and what was claimed ahead of the slots.
    assert bound < seen[-1] <= bound + 3 * CLAIM
    admin.rollback()
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.job_history") == JOBS, 30, "all are done")
