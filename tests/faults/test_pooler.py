"""Everything but wake-ups and leadership works behind a transaction pooler with two server connections; said once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.pooler import pooled
from rig.wait import wait_for
from sqlalchemy import text

from pgqueue import App, AsyncJobContext, JobContext, Retry
from pgqueue.core.events import Warned
from pgqueue.worker.runtime import Worker

INSERT = "INSERT INTO effects VALUES (%s, %s)"
EACH = 12
QUICK = Retry(max_retries=1, initial_delay="10ms", max_delay="20ms")


def build(app: App) -> dict[str, Any]:
    """A task of every kind of transaction there is."""

    @app.task(name="plain")
    def plain() -> None:
        """Settled by the settler."""

    @app.task(name="conn")
    def conn(ctx: JobContext) -> None:
        ctx.conn.execute(INSERT, (ctx.job.id, "conn"))

    @app.task(name="session")
    def session(ctx: JobContext) -> None:
        ctx.session.execute(text("INSERT INTO effects VALUES (:i, 'session')"), {"i": ctx.job.id})

    @app.task(name="block")
    def block(ctx: JobContext) -> None:
        with ctx.transaction() as inner:
            inner.execute(INSERT, (ctx.job.id, "block"))

    @app.task(name="coro")
    async def coro(ctx: AsyncJobContext) -> None:
        await ctx.conn.execute(INSERT, (ctx.job.id, "coro"))

    @app.task(name="group", group_commit=4)
    def group(ctx: JobContext) -> None:
        ctx.conn.execute(INSERT, (ctx.job.id, "group"))

    @app.task(name="batch", batch=5)
    def batch(ctx: JobContext, jobs: list[Any]) -> None:
        ctx.conn.cursor().executemany(INSERT, [(job.id, "batch") for job in jobs])

    @app.task(name="again", retry=QUICK)
    def again(ctx: JobContext) -> None:
        ctx.conn.execute(INSERT, (ctx.job.id, "again"))
        if ctx.job.attempt == 1:
            raise ValueError("the first time")

    @app.task(name="dies", retry=Retry(max_retries=0))
    def dies(ctx: JobContext) -> None:
        ctx.conn.execute(INSERT, (ctx.job.id, "dies"))
        ctx.conn.execute("SELECT 1/0")

    return app.tasks


@pytest.mark.proves("P10", "P3", "P6", "F27")
@pytest.mark.parametrize("direct", [False, True], ids=["pooler alone", "with a direct address"])
def test_a_worker_behind_a_pooler_does_everything_once(database: Database, direct: bool) -> None:
    admin = database.connect()
    admin.execute("CREATE TABLE effects (job_id bigint, note text)")
    with pooled(database) as dsn:
        app = App(dsn, direct_database_url=database.dsn if direct else None, poll_min_s=0.05, poll_max_s=0.2)
        events: list[object] = []
        app.events.listen(events.append)
        tasks = build(app)
        with psycopg.connect(dsn, autocommit=True) as conn:
            for _ in range(EACH):  # often enough that a driver would have prepared the statement
                for name in tasks:
                    tasks[name].enqueue(conn)
        for name in tasks:
            tasks[name].enqueue_many(None, [{}] * EACH)  # the App's own pool
        asyncio.run(_enqueue_async(app, dsn))
        worker: Worker = app.worker(concurrency=6)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            wait_for(
                lambda: admin.execute("SELECT count(*) FROM pgqueue.jobs").fetchone() == (0,),
                60,
                "all to end",
            )
            sleeps = admin.execute("SELECT count(*) FROM pgqueue.sleepers").fetchone() == (1,)
            late = tasks["conn"].enqueue(None)
            wait_for(
                lambda: (
                    admin.execute(
                        "SELECT count(*) FROM pgqueue.job_history WHERE job_id = %s", (late.id,)
                    ).fetchone()
                    == (1,)
                ),
                10,
                "a job that came while it was idle",
            )
            listening = admin.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND datname = %s",
                (database.name,),
            ).fetchone()
        finally:
            worker.stop()
            thread.join(30)
            app.close()
        assert not thread.is_alive()
        ended = dict(admin.execute("SELECT task, count(*) FROM pgqueue.job_history GROUP BY 1").fetchall())
        wanted = {name: 2 * EACH for name in tasks if name != "dies"}
        wanted["plain"] += 1
        wanted["conn"] += 1
        assert ended == wanted
        assert admin.execute("SELECT count(*) FROM pgqueue.dead_letter_jobs").fetchone() == (2 * EACH,)
        assert (
            admin.execute("SELECT count(*), count(DISTINCT job_id) FROM effects").fetchone()
            == (sum(wanted.values()) - wanted["plain"],) * 2
        )
        assert admin.execute(
            "SELECT count(*) FROM effects e WHERE NOT EXISTS (SELECT FROM pgqueue.job_history h WHERE h.job_id = e.job_id)"
        ).fetchone() == (0,)
        attempts = dict(
            admin.execute("SELECT task, max(attempts) FROM pgqueue.job_history GROUP BY 1").fetchall()
        )
        assert attempts == {name: 2 if name == "again" else 1 for name in wanted}
        # Nothing of ours stays behind on the connections that all share.
        assert listening == (0,) or direct
        assert not sleeps or direct
        said = [event for event in events if isinstance(event, Warned) and "pool" in event.message.lower()]
        assert len(said) == (0 if direct else 1), [event.message for event in said]


async def _enqueue_async(app: App, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await app.tasks["plain"].enqueue_async(conn)
