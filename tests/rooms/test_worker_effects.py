"""A handler's writes commit with its job's settlement, or not at all; and nothing leaks to the next job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from pgqueue import AsyncJobContext, JobContext, Retry

ONCE = Retry(max_retries=0)
INSERT = "INSERT INTO effects VALUES (%s, %s)"
pytestmark = pytest.mark.proves("P3")


def effects(site: Any) -> list[str]:
    return [row[0] for row in site.rows("SELECT note FROM effects ORDER BY 1")]


def test_sync_and_async_connections_and_sessions(site: Any) -> None:
    app = site.app

    @app.task(name="conn")
    def conn(ctx: JobContext) -> None:
        ctx.conn.execute(INSERT, (ctx.job.id, "conn"))
        with ctx.transaction() as inner:
            inner.execute(INSERT, (ctx.job.id, "inner"))

    @app.task(name="session")
    def session(ctx: JobContext) -> None:
        ctx.session.execute(text("INSERT INTO effects VALUES (:i, 'session')"), {"i": ctx.job.id})
        assert ctx.session.connection() is not None

    @app.task(name="aconn")
    async def aconn(ctx: AsyncJobContext) -> None:
        await ctx.conn.execute(INSERT, (ctx.job.id, "aconn"))
        async with ctx.conn.cursor() as cursor:
            await cursor.execute(INSERT, (ctx.job.id, "acursor"))
        async with ctx.transaction() as inner:
            await inner.execute(INSERT, (ctx.job.id, "ainner"))

    @app.task(name="asession")
    async def asession(ctx: AsyncJobContext) -> None:
        await ctx.session.execute(text("INSERT INTO effects VALUES (:i, 'asession')"), {"i": ctx.job.id})

    for _ in range(3):
        for task in (conn, session, aconn, asession):
            task.enqueue(None)
    site.drain()
    assert effects(site) == sorted(["conn", "inner", "session", "aconn", "acursor", "ainner", "asession"] * 3)
    assert site.one("SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded'") == 12
    # The effect was written under the fence that settled.
    assert site.one("SELECT count(*) FROM pgqueue.claims") == 0


def test_a_child_exists_only_if_its_parent_succeeds(site: Any) -> None:
    @site.app.task(name="child")
    def child(n: int) -> None:
        """Runs after its parent."""

    @site.app.task(name="parent", retry=ONCE)
    def parent(ctx: JobContext, fail: bool) -> None:
        ctx.enqueue(child, n=int(fail))
        if fail:
            raise ValueError

    @site.app.task(name="aparent")
    async def aparent(ctx: AsyncJobContext) -> None:
        await ctx.enqueue(child.using(priority=1), n=5)

    good = parent.enqueue(None, fail=False)
    parent.enqueue(None, fail=True)
    again = aparent.enqueue(None)
    site.drain()
    rows = site.rows("SELECT parent_id, args FROM pgqueue.job_history WHERE task = 'child' ORDER BY 1")
    assert rows == [(good.id, {"n": 0}), (again.id, {"n": 5})]


def commit(ctx: JobContext) -> None:
    ctx.conn.commit()


def rollback(ctx: JobContext) -> None:
    ctx.conn.rollback()


def close(ctx: JobContext) -> None:
    ctx.conn.close()


def raw_commit(ctx: JobContext) -> None:
    ctx.conn.execute("COMMIT")


def raw_commit_and_more(ctx: JobContext) -> None:
    ctx.conn.execute("COMMIT")
    ctx.conn.execute(INSERT, (1, "second transaction"))


def raw_rollback_chain(ctx: JobContext) -> None:
    ctx.conn.execute("ROLLBACK AND CHAIN")


def session_commit(ctx: JobContext) -> None:
    ctx.session.commit()


def swallow(ctx: JobContext) -> None:
    try:
        ctx.conn.execute("SELECT 1/0")
    except psycopg.Error:
        pass


@pytest.mark.proves("F47")
@pytest.mark.parametrize(
    "misuse",
    [commit, rollback, close, raw_commit, raw_commit_and_more, raw_rollback_chain, session_commit, swallow],
)
def test_a_handler_that_ends_its_transaction_fails_and_says_so(
    site: Any, misuse: Callable[[JobContext], None]
) -> None:
    @site.app.task(name="t", retry=ONCE)
    def t(ctx: JobContext) -> None:
        if misuse not in {raw_commit, raw_commit_and_more}:
            ctx.conn.execute(INSERT, (ctx.job.id, "half"))
        misuse(ctx)

    t.enqueue(None)
    site.drain()
    assert site.rows("SELECT reason, error_type FROM pgqueue.dead_letter_jobs") == [
        ("max_retries", "pgqueue.errors.TransactionMisuse")
    ] or site.rows("SELECT reason, error_type FROM pgqueue.dead_letter_jobs") == [
        ("max_retries", "TransactionMisuse")
    ]
    assert effects(site) == []


@pytest.mark.proves("F47")
def test_nothing_leaks_to_the_next_job(site: Any) -> None:
    seen: list[tuple[Any, ...]] = []

    @site.app.task(name="dirty")
    def dirty(ctx: JobContext) -> None:
        ctx.conn.execute("SET search_path = nowhere")
        ctx.conn.execute("CREATE TEMP TABLE leftover (x int)")
        ctx.conn.execute("SELECT pg_advisory_lock(4711)")
        ctx.conn.execute("LISTEN leftover")
        ctx.conn.execute("SET ROLE pgqueue_worker")

    @site.app.task(name="clean")
    def clean(ctx: JobContext) -> None:
        row = ctx.conn.execute(
            "SELECT current_setting('search_path'), current_user = session_user, to_regclass('leftover')::text, (SELECT count(*) FROM pg_listening_channels()),"
            " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
        ).fetchone()
        assert row is not None
        seen.append(row)

    dirty.enqueue(None)
    site.drain(concurrency=1)
    clean.enqueue(None)
    dirty.enqueue(None)
    clean.enqueue(None)
    site.drain(concurrency=1)
    assert seen == [('"$user", public', True, None, 0, 0)] * 2
    assert (
        site.one("SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded' AND attempts = 1") == 4
    )


@pytest.mark.proves("F47")
def test_nothing_leaks_to_the_next_async_job(site: Any) -> None:
    seen: list[tuple[Any, ...]] = []

    @site.app.task(name="dirty")
    async def dirty(ctx: AsyncJobContext) -> None:
        for command in ("SET search_path = nowhere", "CREATE TEMP TABLE leftover (x int)", "LISTEN leftover"):
            await ctx.conn.execute(command)
        await ctx.conn.execute("SELECT pg_advisory_lock(4711)")
        await ctx.conn.execute("SET ROLE pgqueue_worker")

    @site.app.task(name="clean")
    async def clean(ctx: AsyncJobContext) -> None:
        cursor = await ctx.conn.execute(
            "SELECT current_setting('search_path'), current_user = session_user, to_regclass('leftover')::text, (SELECT count(*) FROM pg_listening_channels()),"
            " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
        )
        row = await cursor.fetchone()
        assert row is not None
        seen.append(row)

    for task in (dirty, clean, dirty, clean):
        task.enqueue(None)
        site.drain(concurrency=1)
    assert seen == [('"$user", public', True, None, 0, 0)] * 2
    assert (
        site.one("SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded' AND attempts = 1") == 4
    )


def test_a_deferred_constraint_that_fails_at_commit_is_a_failed_attempt(site: Any) -> None:
    site.conn.execute("CREATE TABLE once (x int UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    @site.app.task(name="t", retry=ONCE)
    def t(ctx: JobContext) -> None:
        ctx.conn.execute("INSERT INTO once VALUES (1), (1)")

    job = t.enqueue(None)
    site.drain()
    assert site.state(job.id) == "dead"
    message = site.one("SELECT error_message FROM pgqueue.dead_letter_jobs")
    assert "23505" in message
    assert "Key (x)" not in message  # no row values


def test_a_batch_is_one_transaction_and_its_poison_is_found_by_halving(site: Any) -> None:
    calls: list[int] = []

    @site.app.task(name="b", batch=50, retry=ONCE)
    def b(ctx: Any, jobs: list[Any]) -> None:
        calls.append(len(jobs))
        ctx.conn.cursor().executemany(INSERT, [(job.id, "batch") for job in jobs])
        if any(job.args["n"] == 13 for job in jobs):
            raise ValueError("poison")
        for job in jobs:
            if job.args["n"] == 20:
                ctx.fail(job, "by itself")

    jobs = b.enqueue_many(None, [{"n": n} for n in range(100)])
    site.drain(concurrency=1)
    dead = dict(site.rows("SELECT job_id, error_message FROM pgqueue.dead_letter_jobs"))
    assert set(dead) == {jobs[13].id, jobs[20].id}
    assert site.one("SELECT count(*) FROM pgqueue.job_history") == 98
    # The job that failed by itself wrote its effect in the shared transaction: what it did there is the handler's choice.
    assert (
        site.one("SELECT count(DISTINCT job_id) FROM effects")
        == site.one("SELECT count(*) FROM effects")
        == 99
    )
    assert max(calls) > 10


def test_batches_keep_keys_apart(site: Any) -> None:
    seen: list[set[str]] = []

    @site.app.task(name="b", batch=50, batch_key="cell")
    async def b(ctx: Any, jobs: list[Any]) -> None:
        seen.append({job.args["cell"] for job in jobs})

    b.enqueue_many(None, [{"cell": f"c{n % 3}"} for n in range(60)])
    site.drain()
    assert all(len(cells) == 1 for cells in seen)
    assert site.one("SELECT count(*) FROM pgqueue.job_history") == 60


@pytest.mark.proves("F48")
@pytest.mark.parametrize("is_async", [False, True])
def test_a_group_shares_a_commit_and_a_failing_member_loses_only_its_own(site: Any, is_async: bool) -> None:
    def sync_member(ctx: JobContext, n: int) -> None:
        ctx.conn.execute(INSERT, (ctx.job.id, "group"))
        if n % 10 == 3:
            raise ValueError(n)
        if n % 10 == 4:
            ctx.conn.execute("SELECT 1/0")

    async def async_member(ctx: AsyncJobContext, n: int) -> None:
        await ctx.conn.execute(INSERT, (ctx.job.id, "group"))
        if n % 10 == 3:
            raise ValueError(n)
        if n % 10 == 4:
            await ctx.conn.execute("SELECT 1/0")

    t = site.app.task(name="g", group_commit=16, retry=ONCE)(async_member if is_async else sync_member)
    t.enqueue_many(None, [{"n": n} for n in range(100)])
    site.drain(concurrency=2)
    assert site.one("SELECT count(*) FROM pgqueue.job_history") == 80
    assert site.one("SELECT count(*) FROM pgqueue.dead_letter_jobs") == 20
    assert site.one("SELECT count(*) FROM effects e JOIN pgqueue.job_history h USING (job_id)") == 80
    assert site.one("SELECT count(*) FROM effects") == 80
