"""Recorded steps: the answer of a call to somebody else is committed at once, so that a retry need not call again.

Called by the contexts; one book per worker process, with connections of its own, opened when the first step comes.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
import psycopg

from pgqueue.core.names import check_key
from pgqueue.core.payload import encode_args
from pgqueue.errors import ClaimLost, InvalidArguments, InvalidName, StepRefused
from pgqueue.storage.connect import STEP
from pgqueue.storage.link import Link
from pgqueue.storage.statements import statement
from pgqueue.worker.claimed import ClaimedJob
from pgqueue.worker.state import WorkerState

T = TypeVar("T")

CONNECTIONS_MAX: Final = 4  # a record is one short commit; the calls between them take far longer

_WRAP: Final = '{"result":'


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a step has recorded: its result, or why that could not be stored."""

    result: Any
    refused: str | None


class StepBook:
    """Where a worker process records steps. Thread-safe."""

    def __init__(self, state: WorkerState, dsn: str) -> None:
        self._state = state
        self._dsn = dsn
        self._idle: queue.LifoQueue[Link] = queue.LifoQueue()
        for _ in range(CONNECTIONS_MAX):
            self._idle.put(self._link())

    @property
    def result_bytes_max(self) -> int:
        """The largest result of a step, as JSON."""
        return self._state.settings.result_bytes_max

    def find(self, job: ClaimedJob, name: str) -> Recorded | None:
        """What the step has recorded. Raises ClaimLost if the job is no longer this run's."""

        def look(conn: psycopg.Connection[Any]) -> tuple[Any, ...]:
            return _found(conn, job, name)

        held, record_id, result, refused = self._run(look)
        if not held:
            raise _lost(job, name)
        return None if record_id is None else _recorded(result, refused)

    def record(
        self, job: ClaimedJob, name: str, result: str | None, refused: str | None, run_s: float
    ) -> Recorded:
        """Record what the step's call returned, as JSON, or why that is impossible; as it will be read back.

        Waits for a database that is away: the call was made, and this is all that is known of it. A lost answer is
        read back by the record's own id. Raises ClaimLost if the job is no longer this run's.
        """
        parameters = {
            "id": job.id,
            "claim_id": job.claim.id,
            "name": name,
            "result": result,
            "refused": refused,
            "run_s": run_s,
            "record_id": str(uuid.uuid4()),
        }

        def write(conn: psycopg.Connection[Any]) -> Recorded:
            row = conn.execute(statement("record_step"), parameters).fetchone()
            if row is not None:
                return _recorded(row[0], refused)
            held, record_id, stored, why = _found(conn, job, name)
            if not held:
                raise _lost(job, name)
            if record_id != parameters["record_id"]:
                raise _twice(name)
            return _recorded(stored, why)

        return self._run(write)

    def close(self) -> None:
        """Close the connections that are idle; the others close with the process."""
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _run(self, work: Callable[[psycopg.Connection[Any]], T]) -> T:
        link = self._idle.get()
        try:
            return link.run(work)
        finally:
            self._idle.put(link)

    def _link(self) -> Link:
        state = self._state
        return Link(
            self._dsn,
            STEP,
            label=state.label,
            connect_timeout_s=state.settings.connect_timeout_s,
            stop=state.ending,
            report=state.trouble,
        )


class Steps:
    """The steps of one run."""

    __slots__ = ("_book", "_job", "_names")

    def __init__(self, book: StepBook, job: ClaimedJob) -> None:
        self._book = book
        self._job = job
        self._names: set[str] = set()

    def run(self, name: str, call: Callable[..., Any], key: str) -> Any:
        """Return what the step has recorded, or make its call and record it. See JobContext.step."""
        recorded = self._begin(name)
        if recorded is None:
            began = time.monotonic()
            value = call(key) if _wants_key(call) else call()
            recorded = self._end(name, value, began)
        return _value_of(name, recorded)

    async def run_async(self, name: str, call: Callable[..., Any], key: str) -> Any:
        """As `run`; what `call` returns may be awaitable."""
        recorded = await asyncio.to_thread(self._begin, name)
        if recorded is None:
            began = time.monotonic()
            value = call(key) if _wants_key(call) else call()
            if inspect.isawaitable(value):
                value = await value
            recorded = await _to_the_end(self._end, name, value, began)
        return _value_of(name, recorded)

    def _begin(self, name: str) -> Recorded | None:
        check_key(name, field="step")
        if name in self._names:
            raise _twice(name)
        self._names.add(name)
        return self._book.find(self._job, name)

    def _end(self, name: str, value: object, began: float) -> Recorded:
        run_s = time.monotonic() - began
        try:
            text = encode_args({"result": value}, bytes_max=self._book.result_bytes_max + len(_WRAP) + 1)
        except InvalidArguments as error:
            refused = f"{error.path or '$.result'}: {error.reason}"
            return self._book.record(self._job, name, None, refused, run_s)
        return self._book.record(self._job, name, text[len(_WRAP) : -1], None, run_s)


async def _to_the_end(work: Callable[..., T], *args: Any) -> T:
    """Run `work` in a thread and wait for it, even if this task is cancelled meanwhile: what it records was done."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _value_of(name: str, recorded: Recorded) -> Any:
    if recorded.refused is not None:
        raise StepRefused(name, recorded.refused)
    return recorded.result


def _wants_key(call: Callable[..., Any]) -> bool:
    """Whether a step's function takes the idempotency key: it has a positional parameter without a default."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # some functions written in C
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)


def _found(conn: psycopg.Connection[Any], job: ClaimedJob, name: str) -> tuple[Any, ...]:
    parameters = {"id": job.id, "claim_id": job.claim.id, "name": name}
    row: Sequence[Any] | None = conn.execute(statement("find_step"), parameters).fetchone()
    assert row is not None  # noqa: S101 - the statement always has one row
    return tuple(row)


def _recorded(result: str | None, refused: str | None) -> Recorded:
    return Recorded(None if result is None else orjson.loads(result), refused)


def _lost(job: ClaimedJob, name: str) -> ClaimLost:
    return ClaimLost(
        f"job {job.id}, step {name}: another run of the job is newer, or it was ended; nothing was recorded"
    )


def _twice(name: str) -> InvalidName:
    return InvalidName(
        "step", f"{name!r} is used twice in one run; give each step of a job a name of its own"
    )
