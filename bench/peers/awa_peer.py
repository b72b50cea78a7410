"""awa: its async client (the engine is Rust), fifty workers, COPY for many."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from awa import AsyncClient
from common import EFFECT, NOTE, Counter, main
from psycopg_pool import AsyncConnectionPool

WORKERS = 50


@dataclass
class Noop:
    """Arguments of the job that does nothing."""

    n: int
    note: str
    at: float


@dataclass
class Effect:
    """Arguments of the job that writes a row."""

    n: int
    note: str
    at: float


KINDS = {"noop": Noop, "effect": Effect}


class Awa:
    """Async handlers."""

    remaining = "SELECT count(*) FROM awa.jobs WHERE state::text NOT IN ('completed')"
    clear = "SELECT 1"

    def install(self, dsn: str) -> None:
        """Its migrations, by its own command."""
        subprocess.run(
            [sys.executable, "-m", "awa", "--database-url", dsn, "migrate"], check=True, stdout=sys.stderr
        )
        # Before its first worker has started; COPY goes to this storage only.
        asyncio.run(_activate(dsn))

    async def fill(self, dsn: str, task: str, count: int) -> None:
        """`enqueue_many_copy`, in one call."""
        client = AsyncClient(dsn)
        await client.enqueue_many_copy([KINDS[task](n, NOTE, 0) for n in range(count)], queue="default")

    async def single(self, dsn: str, task: str, count: int, pace: Callable[[], Awaitable[None]]) -> None:
        """`insert`."""
        client = AsyncClient(dsn)
        for n in range(count):
            await pace()
            await client.insert(KINDS[task](n, NOTE, time.time()), queue="default")

    async def work(self, dsn: str, counter: Counter, until: Callable[[], Awaitable[None]]) -> None:
        """One client with one queue."""
        client = AsyncClient(dsn, max_connections=20)
        async with AsyncConnectionPool(dsn, min_size=2, max_size=16, kwargs={"autocommit": True}) as pool:

            @client.task(Noop, queue="default")
            async def noop(job) -> None:
                counter.noop(job.args.at)

            @client.task(Effect, queue="default")
            async def effect(job) -> None:
                async with pool.connection() as conn:
                    await conn.execute(EFFECT, (job.args.n,))
                counter.noop(job.args.at)

            await client.start([("default", WORKERS)])
            await until()
            await client.shutdown()


async def _activate(dsn: str) -> None:
    await AsyncClient(dsn).install_queue_storage()


if __name__ == "__main__":
    main(Awa())
