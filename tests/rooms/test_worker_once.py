"""`ctx.once`: one of many jobs does it, in its own transaction; the others are told who, and what came of it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from rig.wait import wait_for

from pgqueue import AsyncJobContext, InvalidInput, JobContext, Retry

QUICK = Retry(max_retries=3, initial_delay="10ms", max_delay="10ms")
INSERT = "INSERT INTO effects VALUES (%s, %s)"
pytestmark = pytest.mark.proves("DD6")


def test_of_many_jobs_at_once_one_does_it_sync_or_async(site: Any) -> None:
    @site.app.task(name="mail")
    def mail(ctx: JobContext) -> Any:
        once = ctx.once("welcome:7", "1h")
        if once:
            ctx.conn.execute(INSERT, (ctx.job.id, "sync"))
            once.keep({"sent_by": ctx.job.id})
        return [bool(once), once.job_id, once.result]

    @site.app.task(name="amail")
    async def amail(ctx: AsyncJobContext) -> Any:
        once = await ctx.once("welcome:7", "1h")
        if once:
            await ctx.conn.execute(INSERT, (ctx.job.id, "async"))
            await once.keep({"sent_by": ctx.job.id})
        return [bool(once), once.job_id, once.result]

    for _ in range(20):
        mail.enqueue(None)
        amail.enqueue(None)
    site.drain(concurrency=8)
    assert sorted(note for _, note in site.rows("SELECT * FROM effects")) == ["async", "sync"]
    for task in ("mail", "amail"):  # keys of different tasks never meet
        told = [row[0] for row in site.rows("SELECT result FROM pgqueue.job_history WHERE task = %s", task)]
        (first,) = [holder for taken, holder, _ in told if taken]
        assert len(told) == 20
        assert [taken for taken, _, _ in told].count(True) == 1
        assert all((holder, kept) == (first, {"sent_by": first}) for _, holder, kept in told)


@pytest.mark.proves("P3")
def test_what_a_failed_attempt_took_is_free_again(site: Any) -> None:
    taken: list[bool] = []

    @site.app.task(name="mail", retry=QUICK)
    def mail(ctx: JobContext) -> None:
        taken.append(bool(ctx.once("k")))
        if ctx.job.attempt < 3:
            raise ValueError("rolls back, the key too")

    mail.enqueue(None)
    mail.enqueue(None)
    site.drain(concurrency=1)
    assert taken.count(True) == 5, "each of the attempts that failed, and one that did not"
    assert site.one("SELECT count(*) FROM pgqueue.dedup_keys WHERE task = 'once:mail'") == 1


def test_a_job_that_holds_the_key_is_waited_for(site: Any) -> None:
    """The second job finds out whether the first one succeeded, not only that it began."""
    entered = threading.Event()
    order: list[str] = []

    @site.app.task(name="mail", retry=Retry(max_retries=0))
    def mail(ctx: JobContext, n: int) -> None:
        if n == 1:
            assert ctx.once("k")
            entered.set()
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            wait_for(lambda: site.one(waits), 30, what="the second job's wait")
            order.append("the first fails")
            raise ValueError
        assert entered.wait(30)
        order.append(f"the second: {bool(ctx.once('k'))}")

    for n in (1, 2):
        mail.enqueue(None, n=n)
    site.drain()
    assert order == ["the first fails", "the second: True"]


def test_its_life_and_its_words(site: Any) -> None:
    answers: list[Any] = []

    @site.app.task(name="mail", retry=Retry(max_retries=0))
    def mail(ctx: JobContext) -> None:
        answers.append(
            (bool(ctx.once("timed", "1h")), bool(ctx.once("forever", None)), bool(ctx.once("forever", None)))
        )
        for key, ttl in (("", "1h"), ("k", 0), ("k", "soon")):
            with pytest.raises(InvalidInput):
                ctx.once(key, ttl)
        with pytest.raises(InvalidInput, match=r"^once at \$\.result"):
            ctx.once("kept").keep(object())

    # A job's own idempotency key is no key of its handlers.
    mail.using(idempotency_key="timed").enqueue(None)
    site.drain()
    lives = dict(
        site.rows("SELECT key, expires_at = 'infinity' FROM pgqueue.dedup_keys WHERE task = 'once:mail'")
    )
    assert lives == {"timed": False, "forever": True, "kept": False}
    site.conn.execute(
        "UPDATE pgqueue.dedup_keys SET expires_at = clock_timestamp() - interval '1 s' WHERE isfinite(expires_at)"
    )
    mail.enqueue(None)
    site.drain()
    assert answers == [(True, True, False), (True, False, False)]
