"""Connections for enqueues that name none: opened at first use, in any thread or loop, one transaction per call.

If the answer to COMMIT is lost, the truth is read back by a receipt taken before it; never guessed.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgqueue.errors import DatabaseUnreachable, UnknownOutcome
from pgqueue.storage.binding import Step
from pgqueue.storage.connect import PRODUCER, connect, connect_arguments, place_of
from pgqueue.storage.faults import Fault, classify, summary_of
from pgqueue.storage.statements import statement

SIZE_MAX: Final = 4
RESOLVE_S: Final = 10.0
_PAUSE_S: Final = 0.2


class OwnConnections:
    """An App's own connections. Thread-safe; a forked child makes its own; one async pool per event loop."""

    def __init__(self, dsn: str, *, connect_timeout_s: float = 5) -> None:
        self._dsn = dsn
        self._timeout_s = connect_timeout_s
        self._lock = threading.Lock()
        self._pool: ConnectionPool[psycopg.Connection[Any]] | None = None
        self._pid = 0
        self._async: WeakKeyDictionary[
            asyncio.AbstractEventLoop, AsyncConnectionPool[psycopg.AsyncConnection[Any]]
        ] = WeakKeyDictionary()

    def run(self, steps: Sequence[Step]) -> list[Any]:
        """Run the steps in one transaction and commit it; returns the first value of each.

        Raises DatabaseUnreachable, or UnknownOutcome if the answer to COMMIT was lost and stays unknown.
        """
        for attempt in (1, 2):
            values, receipt = [], None
            try:
                with self._sync_pool().connection(timeout=self._timeout_s) as conn:
                    values = [_one(conn.execute(statement(name), parameters)) for name, parameters in steps]
                    receipt = _one(conn.execute(statement("enqueue_receipt"), {"job_id": _last_new(values)}))
            except PoolTimeout as error:
                raise self._unreachable(error) from error
            except psycopg.Error as error:
                if receipt is None or classify(error, broken=True) not in {Fault.RECONNECT, Fault.UNKNOWN}:
                    raise
                if self._outcome(receipt) == "absent" and attempt == 1:
                    continue  # surely not committed: once more
            return values
        raise UnknownOutcome(
            "enqueue: the connection was lost during COMMIT twice; enqueue again with an idempotency key"
        )

    async def run_async(self, steps: Sequence[Step]) -> list[Any]:
        """As `run`, on the running event loop."""
        for attempt in (1, 2):
            values, receipt = [], None
            try:
                async with (await self._async_pool()).connection(timeout=self._timeout_s) as conn:
                    for name, parameters in steps:
                        values.append(
                            _row(await (await conn.execute(statement(name), parameters)).fetchone())
                        )
                    receipt = _row(
                        await (
                            await conn.execute(statement("enqueue_receipt"), {"job_id": _last_new(values)})
                        ).fetchone()
                    )
            except PoolTimeout as error:
                raise self._unreachable(error) from error
            except psycopg.Error as error:
                if receipt is None or classify(error, broken=True) not in {Fault.RECONNECT, Fault.UNKNOWN}:
                    raise
                if await asyncio.to_thread(self._outcome, receipt) == "absent" and attempt == 1:
                    continue
            return values
        raise UnknownOutcome(
            "enqueue: the connection was lost during COMMIT twice; enqueue again with an idempotency key"
        )

    def close(self) -> None:
        """Close the sync connections; async ones close with their loop, or by `close_async` in it."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.close(timeout=1)

    async def close_async(self) -> None:
        """Close the running loop's connections."""
        pool = self._async.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close(timeout=1)

    def _outcome(self, receipt: str) -> str:
        """What became of a transaction: committed or absent. The old backend may still be at work on it."""
        until = time.monotonic() + RESOLVE_S
        while True:
            try:
                with connect(self._dsn, PRODUCER, connect_timeout_s=self._timeout_s) as conn:
                    verdict = str(_one(conn.execute(statement("enqueue_outcome"), {"receipt": receipt})))
            except (psycopg.Error, DatabaseUnreachable) as error:
                verdict = f"unknown: {summary_of(error)}"
            if verdict in {"committed", "absent"}:
                return verdict
            if time.monotonic() > until:
                raise UnknownOutcome(
                    f"enqueue: whether it was committed is {verdict}; look before you enqueue again"
                )
            time.sleep(_PAUSE_S)

    def _sync_pool(self) -> ConnectionPool[psycopg.Connection[Any]]:
        with self._lock:
            if self._pool is None or self._pid != os.getpid():
                self._pid = os.getpid()
                conninfo, kwargs = self._arguments()
                self._pool = ConnectionPool(
                    conninfo, kwargs=kwargs, min_size=0, max_size=SIZE_MAX, open=True, name="pgqueue-enqueue"
                )
            return self._pool

    async def _async_pool(self) -> AsyncConnectionPool[psycopg.AsyncConnection[Any]]:
        loop = asyncio.get_running_loop()
        pool = self._async.get(loop)
        if pool is None:
            conninfo, kwargs = self._arguments()
            pool = AsyncConnectionPool(
                conninfo, kwargs=kwargs, min_size=0, max_size=SIZE_MAX, open=False, name="pgqueue-enqueue"
            )
            self._async[loop] = pool
            await pool.open()
        return pool

    def _arguments(self) -> tuple[str, dict[str, Any]]:
        kwargs = connect_arguments(self._dsn, PRODUCER, label="", connect_timeout_s=self._timeout_s)
        conninfo = str(kwargs.pop("conninfo"))
        return conninfo, {**kwargs, "autocommit": False}

    def _unreachable(self, error: Exception) -> DatabaseUnreachable:
        del error
        return DatabaseUnreachable(
            f"cannot connect to {place_of(self._dsn)} within {self._timeout_s:g} s; check the DSN and that the server runs"
        )


def _one(cursor: psycopg.Cursor[Any]) -> Any:
    return _row(cursor.fetchone())


def _row(row: Any) -> Any:
    return None if row is None else row[0]


def _last_new(values: Sequence[Any]) -> int | None:
    """The id of a job that this transaction made: the receipt is about that one."""
    for value in reversed(values):
        ids = (
            [value]
            if isinstance(value, int)
            else [int(part) for part in str(value).strip("{}").split(",") if part]
        )
        for job_id in reversed(ids):
            if job_id > 0:
                return job_id
    return None
