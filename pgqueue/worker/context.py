"""What a handler gets as `ctx`: its job, its transaction, and how to hear that it should stop.

Built per run by the executors; opens nothing until it is touched.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
from psycopg import AsyncConnection, Connection

from pgqueue.core.job import Job
from pgqueue.core.message import Message
from pgqueue.errors import InvalidOption
from pgqueue.producer.emit import Draft, emit, emit_async, plan_message
from pgqueue.worker.lazy_connection import LazyAsyncConnection
from pgqueue.worker.once import TTL_DEFAULT_S, AsyncOnce, OnceKey, SyncOnce
from pgqueue.worker.steps import Steps

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from pgqueue.storage.job_transaction import AsyncJobTransaction, JobTransaction
    from pgqueue.worker.claimed import ClaimedJob
    from pgqueue.worker.outcome import Prepared
    from pgqueue.worker.progress import ProgressBook
    from pgqueue.worker.steps import StepBook

LOGGER_NAME: Final = "pgqueue.job"
ORIGIN_HEADER: Final = "pgqueue.origin"
"""Set by a redrive: the id of the first job in the line of those that repeat each other."""


class Enqueueable(Protocol):
    """What `ctx.enqueue` takes: a task, or a task with options from `.using(…)`."""

    def enqueue_in(self, where: Any, parent_id: int, args: dict[str, Any]) -> Any:
        """Enqueue in the transaction of `where`, as a child of the job `parent_id`."""

    async def enqueue_in_async(self, where: Any, parent_id: int, args: dict[str, Any]) -> Any:
        """The same on an async connection."""

    def enqueue_many_in(self, where: Any, parent_id: int, jobs: Iterable[Mapping[str, Any]]) -> Any:
        """Enqueue a job for each mapping of arguments, as children of the job `parent_id`."""

    async def enqueue_many_in_async(
        self, where: Any, parent_id: int, jobs: Iterable[Mapping[str, Any]]
    ) -> Any:
        """The same on an async connection."""


class _Context:
    """What sync and async handlers share."""

    __slots__ = (
        "_args",
        "_cancelled",
        "_extras",
        "_job",
        "_log",
        "_max_attempts",
        "_progress",
        "_seen",
        "_steps",
        "deadline",
    )

    def __init__(
        self,
        job: ClaimedJob,
        args: dict[str, Any],
        extras: dict[str, Any],
        max_attempts: int,
        deadline: float | None,
        steps: StepBook | None,
        progress: ProgressBook | None,
    ) -> None:
        self._job = job
        self._args = args
        self._extras = extras
        self._max_attempts = max_attempts
        self._seen: Job | None = None
        self._cancelled: str | None = None
        self._log: Any = None
        self._steps = None if steps is None else Steps(steps, job)
        self._progress = progress
        self.deadline = deadline

    @property
    def job(self) -> Job:
        """The job that runs."""
        if self._seen is None:
            self._seen = self._job.seen_by_handler(self._args, self._extras, self._max_attempts)
        return self._seen

    @property
    def idempotency_key(self) -> str:
        """A key that stays the same over all attempts and redrives, for calls outside Postgres.

        The job's own, or one made of its id; of the first one's, if this job repeats a dead one.
        """
        key = self._extras.get("idempotency_key")
        if key is not None:
            return str(key)
        origin = (
            (self._extras.get("headers") or {}).get(ORIGIN_HEADER) if self._extras.get("redrive_of") else None
        )
        return f"{self._job.task_name}:{origin or self._job.id}"

    @property
    def message(self) -> Message | None:
        """The outbox's message that this job was; None if it was none."""
        return self.job.message

    def _message(
        self,
        topic: str,
        payload: Mapping[str, Any] | None,
        key: str | None,
        headers: Mapping[str, str] | None,
    ) -> Draft:
        return Draft(
            topic,
            lambda: plan_message(
                topic,
                payload,
                key=key,
                headers=headers,
                job_id=self._job.id,
                job_headers=self._extras.get("headers"),
            ),
        )

    @property
    def cancelled(self) -> bool:
        """Whether the handler should stop: somebody cancelled the job, its time is up, or its claim is lost."""
        return self._cancelled is not None

    @property
    def cancel_reason(self) -> str | None:
        """Why: `cancelled`, `timeout`, `claim_lost` or `shutdown`; None while nobody asked."""
        return self._cancelled

    @property
    def remaining_s(self) -> float | None:
        """Seconds left until the run's time is up; None without a limit."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    @property
    def log(self) -> Any:
        """A structlog logger bound to the job."""
        if self._log is None:
            self._log = structlog.get_logger(LOGGER_NAME).bind(
                job_id=self._job.id,
                task=self._job.task_name,
                queue=self._job.queue,
                attempt=self._job.attempt,
            )
        return self._log

    def progress(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """Say how far the handler is: `ctx.progress(40, 100, "loading")`. Others see it at once, whatever the transaction does.

        Returns immediately, in async handlers too; nothing is awaited. The newest note is written at most once a
        second, every five in long runs, and forgotten when the job is tried again. note: up to 200 characters that
        everyone may read who may look at jobs. In a batch it is the note of the first job.
        Raises InvalidOption for what is no number, negative or too long.
        """
        if self._progress is not None:
            self._progress.put(self._job, done, total, note)

    def _step_of(self, name: str, key: str | None) -> tuple[Steps, str]:
        if self._steps is None:
            raise InvalidOption(
                "step", "is for single jobs: which jobs share a call may differ from one attempt to the next"
            )
        return self._steps, f"{self.idempotency_key}:{name}" if key is None else key

    def ask_to_stop(self, reason: str) -> None:
        """Tell the handler through `cancelled`; the first reason stays."""
        if self._cancelled is None:
            self._cancelled = reason


class JobContext(_Context):
    """A sync handler's context."""

    __slots__ = ("_transaction",)

    def __init__(
        self,
        job: ClaimedJob,
        args: dict[str, Any],
        extras: dict[str, Any],
        max_attempts: int,
        deadline: float | None,
        begin: Callable[[], JobTransaction],
        steps: StepBook | None = None,
        progress: ProgressBook | None = None,
    ) -> None:
        super().__init__(job, args, extras, max_attempts, deadline, steps, progress)
        self._transaction: JobTransaction | Callable[[], JobTransaction] = begin

    @property
    def conn(self) -> Connection[Any]:
        """psycopg's connection in the job's transaction: what is written here commits with the job's settlement, or not at all."""
        return self._opened().conn

    @property
    def session(self) -> Session:
        """A SQLAlchemy Session in the same transaction."""
        return self._opened().session

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection[Any]]:
        """Do the slow part first, then open the job's transaction here; a second block is a savepoint of it."""
        conn = self.conn
        with conn.transaction():
            yield conn

    def enqueue(self, task: Enqueueable, /, **args: Any) -> Any:
        """Enqueue `task` in the job's transaction, as its child: it exists if this job succeeds."""
        return task.enqueue_in(self.conn, self._job.id, args)

    def enqueue_many(self, task: Enqueueable, jobs: Iterable[Mapping[str, Any]], /) -> Any:
        """Fan out: enqueue a job of `task` for each mapping of arguments, in the job's transaction, as its children.

        A generator is read a thousand at a time and never held whole. All or none: if it raises, or one mapping is
        refused (the error names it: `args[17]`), none is enqueued and the transaction can go on.
        """
        return task.enqueue_many_in(self.conn, self._job.id, jobs)

    def emit(
        self,
        topic: str,
        payload: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Emit a message in the job's transaction: it exists if this job succeeds. Returns its id.

        Trace and correlation of the job go along in its headers. As `app.outbox.emit`.
        """
        return emit(self.conn, self._message(topic, payload, key, headers), own=None)

    def once(self, key: str, ttl: str | float | timedelta | None = TTL_DEFAULT_S) -> SyncOnce:
        """Take `key` in the job's transaction: true for the first job of this task that does, while the key lives.

        ttl: its life, from now; None: for ever. Rolled back with the job, so that the attempt that succeeds is the
        first. A job that holds the key and has not ended yet is waited for.
        """
        return OnceKey(self._job.task_name, self._job.id, key, ttl).take(self.conn)

    def step(self, name: str, call: Callable[..., Any], *, key: str | None = None) -> Any:
        """Make a call to somebody else and record its result at once, on a connection of its own: a later attempt gets it.

        `call` gets an idempotency key if it has a parameter for one: `key`, or `ctx.idempotency_key` and the step's
        name. If the process dies between the call and its record, the next attempt calls again, with the same key.
        The result is plain JSON, as it will be read back; an error of `call` is not recorded.
        Raises ClaimLost if the job is no longer this run's, StepRefused for a result that cannot be stored.
        """
        steps, call_key = self._step_of(name, key)
        return steps.run(name, call, call_key)

    def opened(self) -> JobTransaction | None:
        """The transaction, if the handler touched it."""
        return None if callable(self._transaction) else self._transaction

    def _opened(self) -> JobTransaction:
        if callable(self._transaction):
            self._transaction = self._transaction()
        return self._transaction


class BatchContext(JobContext):
    """The context of one call for many jobs: one transaction, and a verdict per job where they differ."""

    __slots__ = ("failures", "jobs")

    def __init__(
        self,
        members: Sequence[tuple[ClaimedJob, Prepared]],
        deadline: float | None,
        begin: Callable[[], JobTransaction],
        progress: ProgressBook | None = None,
    ) -> None:
        first, prepared = members[0]
        super().__init__(
            first, prepared.args, prepared.extras, prepared.max_attempts, deadline, begin, progress=progress
        )
        self.jobs = [job.seen_by_handler(p.args, p.extras, p.max_attempts) for job, p in members]
        self.failures: dict[int, BaseException] = {}

    def fail(self, job: Job, error: BaseException | str) -> None:
        """This job of the batch failed, the others may succeed: `error` decides like a raised one (Reject, Snooze, …)."""
        self.failures[job.id] = error if isinstance(error, BaseException) else RuntimeError(error)

    def member_transaction(self) -> JobTransaction:
        """The shared transaction, at the beginning of a member's part of it."""
        transaction = self._opened()
        transaction.step()
        return transaction


class AsyncJobContext(_Context):
    """An async handler's context: the same names, with an async connection and session."""

    __slots__ = ("_begin", "_lazy", "_transaction")

    def __init__(
        self,
        job: ClaimedJob,
        args: dict[str, Any],
        extras: dict[str, Any],
        max_attempts: int,
        deadline: float | None,
        begin: Callable[[], AsyncJobTransaction],
        steps: StepBook | None = None,
        progress: ProgressBook | None = None,
    ) -> None:
        super().__init__(job, args, extras, max_attempts, deadline, steps, progress)
        self._begin = begin
        self._transaction: AsyncJobTransaction | None = None
        self._lazy: LazyAsyncConnection | None = None

    @property
    def conn(self) -> AsyncConnection[Any]:
        """psycopg's async connection in the job's transaction; it is lent at the first awaited call."""
        if self._lazy is None:
            self._lazy = LazyAsyncConnection(self._opened().connection)
        return self._lazy  # type: ignore[return-value]  # stands in for AsyncConnection until the first await

    @property
    def session(self) -> AsyncSession:
        """A SQLAlchemy AsyncSession in the same transaction."""
        return self._opened().session

    async def connection(self) -> AsyncConnection[Any]:
        """The connection itself, for code that needs psycopg's own class."""
        return await self._opened().connection()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection[Any]]:
        """Do the slow part first, then open the job's transaction here; a second block is a savepoint of it."""
        conn = await self.connection()
        async with conn.transaction():
            yield conn

    async def enqueue(self, task: Enqueueable, /, **args: Any) -> Any:
        """Enqueue `task` in the job's transaction, as its child."""
        return await task.enqueue_in_async(await self.connection(), self._job.id, args)

    async def enqueue_many(self, task: Enqueueable, jobs: Iterable[Mapping[str, Any]], /) -> Any:
        """As JobContext.enqueue_many. The loop is free while each thousand is on its way."""
        return await task.enqueue_many_in_async(await self.connection(), self._job.id, jobs)

    async def emit(
        self,
        topic: str,
        payload: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Emit a message in the job's transaction: it exists if this job succeeds. Returns its id."""
        draft = self._message(topic, payload, key, headers)
        return await emit_async(await self.connection(), draft, own=None)

    async def once(self, key: str, ttl: str | float | timedelta | None = TTL_DEFAULT_S) -> AsyncOnce:
        """As JobContext.once: `if await ctx.once(key, ttl):`."""
        return await OnceKey(self._job.task_name, self._job.id, key, ttl).take_async(await self.connection())

    async def step(self, name: str, call: Callable[..., Any], *, key: str | None = None) -> Any:
        """As JobContext.step; `call` may be a coroutine function."""
        steps, call_key = self._step_of(name, key)
        return await steps.run_async(name, call, call_key)

    def opened(self) -> AsyncJobTransaction | None:
        """The transaction, if the handler touched it."""
        return self._transaction if self._transaction is not None and self._transaction.opened else None

    def _opened(self) -> AsyncJobTransaction:
        if self._transaction is None:
            self._transaction = self._begin()
        return self._transaction


class AsyncBatchContext(AsyncJobContext):
    """The context of one call of an async batch handler."""

    __slots__ = ("failures", "jobs")

    def __init__(
        self,
        members: Sequence[tuple[ClaimedJob, Prepared]],
        deadline: float | None,
        begin: Callable[[], AsyncJobTransaction],
        progress: ProgressBook | None = None,
    ) -> None:
        first, prepared = members[0]
        super().__init__(
            first, prepared.args, prepared.extras, prepared.max_attempts, deadline, begin, progress=progress
        )
        self.jobs = [job.seen_by_handler(p.args, p.extras, p.max_attempts) for job, p in members]
        self.failures: dict[int, BaseException] = {}

    def fail(self, job: Job, error: BaseException | str) -> None:
        """This job of the batch failed, the others may succeed: `error` decides like a raised one (Reject, Snooze, …)."""
        self.failures[job.id] = error if isinstance(error, BaseException) else RuntimeError(error)

    async def begun(self) -> AsyncJobTransaction:
        """The shared transaction, with its connection."""
        transaction = self._opened()
        await transaction.connection()
        return transaction
