"""pgqueue, measured by the same script as its peers: threads, eight slots, the effect in the job's own transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import psycopg
from common import EFFECT, EFFECTS, NOTE, Counter, main

from pgqueue import App, Job, JobContext
from pgqueue.storage.migrate import upgrade

SLOTS = 8


class Ours:
    """One worker in a thread of the script."""

    remaining = "SELECT (SELECT count(*) FROM pgqueue.jobs) + (SELECT count(*) FROM pgqueue.dead_letter_jobs)"
    clear = "TRUNCATE pgqueue.jobs, pgqueue.claims, pgqueue.job_history, pgqueue.job_transitions, pgqueue.dead_letter_jobs"

    def install(self, dsn: str) -> None:
        """The schema, as `pgqueue db upgrade` makes it."""
        upgrade(dsn)

    async def fill(self, dsn: str, task: str, count: int) -> None:
        """`enqueue_many` on the caller's connection."""
        rows = ({"n": n, "note": NOTE, "at": 0} for n in range(count))
        with psycopg.connect(dsn) as conn:
            _tasks(App(database_url=dsn), Counter())[task].enqueue_many(conn, rows)

    async def single(self, dsn: str, task: str, count: int, pace: Callable[[], Awaitable[None]]) -> None:
        """`enqueue` on an autocommit connection."""
        job = _tasks(App(database_url=dsn), Counter())[task]
        with psycopg.connect(dsn, autocommit=True) as conn:
            for n in range(count):
                await pace()
                job.enqueue(conn, n=n, note=NOTE, at=time.time())

    async def work(self, dsn: str, counter: Counter, until: Callable[[], Awaitable[None]]) -> None:
        """One worker with the default number of slots."""
        app = App(database_url=dsn)
        _tasks(app, counter)
        worker = app.worker("default", concurrency=SLOTS)
        thread = asyncio.create_task(asyncio.to_thread(worker.run))
        await until()
        worker.stop()
        await thread


def _tasks(app: App, counter: Counter) -> dict:
    @app.task(name="noop")
    def noop(n: int, note: str, at: float) -> None:
        counter.noop(at)

    @app.task(name="effect")
    def effect(ctx: JobContext, n: int, note: str, at: float) -> None:
        ctx.conn.execute(EFFECT, (n,))
        counter.noop(at)

    @app.task(name="effect32", group_commit=32)
    def effect32(ctx: JobContext, n: int, note: str, at: float) -> None:
        ctx.conn.execute(EFFECT, (n,))
        counter.noop(at)

    @app.task(name="effect500", batch=500)
    def effect500(ctx: JobContext, jobs: list[Job]) -> None:
        ctx.conn.execute(EFFECTS, ([job.args["n"] for job in jobs],))
        for job in jobs:
            counter.noop(job.args["at"])

    return {"noop": noop, "effect": effect, "effect32": effect32, "effect500": effect500}


if __name__ == "__main__":
    main(Ours())
