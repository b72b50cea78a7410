"""Ends claims: collects finished runs and writes each batch in one statement, under the fence.

Executors put ended runs in; one thread with its own connection writes them. What shared a transaction with
the handler's effect was settled by the executor and is only counted here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
import psycopg

from pgqueue.core.decide import Kind, Settlement
from pgqueue.core.events import (
    AttemptEnded,
    AttemptsSucceeded,
    ClaimLostSeen,
    JobHeld,
    SettlementWritten,
    Warned,
)
from pgqueue.core.failure import CONSTANT_FAILURE
from pgqueue.storage.connect import SETTLE
from pgqueue.storage.faults import Fault, classify, summary_of
from pgqueue.storage.link import Link
from pgqueue.storage.settling import NOTHING
from pgqueue.storage.statements import statement
from pgqueue.worker.along import Succeeded, along
from pgqueue.worker.claimed import Claim, ClaimedJob
from pgqueue.worker.outcome import Ended, Prepared, total_s
from pgqueue.worker.state import WorkerState

T = TypeVar("T")

FINAL_FLUSH_S: Final = 10.0


@dataclass(slots=True)
class _Success:
    job: ClaimedJob
    buffered_s: float
    run_s: float
    result: str | None
    warning: str | None
    prepared: Prepared


class Settler:
    """One per worker process."""

    def __init__(self, state: WorkerState, dsn: str) -> None:
        self._state = state
        self._link = Link(
            dsn,
            SETTLE,
            label=state.label,
            connect_timeout_s=state.settings.connect_timeout_s,
            stop=state.ending,
            report=state.trouble,
        )
        self._batch_max = state.settings.settle_batch_max
        self._linger_s = state.settings.settle_linger_s
        self._succeeded: deque[_Success] = deque()
        self._others: deque[Ended] = deque()
        self._unknown: deque[Ended] = deque()
        self._something = threading.Event()
        self._closing = False
        self._busy = False
        self._thread = threading.Thread(target=self._work, name="pgqueue-settle", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put_succeeded(
        self,
        job: ClaimedJob,
        prepared: Prepared,
        buffered_s: float,
        run_s: float,
        result: str | None,
        warning: str | None,
    ) -> None:
        """A run that touched no transaction and returned."""
        self._succeeded.append(_Success(job, buffered_s, run_s, result, warning, prepared))
        if not self._something.is_set():
            self._something.set()

    def put_other(self, ended: Ended) -> None:
        """A run that ended in any other way, or a job that did not start."""
        self._others.append(ended)
        if not self._something.is_set():
            self._something.set()

    def put_unknown(self, ended: Ended) -> None:
        """A run whose COMMIT may or may not have happened; `ended` is what to write if it did not."""
        self._unknown.append(ended)
        if not self._something.is_set():
            self._something.set()

    def note_committed(
        self,
        job: ClaimedJob,
        prepared: Prepared,
        buffered_s: float,
        run_s: float,
        warning: str | None,
        settle_s: float = 0.0,
    ) -> None:
        """A run that was settled in its own transaction, in `settle_s` from its return to the commit's answer."""
        self._state.claims.settled(job.claim, job.id)
        self._state.settled += 1
        self._state.events.emit(_told([_Success(job, buffered_s, run_s, None, warning, prepared)], settle_s))

    def note_lost(self, job: ClaimedJob) -> None:
        """The fence refused: nothing of this run was committed."""
        self._state.claims.settled(job.claim, job.id)
        self._state.claims_lost += 1
        self._state.events.emit(ClaimLostSeen(job.id, job.task_name, job.queue, job.claim.id))

    def pending(self) -> int:
        """Ended runs that are not written yet."""
        return len(self._succeeded) + len(self._others) + len(self._unknown) + self._busy

    def close(self) -> None:
        """Write what is left and end the thread."""
        self._closing = True
        self._something.set()
        self._thread.join(FINAL_FLUSH_S)
        self._link.close()

    def _work(self) -> None:
        while True:
            self._something.wait()
            if len(self._succeeded) < self._batch_max and not self._closing and self._state.running:
                time.sleep(self._linger_s)  # others are about to finish; one statement then serves them all
            self._something.clear()
            self._busy = True
            try:
                self._flush()
            finally:
                self._busy = False
            if self._closing and not self.pending():
                return

    def _flush(self) -> None:
        try:
            while self._unknown:
                self._resolve(self._unknown[0])
                self._unknown.popleft()
            while self._others:
                batch = _front(self._others, self._batch_max)
                self._write_others(batch)
                _drop(self._others, len(batch))
            while self._succeeded:
                done = _front(self._succeeded, self._batch_max)
                self._write_succeeded(done)
                _drop(self._succeeded, len(done))
                if len(self._succeeded) < self._batch_max:
                    break
        except Exception as error:  # noqa: BLE001 - the thread must live; what it could not write stays queued
            self._state.events.emit(
                Warned("settle_failed", f"settlement failed and is repeated: {summary_of(error)}")
            )
            if self._closing:
                for queue in (self._succeeded, self._others, self._unknown):
                    queue.clear()
            else:
                time.sleep(0.2)
        if self._succeeded or self._others or self._unknown:
            self._something.set()

    def _write_succeeded(self, batch: list[_Success]) -> None:
        began = time.monotonic()
        settled = self._settle(
            statement("settle_succeeded"),
            array_parameters([(s.job, s.buffered_s, s.run_s, s.result) for s in batch]),
            [s.job for s in batch],
            [(s.job, s.prepared, s.result) for s in batch],
        )
        self._count(batch, settled)
        if settled:
            self._state.settled += len(settled)
            written = batch if len(settled) == len(batch) else [s for s in batch if s.job.id in settled]
            self._state.events.emit(_told(written, time.monotonic() - began))

    def _write_others(self, batch: list[Ended]) -> None:
        began = time.monotonic()
        records = orjson.dumps([ended.as_record() for ended in batch]).decode()
        try:
            settled = self._settle(
                statement("settle_otherwise"), {"batch": records}, [ended.job for ended in batch]
            )
        except psycopg.Error as error:
            if classify(error) is not Fault.BAD_DATA:
                raise
            if len(batch) > 1:  # one of them cannot be stored: find it by halving, the others are fine
                middle = len(batch) // 2
                self._write_others(batch[:middle])
                self._write_others(batch[middle:])
                return
            self._write_others([_with_constant_text(batch[0])])
            return
        self._count(batch, settled)
        seconds = time.monotonic() - began
        for ended in batch:
            if ended.job.id in settled:
                self._tell(ended, seconds)

    def _tell(self, ended: Ended, settle_s: float) -> None:
        self._state.settled += 1
        kind = ended.settlement.kind
        if kind is Kind.HELD:
            self._state.events.emit(
                JobHeld(ended.job.id, ended.job.task_name, ended.job.queue, ended.settlement.reason)
            )
        else:
            self._state.failed += kind in {Kind.RETRY, Kind.DEAD}
            self._state.events.emit(ended.as_event(settle_s))

    def _settle(
        self,
        text: bytes,
        parameters: dict[str, Any],
        jobs: Sequence[ClaimedJob],
        succeeded: Sequence[Succeeded] = (),
    ) -> set[int]:
        """Run a settling statement. It may be repeated: what the first try did is read back, not guessed.

        What goes along with those that `succeeded` is written in the same transaction, if they were settled.
        """
        tries = 0
        more = along(succeeded) is not NOTHING

        def end(conn: psycopg.Connection[Any]) -> set[int]:
            return {row[0] for row in conn.execute(text, parameters).fetchall()}

        def end_with_more(conn: psycopg.Connection[Any]) -> set[int]:
            with conn.transaction():
                settled = end(conn)
                for name, rows in along(one for one in succeeded if one[0].id in settled).items():
                    conn.execute(statement(name), {"rows": rows})
            return settled

        def write(conn: psycopg.Connection[Any]) -> set[int]:
            nonlocal tries
            tries += 1
            settled = end_with_more(conn) if more else end(conn)
            if tries > 1:
                settled |= {job.id for job in jobs if job.id not in settled and _was_settled(conn, job)}
            return settled

        began = time.monotonic()
        settled = self._link.run(write)
        self._state.events.emit(SettlementWritten(len(settled), time.monotonic() - began))
        return settled

    def _resolve(self, ended: Ended) -> None:
        """P7: was the transaction that settled this job committed? The locking read waits for a backend still at it."""

        def look(conn: psycopg.Connection[Any]) -> str:
            row = conn.execute(statement("find_claim"), {"id": ended.job.id}).fetchone()
            if row is not None and str(row[0]) == ended.job.claim.id:
                return "open"
            return "settled" if _was_settled(conn, ended.job) else "lost"

        verdict = self._link.run(look)
        if verdict == "open":
            self._others.append(ended)
        elif verdict == "settled":
            self._state.claims.settled(ended.job.claim, ended.job.id)
            self._state.settled += 1
            line = AttemptEnded(
                job_id=ended.job.id,
                task=ended.job.task_name,
                queue=ended.job.queue,
                attempt=ended.job.attempt,
                max_attempts=ended.max_attempts,
                outcome="succeeded",
                reason="read_back",
                wait_s=ended.job.wait_s,
                run_s=ended.run_s,
                worker_id=ended.job.claim.worker_id,
                claim_id=ended.job.claim.id,
            )
            self._state.events.emit(
                AttemptsSucceeded(
                    1,
                    0.0,
                    lambda _: line,
                    lambda: [(line.task, line.queue, line.wait_s, line.run_s, line.wait_s + line.run_s)],
                )
            )
        else:
            self.note_lost(ended.job)

    def _count(self, batch: Sequence[_Success | Ended], settled: set[int]) -> None:
        by_claim: dict[Claim, list[int]] = {}
        for one in batch:
            by_claim.setdefault(one.job.claim, []).append(one.job.id)
            if one.job.id not in settled:
                self.note_lost(one.job)
        for claim, ids in by_claim.items():
            self._state.claims.settled_many(claim, ids)


def _was_settled(conn: psycopg.Connection[Any], job: ClaimedJob) -> bool:
    row = conn.execute(statement("find_settled"), {"id": job.id, "claim_id": job.claim.id}).fetchone()
    return bool(row and row[0])


def array_parameters(rows: Sequence[tuple[ClaimedJob, float, float, str | None]]) -> dict[str, str]:
    """The parameters of a settling statement for (job, buffered_s, run_s, result) rows.

    Array literals joined by hand: numbers and UUIDs of our own making, and far quicker than the driver's dumper.
    """
    results = "[]"
    if any(row[3] is not None for row in rows):
        results = "[" + ",".join("null" if row[3] is None else row[3] for row in rows) + "]"
    return {
        "ids": "{" + ",".join([str(row[0].id) for row in rows]) + "}",
        "claims": "{" + ",".join([row[0].claim.id for row in rows]) + "}",
        "buffered": "{" + ",".join([f"{row[1]:.6f}" for row in rows]) + "}",
        "runs": "{" + ",".join([f"{row[2]:.6f}" for row in rows]) + "}",
        "results": results,
    }


def _line(s: _Success, settle_s: float) -> AttemptEnded:
    job = s.job
    return AttemptEnded(
        job_id=job.id,
        task=job.task_name,
        queue=job.queue,
        attempt=job.attempt,
        max_attempts=s.prepared.max_attempts,
        outcome="succeeded",
        reason="succeeded",
        wait_s=max(0.0, job.wait_s + s.buffered_s),
        run_s=s.run_s,
        worker_id=job.claim.worker_id,
        claim_id=job.claim.id,
        warning=s.warning,
        headers=s.prepared.extras.get("headers"),
        idempotency_key=s.prepared.extras.get("idempotency_key"),
        total_s=_total_s(s) + settle_s,
        settle_s=settle_s,
        span_ids=s.prepared.span_ids,
    )


def _total_s(s: _Success) -> float:
    return total_s(s.job, s.prepared.extras, s.buffered_s, s.run_s)


def _told(batch: list[_Success], settle_s: float) -> AttemptsSucceeded:
    return AttemptsSucceeded(
        len(batch),
        settle_s,
        lambda i: _line(batch[i], settle_s),
        lambda: [
            (
                s.job.task_name,
                s.job.queue,
                max(0.0, s.job.wait_s + s.buffered_s),
                s.run_s,
                _total_s(s) + settle_s,
            )
            for s in batch
        ],
        None if batch[0].prepared.span_ids is None else lambda: [s.prepared.span_ids for s in batch],
    )


def _with_constant_text(ended: Ended) -> Ended:
    old = ended.settlement
    ended.settlement = Settlement(old.kind, old.delay_s, old.reason, CONSTANT_FAILURE)
    return ended


def _front(queue: deque[T], most: int) -> list[T]:
    return [queue[i] for i in range(min(most, len(queue)))]


def _drop(queue: deque[Any], count: int) -> None:
    for _ in range(count):
        queue.popleft()
