"""procrastinate: its psycopg connector, an async worker, `batch_defer` for many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import procrastinate
from common import EFFECT, NOTE, Counter, main
from psycopg_pool import AsyncConnectionPool

CONCURRENCY = 50
CHUNK = 1000


class Procrastinate:
    """Async tasks, fifty at a time."""

    remaining = "SELECT count(*) FROM procrastinate_jobs WHERE status <> 'succeeded'"
    clear = "TRUNCATE procrastinate_jobs CASCADE"

    def install(self, dsn: str) -> None:
        """Its schema."""
        with procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=dsn)).open() as app:
            app.schema_manager.apply_schema()

    async def fill(self, dsn: str, task: str, count: int) -> None:
        """A thousand to a call."""
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
        tasks = _tasks(app, Counter(), None)
        async with app.open_async():
            for at in range(0, count, CHUNK):
                rows = [{"n": n, "note": NOTE, "at": 0} for n in range(at, min(count, at + CHUNK))]
                await tasks[task].batch_defer_async(*rows)

    async def single(self, dsn: str, task: str, count: int, pace: Callable[[], Awaitable[None]]) -> None:
        """`defer_async`."""
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
        tasks = _tasks(app, Counter(), None)
        async with app.open_async():
            for n in range(count):
                await pace()
                await tasks[task].defer_async(n=n, note=NOTE, at=time.time())

    async def work(self, dsn: str, counter: Counter, until: Callable[[], Awaitable[None]]) -> None:
        """`run_worker_async` with notifications."""
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
        async with AsyncConnectionPool(dsn, min_size=2, max_size=16, kwargs={"autocommit": True}) as pool:
            _tasks(app, counter, pool)
            async with app.open_async():
                worker = asyncio.create_task(
                    app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False)
                )
                await until()
                worker.cancel()
                await asyncio.gather(worker, return_exceptions=True)


def _tasks(app: procrastinate.App, counter: Counter, pool: AsyncConnectionPool | None) -> dict:
    @app.task(name="noop")
    async def noop(n: int, note: str, at: float) -> None:
        counter.noop(at)

    @app.task(name="effect")
    async def effect(n: int, note: str, at: float) -> None:
        async with pool.connection() as conn:
            await conn.execute(EFFECT, (n,))
        counter.noop(at)

    return {"noop": noop, "effect": effect}


if __name__ == "__main__":
    main(Procrastinate())
