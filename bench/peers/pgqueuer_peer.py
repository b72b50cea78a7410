"""PgQueuer: its asyncpg driver, uvloop, batches of a hundred."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import asyncpg
import uvloop
from common import NOTE, Counter, main
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

BATCH = 100
CHUNK = 1000


class Pgqueuer:
    """Async entrypoints."""

    remaining = "SELECT count(*) FROM pgqueuer"
    clear = "TRUNCATE pgqueuer, pgqueuer_log, pgqueuer_statistics"

    def install(self, dsn: str) -> None:
        """Its schema, with the durability that it installs by default."""

        async def run() -> None:
            conn = await asyncpg.connect(dsn)
            await Queries(AsyncpgDriver(conn)).install()
            await conn.close()

        asyncio.run(run())

    async def fill(self, dsn: str, task: str, count: int) -> None:
        """A thousand to a call."""
        conn = await asyncpg.connect(dsn)
        queries = Queries(AsyncpgDriver(conn))
        for at in range(0, count, CHUNK):
            rows = [_payload(n, 0) for n in range(at, min(count, at + CHUNK))]
            await queries.enqueue([task] * len(rows), rows, [0] * len(rows))
        await conn.close()

    async def single(self, dsn: str, task: str, count: int, pace: Callable[[], Awaitable[None]]) -> None:
        """One to a call."""
        conn = await asyncpg.connect(dsn)
        queries = Queries(AsyncpgDriver(conn))
        for n in range(count):
            await pace()
            await queries.enqueue(task, _payload(n, time.time()))
        await conn.close()

    async def work(self, dsn: str, counter: Counter, until: Callable[[], Awaitable[None]]) -> None:
        """One manager on one connection, as its quick start shows; effects through a pool."""
        conn = await asyncpg.connect(dsn)
        pool = await asyncpg.create_pool(dsn, min_size=2, max_size=16)
        manager = PgQueuer(AsyncpgDriver(conn))

        @manager.entrypoint("noop")
        async def noop(job: Job) -> None:
            counter.noop(json.loads(job.payload)["at"])

        @manager.entrypoint("effect")
        async def effect(job: Job) -> None:
            args = json.loads(job.payload)
            await pool.execute("INSERT INTO bench_effects (n) VALUES ($1)", args["n"])
            counter.noop(args["at"])

        worker = asyncio.create_task(manager.run(batch_size=BATCH))
        await until()
        manager.shutdown.set()
        await asyncio.gather(worker, return_exceptions=True)
        await pool.close()


def _payload(n: int, at: float) -> bytes:
    return json.dumps({"n": n, "note": NOTE, "at": at}).encode()


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    main(Pgqueuer())
