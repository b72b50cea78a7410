"""Connections for enqueues that name none: opened at first use, in any thread or event loop, a transaction per call.

Called by the producer. A call is repeated while it surely was not committed; if the answer to COMMIT is lost, the
truth is read back (own_call.py), never guessed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed, PoolTimeout

from pgqueue.errors import ConfigurationError, DatabaseUnreachable
from pgqueue.storage.binding import Step
from pgqueue.storage.connect import (
    PRODUCER,
    connect,
    connect_arguments,
    is_pooled,
    place_of,
    session_settings,
    unreachable,
)
from pgqueue.storage.deadline import SETUP_S, deadline
from pgqueue.storage.own_call import After, Call, read_back
from pgqueue.storage.statements import statement

SIZE_MAX: Final = 4
CALL_S: Final = 15.0
"""The client's own limit for one statement, above the server's: a stopped server keeps no clock."""

# A bulk's generator may think for a while between two chunks. Every name in our statements is qualified.
_ROLE: Final = replace(PRODUCER, idle_in_transaction_ms=60_000, pins_search_path=True)
# The one statement for all single jobs: beside two round trips more, parameters cost nothing.
_NOT_GIVEN: Final[Mapping[str, Any]] = {
    **dict.fromkeys(
        (
            "delay_s",
            "run_at",
            "key",
            "key_ttl_s",
            "key_scope",
            "on_conflict",
            "headers",
            "retry",
            "timeout_s",
            "expires_at",
            "concurrency_key",
            "tags",
            "parent_id",
            "batch_key",
        )
    ),
    # Only a task without a window, and whose plain path leaves no rows, is enqueued in so few words.
    "window_s": 0,
    "audit": False,
}
_SyncPool = ConnectionPool[psycopg.Connection[Any]]
_AsyncPool = AsyncConnectionPool[psycopg.AsyncConnection[Any]]


class OwnConnections:
    """An App's own connections: at most four, and four per event loop. Thread-safe; a forked child opens its own."""

    def __init__(self, dsn: str, *, connect_timeout_s: float = 5) -> None:
        self._dsn = dsn
        self._connect_timeout_s = connect_timeout_s
        self._pooled: bool | None = (
            None  # whether a transaction pooler stands between; None: never connected yet
        )
        self._lock = threading.Lock()
        self._held = _Held()
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopPool] = (
            weakref.WeakKeyDictionary()
        )
        weakref.finalize(self, self._held.close)
        _everyone.add(self)

    def put_one(self, parameters: Mapping[str, Any]) -> int:
        """Put one job in, with the parameters of enqueue_one or enqueue_now, and return the statement's value.

        Raises DatabaseUnreachable if no server took it within ten seconds, UnknownOutcome if the answer to COMMIT
        was lost and the truth could not be read back.
        """
        number: int = self._run([("enqueue_one_own", {**_NOT_GIVEN, **parameters})])[0]
        return number

    async def put_one_async(self, parameters: Mapping[str, Any]) -> int:
        """As `put_one`, on the running event loop."""
        number: int = (await self._run_async([("enqueue_one_own", {**_NOT_GIVEN, **parameters})]))[0]
        return number

    def put_message(self, parameters: Mapping[str, Any]) -> int:
        """Put one message into the outbox, with the parameters of emit_one, and return its id. Raises as `put_one`."""
        number: int = self._run([("emit_one_own", parameters)])[0]
        return number

    async def put_message_async(self, parameters: Mapping[str, Any]) -> int:
        """As `put_message`, on the running event loop."""
        number: int = (await self._run_async([("emit_one_own", parameters)]))[0]
        return number

    def put_many(self, steps: Iterable[Step]) -> list[Any]:
        """Run several enqueue_many in one transaction and return the value of each. Raises as `put_one`.

        Steps that are not a list cannot be made again: a connection lost then is the end of the call.
        """
        return self._run(steps)

    async def put_many_async(self, steps: Iterable[Step]) -> list[Any]:
        """As `put_many`, on the running event loop."""
        return await self._run_async(steps)

    def close(self) -> None:
        """Close the sync connections; those of an event loop close when it ends, or by `close_async` in it."""
        self._held.close()

    async def close_async(self) -> None:
        """Close the running loop's connections."""
        held = self._loops.get(asyncio.get_running_loop())
        if held is not None:
            held.keeper.cancel()
            await asyncio.wait([held.keeper])

    def _run(self, steps: Iterable[Step]) -> list[Any]:
        if isinstance(steps, list) and not steps:
            return []
        call = Call(self._dsn, repeats=isinstance(steps, list))
        while True:
            call.begin()
            pool, conn = self._lend(call.until)
            after = After.DONE
            try:
                with conn.cursor() as cursor:
                    for name, parameters in steps:
                        call.sending = True
                        with deadline(conn, CALL_S):
                            call.took(cursor.execute(statement(name), parameters).fetchone())
                        call.sending = False
                    call.sending = True
                    bulk = call.lacks_receipt()
                    if bulk is not None:
                        with deadline(conn, CALL_S):
                            call.receipt = _first(
                                cursor.execute(statement("enqueue_receipt"), bulk).fetchone()
                            )
                call.committing = True
                with deadline(conn, CALL_S):
                    conn.commit()
            except psycopg.Error as error:
                after = call.judge(error, broken=conn.broken or conn.closed)
            finally:
                pool.putconn(conn)
            if after is After.READ_BACK:
                after = call.learned(read_back(self._dsn, call.receipt, self._connect_timeout_s))
            if after is After.DONE:
                return call.values
            time.sleep(call.pause_s())

    async def _run_async(self, steps: Iterable[Step]) -> list[Any]:
        if isinstance(steps, list) and not steps:
            return []
        call = Call(self._dsn, repeats=isinstance(steps, list))
        while True:
            call.begin()
            pool, conn = await self._lend_async(call.until)
            after = After.DONE
            try:
                async with conn.cursor() as cursor:
                    for name, parameters in steps:
                        call.sending = True
                        async with asyncio.timeout(CALL_S):
                            await cursor.execute(statement(name), parameters)
                            call.took(await cursor.fetchone())
                        call.sending = False
                    call.sending = True
                    bulk = call.lacks_receipt()
                    if bulk is not None:
                        async with asyncio.timeout(CALL_S):
                            await cursor.execute(statement("enqueue_receipt"), bulk)
                            call.receipt = _first(await cursor.fetchone())
                call.committing = True
                async with asyncio.timeout(CALL_S):
                    await conn.commit()
            except (psycopg.Error, TimeoutError) as error:
                if isinstance(error, TimeoutError):
                    await conn.close()
                after = call.judge(error, broken=conn.broken or conn.closed)
            finally:
                await pool.putconn(conn)
            if after is After.READ_BACK:
                after = call.learned(
                    await asyncio.to_thread(read_back, self._dsn, call.receipt, self._connect_timeout_s)
                )
            if after is After.DONE:
                return call.values
            await asyncio.sleep(call.pause_s())

    def _lend(self, until: float) -> tuple[_SyncPool, psycopg.Connection[Any]]:
        pool = self._held.pool
        if pool is None:
            self._probe()
            with self._lock:
                pool = self._held.pool
                if pool is None:
                    pool = self._held.pool = _SyncPool(
                        **self._pool_arguments(), configure=self._configure, open=True
                    )
        try:
            return pool, pool.getconn(timeout=max(until - time.monotonic(), 0.01))
        except (PoolTimeout, PoolClosed) as error:
            raise self._unavailable() from error

    async def _lend_async(self, until: float) -> tuple[_AsyncPool, psycopg.AsyncConnection[Any]]:
        loop = asyncio.get_running_loop()
        held = self._loops.get(loop)
        if held is None:
            await asyncio.to_thread(self._probe)
            # No await from here until it is stored: two tasks shall not make two pools.
            held = self._loops.get(loop)
            if held is None:
                pool = _AsyncPool(**self._pool_arguments(), configure=self._configure_async, open=False)
                keeper = loop.create_task(_keep_open(pool, self._loops, loop), name="pgqueue-enqueue-keeper")
                _keepers.add(keeper)
                keeper.add_done_callback(_keepers.discard)
                held = _LoopPool(pool, keeper)
                with self._lock:
                    self._loops[loop] = held
        try:
            await held.pool.open()
            return held.pool, await held.pool.getconn(timeout=max(until - time.monotonic(), 0.01))
        except (PoolTimeout, PoolClosed) as error:
            raise (await asyncio.to_thread(self._unavailable)) from error

    def _probe(self) -> None:
        """Connect once, so that a wrong DSN is told at once and with its cause, and a pooler is known."""
        if self._pooled is not None:
            return
        try:
            conninfo_to_dict(self._dsn)
        except psycopg.Error:
            raise ConfigurationError(  # the driver's message would repeat the text, and the password in it
                "database_url: not readable; write a libpq URI (postgresql://user@host/dbname) or keywords"
            ) from None
        with connect(self._dsn, _ROLE, connect_timeout_s=self._connect_timeout_s, prepare=False) as conn:
            try:
                self._pooled = is_pooled(conn)
            except psycopg.Error as error:
                raise unreachable(self._dsn, error) from error

    def _unavailable(self) -> DatabaseUnreachable:
        try:
            connect(self._dsn, _ROLE, connect_timeout_s=self._connect_timeout_s, prepare=False).close()
        except DatabaseUnreachable as error:
            return error
        return DatabaseUnreachable(
            f"{place_of(self._dsn)}: all {SIZE_MAX} connections for enqueues without one were busy for too long; "
            "pass a connection of your own as `where`"
        )

    def _pool_arguments(self) -> dict[str, Any]:
        kwargs = connect_arguments(self._dsn, _ROLE, label="", connect_timeout_s=self._connect_timeout_s)
        return {
            "conninfo": str(kwargs.pop("conninfo")),
            "kwargs": {**kwargs, "autocommit": True},
            "min_size": 0,
            "max_size": SIZE_MAX,
            "name": "pgqueue-enqueue",
        }

    def _configure(self, conn: psycopg.Connection[Any]) -> None:
        conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        if self._pooled:  # a SET would stay with the server's connection, for whoever comes next
            conn.prepare_threshold = None
        else:
            with deadline(conn, SETUP_S):
                for text in session_settings(_ROLE):
                    conn.execute(text)
        conn.autocommit = False

    async def _configure_async(self, conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        if self._pooled:
            conn.prepare_threshold = None
        else:
            with deadline(conn, SETUP_S):
                for text in session_settings(_ROLE):
                    await conn.execute(text)
        await conn.set_autocommit(False)

    def _after_fork(self) -> None:
        """In a forked child: the parent's sockets must be neither used nor closed, nor its locks waited for."""
        _inherited.append((self._held, dict(self._loops)))
        self._lock = threading.Lock()
        self._held = _Held()
        self._loops = weakref.WeakKeyDictionary()
        weakref.finalize(self, self._held.close)


class _Held:
    """The sync pool, apart from its owner, so that it can be closed when the owner is gone or the process ends."""

    def __init__(self) -> None:
        self.pool: _SyncPool | None = None
        self._pid = os.getpid()

    def close(self) -> None:
        pool, self.pool = self.pool, None
        if pool is not None and self._pid == os.getpid():
            pool.close(timeout=1)


@dataclass(frozen=True, slots=True)
class _LoopPool:
    pool: _AsyncPool
    keeper: asyncio.Task[None]


async def _keep_open(
    pool: _AsyncPool,
    loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopPool],
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Waits until it is cancelled, as `asyncio.run` cancels all that is left, and closes the pool.

    Not left to the pool's own workers: one whose connection breaks while it is cancelled forgets that it was, and
    a program that waits for it never ends.
    """
    try:
        await loop.create_future()
    finally:
        loops.pop(loop, None)
        await pool.close(timeout=1)


def _first(row: tuple[Any, ...] | None) -> str | None:
    return None if row is None else row[0]


_everyone: Final[weakref.WeakSet[OwnConnections]] = weakref.WeakSet()
_keepers: Final[set[asyncio.Task[None]]] = set()  # a loop itself holds its tasks weakly
_inherited: Final[list[object]] = []  # kept for ever: collecting them would close the parent's sockets


def _forget_the_parents() -> None:
    for own in list(_everyone):
        own._after_fork()  # noqa: SLF001 - the module's own


with contextlib.suppress(AttributeError):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_forget_the_parents)
