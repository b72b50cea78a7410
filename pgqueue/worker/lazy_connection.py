"""`ctx.conn` of an async handler: psycopg's AsyncConnection, lent at the first awaited call.

A property cannot await, and a worker with hundreds of async slots must not hold a connection for each.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

from psycopg import AsyncConnection, AsyncCursor


class LazyAsyncConnection:
    """Has the parts of AsyncConnection that are used in a transaction; `await ctx.connection()` gives the rest."""

    def __init__(self, lend: Callable[[], Awaitable[AsyncConnection[Any]]]) -> None:
        self._lend = lend

    async def pgqueue_connection(self) -> AsyncConnection[Any]:
        """The connection behind; enqueueing asks for it."""
        return await self._lend()

    async def execute(self, query: Any, params: Any = None, **options: Any) -> AsyncCursor[Any]:
        """As AsyncConnection.execute."""
        conn = await self._lend()
        return await conn.execute(query, params, **options)

    @contextlib.asynccontextmanager
    async def transaction(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        """As AsyncConnection.transaction: a savepoint of the job's transaction."""
        conn = await self._lend()
        async with conn.transaction(*args, **options) as savepoint:
            yield savepoint

    @contextlib.asynccontextmanager
    async def pipeline(self) -> AsyncIterator[Any]:
        """As AsyncConnection.pipeline."""
        conn = await self._lend()
        async with conn.pipeline() as pipeline:
            yield pipeline

    @contextlib.asynccontextmanager
    async def cursor(self, *args: Any, **options: Any) -> AsyncIterator[AsyncCursor[Any]]:
        """As AsyncConnection.cursor, to be used with `async with`."""
        conn = await self._lend()
        async with conn.cursor(*args, **options) as cursor:
            yield cursor

    async def commit(self) -> None:
        """Refused, as on the connection itself."""
        await (await self._lend()).commit()

    async def rollback(self) -> None:
        """Refused, as on the connection itself."""
        await (await self._lend()).rollback()

    async def close(self) -> None:
        """Refused, as on the connection itself."""
        await (await self._lend()).close()

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"ctx.conn.{name}: not there before the connection is; write `conn = await ctx.connection()` and use conn.{name}"
        )
