"""The connections a handler's effect goes through: each lent to one job at a time, in one transaction with a mark.

BEGIN and the mark are sent when the connection is lent and their answer is read before the first statement, so that
nobody waits for them. How the transaction ends: storage/settling.py.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, NoReturn

import psycopg
from psycopg import AsyncConnection, AsyncPipeline, BaseConnection, Connection, Pipeline, generators, pq
from psycopg.abc import PQGen
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgqueue.errors import TransactionMisuse
from pgqueue.storage.connect import JOB, connect_arguments
from pgqueue.storage.deadline import SETUP_S, deadline

# What the last handler left on the session: its settings and its role go with the next BEGIN, in one message.
_BEGIN: Final = (
    b"RESET SESSION AUTHORIZATION; RESET ALL; BEGIN ISOLATION LEVEL READ COMMITTED;"
    b" SET LOCAL statement_timeout = %d; SET LOCAL pgqueue.claim = '%s'"
)
# All of it, where a transaction was given up. DISCARD ALL is not allowed in a pipeline.
_RESET: Final = (
    b"RESET SESSION AUTHORIZATION",
    b"RESET ALL",
    b"UNLISTEN *",
    b"SELECT pg_catalog.pg_advisory_unlock_all()",
    b"DISCARD TEMP",
)
_WHO: Final = b"SELECT pg_catalog.pg_backend_pid()"
_MISUSE: Final = (
    "the job's transaction is pgqueue's to end: return to commit it with the job's settlement, raise to roll it back, "
    "or use `with ctx.transaction()` for a part of it"
)


class Habits:
    """What all connections of a pool have learnt: whether statements may be prepared on them."""

    __slots__ = ("prepares",)

    def __init__(self) -> None:
        self.prepares = True


class Marked(BaseConnection[Any]):
    """What both kinds of connection share: the job's transaction from `enter_job` to `leave_job`."""

    guarded: bool = False
    hush: bool = False  # SQLAlchemy's own rollback and close when it lets go: nothing to do
    prepared: bool = False
    habits: Habits
    _unread: bool = False  # a message was sent whose answer nobody has read

    def configured(self, habits: Habits, *, pid: int | None) -> None:
        """Say which pool it belongs to, and which backend answers: another one than greeted us means a transaction pooler.

        Even if the worker has an address that leads directly to the server: handlers do not use that one.
        """
        self.habits = habits
        if pid != self.info.backend_pid:
            habits.prepares = False
            self.prepare_threshold = None

    def enter_job(self, claim_id: str, timeout_s: float | None) -> None:
        """Open the transaction of a job: from now on, until `leave_job`, only pgqueue ends it.

        The mark is local to the transaction, so a handler that ends it loses it, and the settlement sees that.
        """
        self.guarded = True
        self.tell(_BEGIN % (round((timeout_s or 0) * 1000), str(uuid.UUID(claim_id)).encode()))

    def leave_job(self) -> None:
        """Give the connection's own commit, rollback and close back."""
        self.guarded = False

    def tell(self, text: bytes) -> None:
        """Send statements that return nothing; whoever speaks next reads the answer first, and meets its error."""
        self.pgconn.send_query(text)
        self._unread = True

    def heard(self) -> PQGen[None]:
        """Read the answer to what was told, if there is one."""
        if not self._unread:
            return
        self._unread = False
        for result in (yield from generators.execute(self.pgconn)):
            if result.status != pq.ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(result)

    def refuse_if_ended(self) -> None:
        """Raise TransactionMisuse if the handler ended the job's transaction: a second one would hide it from the mark."""
        if self.pgconn.transaction_status == pq.TransactionStatus.IDLE:
            _refuse()

    def _start_query(self) -> PQGen[None]:
        # psycopg's own hook before every statement: here it would begin a transaction.
        if not self.guarded:
            yield from super()._start_query()
            return
        yield from self.heard()
        self.refuse_if_ended()

    def _exec_command(self, command: Any, result_format: pq.Format = pq.Format.TEXT) -> PQGen[Any]:
        # The way of savepoints and of rollback.
        yield from self.heard()
        return (yield from super()._exec_command(command, result_format))

    def _deallocate(self, name: bytes | None) -> PQGen[None]:
        # After ROLLBACK, DROP and ALTER psycopg throws away everything that was prepared, and ours goes with it.
        if name is None:
            self.prepared = False
        yield from super()._deallocate(name)

    def add_notice_handler(self, callback: Any) -> None:
        """Add a handler once: SQLAlchemy adds its own each time it borrows the connection."""
        if callback not in self._notice_handlers:
            super().add_notice_handler(callback)


def _refuse() -> NoReturn:
    raise TransactionMisuse(_MISUSE)


class JobConnection(Marked, Connection[Any]):
    """psycopg's Connection as a handler sees it in `ctx.conn`."""

    def commit(self) -> None:
        """As psycopg's, but not while a job's transaction is open on it."""
        if self.hush:
            return
        if self.guarded:
            _refuse()
        super().commit()

    def rollback(self) -> None:
        """As psycopg's, but not while a job's transaction is open on it."""
        if self.hush:
            return
        if self.guarded:
            _refuse()
        super().rollback()

    def close(self) -> None:
        """As psycopg's, but not while a job's transaction is open on it."""
        if self.hush:
            return
        if self.guarded:
            _refuse()
        super().close()

    def answered(self) -> None:
        """Read the answer to what was told."""
        if self._unread:
            with self.lock:
                self.wait(self.heard())

    @contextlib.contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        """As psycopg's."""
        self.answered()
        with super().pipeline() as pipeline:
            yield pipeline

    @contextlib.contextmanager
    def _pipeline_nolock(self) -> Iterator[Pipeline]:
        # psycopg's own way into a pipeline, for executemany; it has the lock already.
        self.wait(self.heard())
        with super()._pipeline_nolock() as pipeline:
            yield pipeline

    def reset_session(self) -> None:
        """Undo what a handler may have left on the session."""
        with self.pipeline():
            for text in _RESET:
                self.execute(text)
        super().commit()


class AsyncJobConnection(Marked, AsyncConnection[Any]):
    """psycopg's AsyncConnection as a handler sees it in `ctx.conn`."""

    async def commit(self) -> None:
        """As psycopg's, but not while a job's transaction is open on it."""
        if self.hush:
            return
        if self.guarded:
            _refuse()
        await super().commit()

    async def rollback(self) -> None:
        """As psycopg's, but not while a job's transaction is open on it."""
        if self.hush:
            return
        if self.guarded:
            _refuse()
        await super().rollback()

    async def close(self) -> None:
        """As psycopg's, but not while a job's transaction is open on it."""
        if self.hush:
            return
        if self.guarded:
            _refuse()
        await super().close()

    async def answered(self) -> None:
        """Read the answer to what was told."""
        if self._unread:
            async with self.lock:
                await self.wait(self.heard())

    @contextlib.asynccontextmanager
    async def pipeline(self) -> AsyncIterator[AsyncPipeline]:
        """As psycopg's."""
        await self.answered()
        async with super().pipeline() as pipeline:
            yield pipeline

    @contextlib.asynccontextmanager
    async def _pipeline_nolock(self) -> AsyncIterator[AsyncPipeline]:
        # As above.
        await self.wait(self.heard())
        async with super()._pipeline_nolock() as pipeline:
            yield pipeline

    async def reset_session(self) -> None:
        """Undo what a handler may have left on the session."""
        async with self.pipeline():
            for text in _RESET:
                await self.execute(text)
        await super().commit()


def job_pool(
    dsn: str, *, label: str, size_max: int, connect_timeout_s: float
) -> ConnectionPool[JobConnection]:
    """A pool of handler connections, opened lazily, at most `size_max`."""
    arguments = connect_arguments(dsn, JOB, label=label, connect_timeout_s=connect_timeout_s)
    conninfo = arguments.pop("conninfo")
    arguments["autocommit"] = False
    habits = Habits()

    def configure(conn: JobConnection) -> None:
        with deadline(conn, SETUP_S):
            row = conn.execute(_WHO, prepare=False).fetchone()
            conn.rollback()
        conn.configured(habits, pid=row[0] if row else None)

    return ConnectionPool(
        conninfo,
        connection_class=JobConnection,
        kwargs=arguments,
        configure=configure,
        min_size=0,
        max_size=size_max,
        open=True,
        name=f"pgqueue-job-{label}",
        timeout=30,
    )


def async_job_pool(
    dsn: str, *, label: str, size_max: int, connect_timeout_s: float
) -> AsyncConnectionPool[AsyncJobConnection]:
    """The same for async handlers; the caller opens it on its loop."""
    arguments = connect_arguments(dsn, JOB, label=label, connect_timeout_s=connect_timeout_s)
    conninfo = arguments.pop("conninfo")
    arguments["autocommit"] = False
    habits = Habits()

    async def configure(conn: AsyncJobConnection) -> None:
        with deadline(conn, SETUP_S):
            row = await (await conn.execute(_WHO, prepare=False)).fetchone()
            await conn.rollback()
        conn.configured(habits, pid=row[0] if row else None)

    return AsyncConnectionPool(
        conninfo,
        connection_class=AsyncJobConnection,
        kwargs=arguments,
        configure=configure,
        min_size=0,
        max_size=size_max,
        open=False,
        name=f"pgqueue-job-{label}",
        timeout=30,
    )
