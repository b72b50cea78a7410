"""`ctx.progress`: others see it while the handler's transaction is open; a retry, a late run and bad input leave nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from rig.wait import wait_for

from pgqueue import AsyncJobContext, InvalidOption, Job, JobContext, Retry
from pgqueue.core.events import Warned
from pgqueue.core.progress import progress_words

QUICK = Retry(max_retries=2, initial_delay="10ms", max_delay="10ms")


def noted(site: Any, job_id: int) -> Any:
    return site.one("SELECT progress - 'at' FROM pgqueue.jobs WHERE id = %s", job_id)


def test_others_see_the_newest_note_while_the_jobs_transaction_is_open(site: Any) -> None:
    gate, first = threading.Event(), threading.Event()

    @site.app.task(name="load")
    def load(ctx: JobContext) -> None:
        ctx.conn.execute("INSERT INTO effects (job_id, note) VALUES (%s, 'x')", (ctx.job.id,))
        ctx.progress(0, 1000)
        first.wait(30)
        for n in range(1, 1001):
            ctx.progress(n, 1000, f"row {n}, password=hunter2")
        gate.wait(30)

    job = load.enqueue(None)
    site.start()
    wait_for(lambda: noted(site, job.id), what="the first note")
    before = site.one("SELECT xmin::text::bigint FROM pgqueue.jobs WHERE id = %s", job.id)
    first.set()
    wait_for(lambda: noted(site, job.id)["done"] == 1000, what="the last note")
    # A thousand notes were few writes: each would take a transaction id. Beats and upkeep take some too.
    after = site.one("SELECT xmin::text::bigint FROM pgqueue.jobs WHERE id = %s", job.id)
    assert after - before < 500
    assert noted(site, job.id) == {"done": 1000, "total": 1000, "note": "row 1000, password=***"}
    assert site.one("SELECT progress ->> 'done' FROM pgqueue.running_jobs") == "1000"
    assert progress_words(site.app.jobs.get(job.id).progress).startswith("1,000 of 1,000 (100 %), row 1000")
    (row,) = site.app.jobs.list()
    assert row.progress is not None
    assert row.progress["total"] == 1000
    gate.set()
    site.wait_state(job.id, "succeeded")
    assert site.app.jobs.get(job.id).progress is None


def test_async_handlers_note_without_waiting_and_members_each_their_own(site: Any) -> None:
    gate = threading.Event()

    @site.app.task(name="async")
    async def alone(ctx: AsyncJobContext) -> None:
        ctx.progress(1, None, "alone")
        await asyncio.to_thread(gate.wait, 30)

    @site.app.task(name="batch", batch=10)
    def batch(ctx: JobContext, jobs: list[Job]) -> None:
        ctx.progress(len(jobs), 10, "batch")
        gate.wait(30)

    @site.app.task(name="group", group_commit=2)
    def group(ctx: JobContext) -> None:
        ctx.progress(1, 1, f"group {ctx.job.id}")
        gate.wait(30)

    one = alone.enqueue(None)
    many = [job.id for job in batch.enqueue_many(None, [{}, {}])]
    member = group.enqueue(None)
    site.start()
    wait_for(lambda: noted(site, one.id), what="the async handler's note")
    assert noted(site, one.id) == {"done": 1, "total": None, "note": "alone"}
    wait_for(lambda: [noted(site, j) for j in many if noted(site, j)], what="the batch's note")
    wait_for(lambda: noted(site, member.id), what="the member's note")
    assert noted(site, member.id)["note"] == f"group {member.id}"
    gate.set()


def test_a_retry_begins_without_a_note_and_the_next_attempt_writes_its_own(site: Any) -> None:
    gate = threading.Event()

    @site.app.task(name="twice", retry=Retry(max_retries=1, initial_delay="1h", max_delay="1h"))
    def twice(ctx: JobContext) -> None:
        ctx.progress(ctx.job.attempt, 2)
        gate.wait(30)
        raise ValueError("after its note")

    job = twice.enqueue(None)
    site.start()
    wait_for(lambda: noted(site, job.id), what="the note")
    gate.set()
    site.wait_state(job.id, "scheduled")
    assert noted(site, job.id) is None
    gate.clear()
    site.app.jobs.run_now(job.id)
    wait_for(lambda: noted(site, job.id), what="the second attempt's note")
    assert noted(site, job.id)["done"] == 2
    gate.set()


def test_bad_input_is_the_handlers_own_error_and_writes_nothing(site: Any) -> None:
    met: list[str] = []

    @site.app.task(name="wrong")
    def wrong(ctx: JobContext) -> None:
        for given in ((-1,), (1, "many"), (1, 2, "x" * 201)):
            try:
                ctx.progress(*given)  # type: ignore[arg-type]
            except InvalidOption as error:
                met.append(str(error))

    job = wrong.enqueue(None)
    site.drain()
    assert [line.partition(" (")[0] for line in met] == [
        "progress: done is out of range",
        "progress: total must be a number",
        "progress: note is too long",
    ]
    assert site.state(job.id) == "succeeded"


def test_a_locked_row_is_passed_by_and_noted_later(site: Any) -> None:
    gate = threading.Event()

    @site.app.task(name="locked")
    def locked(ctx: JobContext) -> None:
        begun.set()
        held.wait(30)
        ctx.progress(1, 2)
        gate.wait(30)

    begun, held = threading.Event(), threading.Event()
    job = locked.enqueue(None)
    site.start()
    assert begun.wait(30)
    with site.database.connect() as other, other.transaction():
        other.execute("SELECT FROM pgqueue.jobs WHERE id = %s FOR UPDATE", (job.id,))
        held.set()
        wait_for(
            lambda: site.one(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgqueue/progress/%%'"
                " AND state = 'idle' AND query LIKE '%%FOR NO KEY UPDATE%%'"
            ),
            what="a write that passed the row by",
        )
        assert noted(site, job.id) is None
    wait_for(lambda: noted(site, job.id), what="the note, once the row is free")
    gate.set()


def test_a_database_that_refuses_notes_costs_no_job(make_site: Callable[..., Any]) -> None:
    site = make_site()

    @site.app.task(name="noting", retry=QUICK)
    def noting(ctx: JobContext) -> str:
        ctx.progress(1, 2)
        wait_for(lambda: any(isinstance(e, Warned) and e.key == "progress_failed" for e in site.events))
        return "done"

    # What somebody's hands may leave behind.
    site.conn.execute("ALTER TABLE pgqueue.jobs ADD CONSTRAINT no_notes CHECK (progress IS NULL)")
    job = noting.enqueue(None)
    site.drain()
    assert site.state(job.id) == "succeeded"
