"""Oban for Python: an embedded instance with its own pool, fifty jobs at a time. It needs Python 3.12."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import common
from common import EFFECT, NOTE, Counter, main
from oban import Oban, worker
from oban.schema import install
from psycopg_pool import AsyncConnectionPool

LIMIT = 50
CHUNK = 1000
_now: dict = {"counter": Counter(), "pool": None}


@worker(queue="default")
class Noop:
    """A job that does nothing."""

    async def process(self, job) -> None:
        """Count."""
        _now["counter"].noop(job.args["at"])


@worker(queue="default")
class Effect:
    """One row, committed apart from the job's end."""

    async def process(self, job) -> None:
        """Insert and count."""
        async with _now["pool"].connection() as conn:
            await conn.execute(EFFECT, (job.args["n"],))
        _now["counter"].noop(job.args["at"])


WORKERS = {"noop": Noop, "effect": Effect}


class ObanPeer:
    """Async workers."""

    remaining = "SELECT count(*) FROM oban_jobs WHERE state <> 'completed'"
    clear = "TRUNCATE oban_jobs"

    def install(self, dsn: str) -> None:
        """Its schema."""

        async def run() -> None:
            async with _pool(dsn) as pool:
                await install(pool)

        asyncio.run(run())

    async def fill(self, dsn: str, task: str, count: int) -> None:
        """`enqueue_many`, a thousand to a call."""
        async with _pool(dsn) as pool:
            oban = Oban(pool=pool)
            for at in range(0, count, CHUNK):
                jobs = [
                    WORKERS[task].new({"n": n, "note": NOTE, "at": 0})
                    for n in range(at, min(count, at + CHUNK))
                ]
                await oban.enqueue_many(*jobs)

    async def single(self, dsn: str, task: str, count: int, pace: Callable[[], Awaitable[None]]) -> None:
        """`enqueue`."""
        async with _pool(dsn) as pool:
            oban = Oban(pool=pool)
            for n in range(count):
                await pace()
                await oban.enqueue(WORKERS[task].new({"n": n, "note": NOTE, "at": time.time()}))

    async def work(self, dsn: str, counter: Counter, until: Callable[[], Awaitable[None]]) -> None:
        """An instance with one queue."""
        _now["counter"] = counter
        async with _pool(dsn) as pool, _pool(dsn, autocommit=True) as effects:
            _now["pool"] = effects
            async with Oban(pool=pool, queues={"default": LIMIT}):
                await until()


def _pool(dsn: str, *, autocommit: bool = False) -> AsyncConnectionPool:
    return AsyncConnectionPool(dsn, min_size=2, max_size=16, open=False, kwargs={"autocommit": autocommit})


if __name__ == "__main__":
    assert common
    main(ObanPeer())
