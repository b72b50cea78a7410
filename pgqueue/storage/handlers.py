"""The connections a handler's effect goes through, and the transaction that its settlement joins.

The executor lends one out per job, at the handler's first use of `ctx.conn`. BEGIN and the job's mark go out
in one message with the first statement; the settlement, COMMIT and the reset of session state in another.
"""

from __future__ import annotations

import uuid
from typing import Any, Final, NoReturn

import psycopg
from psycopg import AsyncConnection, BaseConnection, Connection, generators, pq
from psycopg.abc import PQGen
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgqueue.errors import TransactionMisuse
from pgqueue.storage.connect import JOB, connect_arguments
from pgqueue.storage.statements import statement

_COMMIT: Final = b"COMMIT"
_SETTLE: Final = statement("settle_in_transaction")
_SETTLE_MANY: Final = statement("settle_many_in_transaction")
# What a handler may have left on the session. After each commit go its settings and its locks; the same question
# tells whether there are temporary tables or channels, which cost a statement each. A role waits for the next BEGIN.
_RESET_SETTINGS: Final = b"RESET ALL"
_RELEASE: Final = (
    b"SELECT pg_catalog.pg_advisory_unlock_all(), pg_catalog.pg_my_temp_schema()::pg_catalog.int8,"
    b" EXISTS (SELECT FROM pg_catalog.pg_listening_channels())"
)
_RESET_ROLE: Final = b"RESET SESSION AUTHORIZATION"
_DROP_TEMP: Final = b"DISCARD TEMP"
_UNLISTEN: Final = b"UNLISTEN *"
# All of it, where a transaction was given up. DISCARD ALL is not allowed in a pipeline.
_RESET: Final = (
    _RESET_ROLE,
    _RESET_SETTINGS,
    _UNLISTEN,
    b"SELECT pg_catalog.pg_advisory_unlock_all()",
    _DROP_TEMP,
)
_MISUSE: Final = (
    "the job's transaction is pgqueue's to end: return to commit it with the job's settlement, raise to roll it back, "
    "or use `with ctx.transaction()` for a part of it"
)


class _Marked(BaseConnection[Any]):
    """What both kinds of connection share: the mark of the running job in BEGIN, and the refusal of commit()."""

    _mark: uuid.UUID | None = None
    _timeout_ms: int = 0
    guarded: bool = False
    began: bool = False
    hush: bool = False  # SQLAlchemy's own rollback and close when it lets go: nothing to do

    def enter_job(self, claim_id: str, timeout_s: float | None) -> None:
        """From now on, until `leave_job`, transactions carry this claim's mark and only pgqueue ends them."""
        self._mark = uuid.UUID(claim_id)
        self._timeout_ms = round((timeout_s or 0) * 1000)
        self.guarded = True
        self.began = False

    def leave_job(self) -> None:
        """Give the connection's own commit, rollback and close back."""
        self._mark = None
        self.guarded = False

    def _start_query(self) -> PQGen[None]:
        # psycopg's own hook before every statement. With a mark, BEGIN and the mark are one message: the
        # mark is local to the transaction, so a handler that ends it loses it, and the settlement sees that.
        if self._mark is None:
            yield from super()._start_query()
            return
        if self.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            return
        if self.began:
            # The handler sent its own COMMIT or ROLLBACK: a second transaction would hide that from the mark.
            _refuse()
        self.began = True
        opening = (
            b"BEGIN ISOLATION LEVEL READ COMMITTED",
            _RESET_ROLE,
            b"SET LOCAL statement_timeout = %d" % self._timeout_ms,
            b"SET LOCAL pgqueue.claim = '%s'" % str(self._mark).encode(),
        )
        if self._pipeline is not None:
            for text in opening:
                yield from self._exec_command(text)
            return
        self.pgconn.send_query(b"; ".join(opening))
        for result in (yield from generators.execute(self.pgconn)):
            if result.status != pq.ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(result)

    def add_notice_handler(self, callback: Any) -> None:
        """Add a handler once: SQLAlchemy adds its own each time it borrows the connection."""
        if callback not in self._notice_handlers:
            super().add_notice_handler(callback)


def _refuse() -> NoReturn:
    raise TransactionMisuse(_MISUSE)


class JobConnection(_Marked, Connection[Any]):
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

    def reset_session(self) -> None:
        """Undo what a handler may have left on the session."""
        with self.pipeline():
            for text in _RESET:
                self.execute(text)
        super().commit()


class AsyncJobConnection(_Marked, AsyncConnection[Any]):
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

    async def reset_session(self) -> None:
        """Undo what a handler may have left on the session."""
        async with self.pipeline():
            for text in _RESET:
                await self.execute(text)
        await super().commit()


def job_pool(
    dsn: str, *, label: str, size_max: int, connect_timeout_s: float, prepare: bool
) -> ConnectionPool[JobConnection]:
    """A pool of handler connections, opened lazily, at most `size_max`."""
    arguments = connect_arguments(dsn, JOB, label=label, connect_timeout_s=connect_timeout_s)
    conninfo = arguments.pop("conninfo")
    arguments["autocommit"] = False
    if not prepare:
        arguments["prepare_threshold"] = None
    return ConnectionPool(
        conninfo,
        connection_class=JobConnection,
        kwargs=arguments,
        min_size=0,
        max_size=size_max,
        open=True,
        name=f"pgqueue-job-{label}",
        timeout=30,
    )


def async_job_pool(
    dsn: str, *, label: str, size_max: int, connect_timeout_s: float, prepare: bool
) -> AsyncConnectionPool[AsyncJobConnection]:
    """The same for async handlers; the caller opens it on its loop."""
    arguments = connect_arguments(dsn, JOB, label=label, connect_timeout_s=connect_timeout_s)
    conninfo = arguments.pop("conninfo")
    arguments["autocommit"] = False
    if not prepare:
        arguments["prepare_threshold"] = None
    return AsyncConnectionPool(
        conninfo,
        connection_class=AsyncJobConnection,
        kwargs=arguments,
        min_size=0,
        max_size=size_max,
        open=False,
        name=f"pgqueue-job-{label}",
        timeout=30,
    )


def settle_and_commit(conn: JobConnection, settlement: dict[str, Any], *, many: bool = False) -> None:
    """Send the settlement, COMMIT and the session's reset as one message; raise if any was refused.

    The settlement raises when the claim is lost or the mark is gone, and then COMMIT ends nothing.
    """
    conn.leave_job()
    left = conn.cursor(row_factory=tuple_row)
    with conn.pipeline():
        conn.execute(_SETTLE_MANY if many else _SETTLE, settlement)
        conn.execute(_COMMIT)
        conn.execute(_RESET_SETTINGS)
        left.execute(_RELEASE)
    if rest := _what_is_left(left.fetchone()):
        with conn.pipeline():
            for text in rest:
                conn.execute(text)
        conn.commit()  # psycopg has begun a transaction for them


async def settle_and_commit_async(
    conn: AsyncJobConnection, settlement: dict[str, Any], *, many: bool = False
) -> None:
    """The same on an async connection."""
    conn.leave_job()
    left = conn.cursor(row_factory=tuple_row)
    async with conn.pipeline():
        await conn.execute(_SETTLE_MANY if many else _SETTLE, settlement)
        await conn.execute(_COMMIT)
        await conn.execute(_RESET_SETTINGS)
        await left.execute(_RELEASE)
    if rest := _what_is_left(await left.fetchone()):
        async with conn.pipeline():
            for text in rest:
                await conn.execute(text)
        await conn.commit()  # as above


def _what_is_left(row: tuple[Any, ...] | None) -> list[bytes]:
    """The statements that the session still needs, as a rule none; in the role of the session's own user."""
    if row is None or not (row[1] or row[2]):
        return []
    return [_RESET_ROLE, *([_DROP_TEMP] if row[1] else []), *([_UNLISTEN] if row[2] else [])]
