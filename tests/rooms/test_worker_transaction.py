"""`ctx.transaction()` as the first touch, and members of a group that hide an error: one effect per succeeded job, still."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
import pytest

from pgqueue import AsyncJobContext, JobContext, Retry

ONCE = Retry(max_retries=0)
INSERT = "INSERT INTO effects VALUES (%s, %s)"
pytestmark = pytest.mark.proves("P3")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_block_that_is_the_first_touch_commits_with_the_job_and_not_before(
    site: Any, is_async: bool
) -> None:
    """A handler whose block succeeded and that raised afterwards leaves nothing; one that returns leaves both."""

    def sync(ctx: JobContext, fails: bool) -> None:
        with ctx.transaction() as conn:
            conn.execute(INSERT, (ctx.job.id, "block"))
        if fails:
            raise ValueError("after the block")
        ctx.conn.execute(INSERT, (ctx.job.id, "after"))

    async def coro(ctx: AsyncJobContext, fails: bool) -> None:
        async with ctx.transaction() as conn:
            await conn.execute(INSERT, (ctx.job.id, "block"))
        if fails:
            raise ValueError("after the block")
        await ctx.conn.execute(INSERT, (ctx.job.id, "after"))

    task = site.app.task(name="t", retry=ONCE)(coro if is_async else sync)
    task.enqueue(None, fails=True)
    task.enqueue(None, fails=False)
    site.drain()
    assert site.rows("SELECT job_id, note FROM effects ORDER BY note") == [
        (site.one("SELECT job_id FROM pgqueue.job_history"), note) for note in ("after", "block")
    ]
    assert site.one("SELECT count(*) FROM pgqueue.dead_letter_jobs") == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_member_that_hides_its_error_is_the_one_that_fails(site: Any, is_async: bool) -> None:
    def sync(ctx: JobContext, n: int) -> None:
        ctx.conn.execute(INSERT, (ctx.job.id, str(n)))
        if n == 1:
            with contextlib.suppress(psycopg.Error):
                ctx.conn.execute("SELECT 1/0")

    async def coro(ctx: AsyncJobContext, n: int) -> None:
        await ctx.conn.execute(INSERT, (ctx.job.id, str(n)))
        if n == 1:
            with contextlib.suppress(psycopg.Error):
                await ctx.conn.execute("SELECT 1/0")

    task = site.app.task(name="t", group_commit=16, retry=ONCE)(coro if is_async else sync)
    task.enqueue_many(None, [{"n": n} for n in range(4)])
    site.drain(concurrency=1)
    assert site.rows("SELECT note FROM effects ORDER BY note") == [("0",), ("2",), ("3",)]
    assert site.rows("SELECT args ->> 'n' FROM pgqueue.job_history ORDER BY 1") == [("0",), ("2",), ("3",)]
    assert "swallowed" in site.one("SELECT error_message FROM pgqueue.dead_letter_jobs")


def test_statements_that_throw_prepared_ones_away_cost_nothing(site: Any) -> None:
    """psycopg deallocates everything after DROP and ALTER; each of these jobs still needs one attempt."""

    @site.app.task(name="t", retry=ONCE)
    def drops(ctx: JobContext, n: int) -> None:
        ctx.conn.execute(INSERT, (ctx.job.id, "x"), prepare=True)
        ctx.conn.execute(f"CREATE TABLE made_{n} (x int)")
        ctx.conn.execute(f"DROP TABLE made_{n}")

    drops.enqueue_many(None, [{"n": n} for n in range(10)])
    site.drain(concurrency=1)
    assert site.one("SELECT count(*) FROM pgqueue.job_history WHERE attempts = 1") == 10
    assert site.one("SELECT count(*) FROM effects") == 10


def test_a_hidden_deallocate_costs_one_attempt_and_the_worker_learns(site: Any) -> None:
    """Nobody told psycopg: the settlement's own statement is gone. Afterwards it is sent in full."""

    @site.app.task(name="t", retry=Retry(max_retries=1, initial_delay="10ms", max_delay="10ms"))
    def forgets(ctx: JobContext, n: int) -> str:
        ctx.conn.execute("DO 'BEGIN EXECUTE ''DEALLOCATE ALL''; END'", prepare=False)
        ctx.conn.execute(INSERT, (ctx.job.id, "it's\\"), prepare=False)
        return "100%% it's\\ %(id)s"

    forgets.enqueue_many(None, [{"n": n} for n in range(10)])
    site.drain(concurrency=1)
    assert site.rows("SELECT attempts, count(*) FROM pgqueue.job_history GROUP BY 1 ORDER BY 1") == [
        (1, 9),
        (2, 1),
    ]
    assert (
        site.one("SELECT count(DISTINCT job_id) FROM effects")
        == site.one("SELECT count(*) FROM effects")
        == site.one(
            "SELECT count(*) FROM pgqueue.job_history WHERE result = to_jsonb(%s::text)",
            "100%% it's\\ %(id)s",
        )
        == 10
    )


@pytest.mark.parametrize("prepared", [True, False])
def test_a_result_is_quoted_whatever_is_in_it(site: Any, prepared: bool) -> None:
    text = "it's \\ % %(id)s $1 {} \"'; DROP TABLE effects; --\u00e4\u2028"

    @site.app.task(name="t", retry=ONCE)
    def answers(ctx: JobContext) -> dict[str, Any]:
        ctx.conn.execute(INSERT, (ctx.job.id, "x"))
        ctx.conn.habits.prepares = prepared  # type: ignore[attr-defined]  # of a JobConnection
        return {"text": text, text: None}

    answers.enqueue(None)
    site.drain()
    assert site.one("SELECT result FROM pgqueue.job_history") == {"text": text, text: None}
    assert site.one("SELECT count(*) FROM effects") == 1
