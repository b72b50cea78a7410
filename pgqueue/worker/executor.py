"""Runs sync handlers: takes a job from its pool, runs it in this thread, settles it with its effect or passes it on.

One thread per slot. Reads as the job's way: take → prepare → run → settle in its transaction, or hand to the settler.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from psycopg_pool import ConnectionPool

from pgqueue.core.decide import JobTimeout, Kind, Settlement
from pgqueue.core.events import TransactionEnded
from pgqueue.core.payload import encode_result
from pgqueue.errors import TransactionMisuse
from pgqueue.storage.handlers import JobConnection
from pgqueue.storage.job_transaction import JobTransaction
from pgqueue.tracing import Processing
from pgqueue.worker.along import along
from pgqueue.worker.claimed import ClaimedJob
from pgqueue.worker.context import JobContext
from pgqueue.worker.executor_errors import handler_fault, leave_if_forked
from pgqueue.worker.grouped import LINGER_S, GroupRunner
from pgqueue.worker.outcome import Ended, Prepared, ended_badly, not_to_start, prepare
from pgqueue.worker.settler import Settler
from pgqueue.worker.slots import Pool
from pgqueue.worker.spans import begin_span, end_span
from pgqueue.worker.state import NEVER, Running, WorkerState
from pgqueue.worker.windows import gather, leads


class SyncExecutor:
    """The threads of one pool."""

    def __init__(
        self, state: WorkerState, pool: Pool, settler: Settler, connections: ConnectionPool[JobConnection]
    ) -> None:
        self._state = state
        self._pool = pool
        self._settler = settler
        self._connections = connections
        self._groups = GroupRunner(
            state, settler, lambda claim_id, limit_s: JobTransaction(connections, claim_id, limit_s)
        )
        self._threads: list[threading.Thread] = []
        self._number = 0
        self._pid = os.getpid()

    def start(self, threads: int) -> None:
        """Start `threads` more threads."""
        for _ in range(threads):
            self._number += 1
            thread = threading.Thread(
                target=self._work, name=f"pgqueue-run-{self._pool.queues[0]}-{self._number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def replace_stuck(self) -> None:
        """A handler outlived its time: its claim was ended, and a fresh thread takes its slot."""
        self._pool.abandon()
        self.start(1)

    def _work(self) -> None:
        job: ClaimedJob | None = None
        run_s = 0.0
        while True:
            job = self._pool.take(job, run_s)
            if job is None:
                return
            started = time.monotonic()
            if job.task is not None and job.task.shares:
                kept = self._run_together(job, job.task.together, started)
            else:
                kept = self._run(job, started)
            run_s = time.monotonic() - started
            if not kept:
                self._state.stuck.discard(threading.get_ident())
                return  # given up as stuck meanwhile: another thread has this slot

    def _run_together(self, first: ClaimedJob, most: int, started: float) -> bool:
        if leads(first):
            # Not counted as jobs along: how many calls are worth claiming ahead does not depend on their size.
            return self._groups.run([first, *gather(self._state, self._connections, first)], started)
        jobs = [first, *self._pool.take_along(first, most - 1)]
        if len(jobs) < most and first.task is not None and first.task.batch:
            time.sleep(LINGER_S)
            jobs += self._pool.take_along(first, most - len(jobs))
        kept = self._groups.run(jobs, started)
        self._pool.count_along(len(jobs) - 1)
        return kept

    def _run(self, job: ClaimedJob, started: float) -> bool:
        """Run one job; False if it was given up as stuck meanwhile."""
        state = self._state
        if job.claim.lost:
            return True  # not ours to run any more; the rescue has its claim
        if (ended := not_to_start(state, job)) is not None:
            self._settler.put_other(ended)
            return True
        prepared: Prepared | None = None
        context: JobContext | None = None
        running: Running | None = None
        span: Processing | None = None
        try:
            prepared = prepare(state, job)
            span = begin_span(state, [(job, prepared)])
            limit_s = prepared.timeout_s
            deadline = started + limit_s if limit_s else NEVER
            context = JobContext(
                job,
                prepared.args,
                prepared.extras,
                prepared.max_attempts,
                deadline if limit_s else None,
                lambda: JobTransaction(self._connections, job.claim.id, limit_s),
                self._state.steps,
                self._state.progress,
            )
            running = state.running[job.id] = Running(job, started, deadline, context)
            task = job.task
            assert task is not None  # noqa: S101 - checked by prepare
            result = (
                task.function(context, **prepared.args)
                if task.signature.takes_context
                else task.function(**prepared.args)
            )
            leave_if_forked(self._pid)
            self._succeed(job, prepared, context, result, started)
            if span is not None:
                span.outcome(Kind.SUCCEEDED.value)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its job's affair, and only its
            leave_if_forked(self._pid)
            end_span(span, self._fail(job, prepared, context, running, error, started))
        finally:
            if span is not None:
                span.close()
            kept = running is None or state.forget(running)
        return kept

    def _succeed(
        self, job: ClaimedJob, prepared: Prepared, context: JobContext, result: Any, started: float
    ) -> None:
        text, warning = (
            (None, None)
            if result is None
            else encode_result(result, bytes_max=self._state.settings.result_bytes_max)
        )
        buffered_s = started - job.claim.received
        run_s = time.monotonic() - started
        transaction = context.opened()
        if transaction is None:
            if not job.done:
                self._settler.put_succeeded(job, prepared, buffered_s, run_s, text, warning)
            return
        if job.done:
            transaction.abort()
            return
        transaction.settle(
            {
                "id": job.id,
                "claim_id": job.claim.id,
                "mark": job.claim.id,
                "buffered": buffered_s,
                "run": run_s,
                "result": text,
            },
            also=along([(job, prepared, text)]),
        )
        ended = time.monotonic()
        self._settler.note_committed(job, prepared, buffered_s, run_s, warning, ended - started - run_s)
        self._state.events.emit(TransactionEnded(job.queue, ended - transaction.began, committed=True))

    def _fail(
        self,
        job: ClaimedJob,
        prepared: Prepared | None,
        context: JobContext | None,
        running: Running | None,
        error: BaseException,
        started: float,
    ) -> Ended | None:
        transaction = context.opened() if context is not None else None
        lost = False
        if transaction is not None:
            lost = transaction.lost
            transaction.abort()
            self._state.events.emit(
                TransactionEnded(job.queue, time.monotonic() - transaction.began, committed=False)
            )
        if job.done:
            return None  # its claim was ended when its time ran out
        verdict = handler_fault(error, lost=lost)
        if verdict == "claim_lost":
            self._settler.note_lost(job)
            return None
        if verdict == "unknown":
            ended = ended_badly(self._state, job, error, prepared, started)
            self._settler.put_unknown(ended)
            return ended
        if isinstance(verdict, TransactionMisuse):
            error = verdict
        reason = running.cancel_reason if running is not None else None
        ended = ended_badly(self._state, job, error, prepared, started, cancel_reason=reason)
        self._settler.put_other(ended)
        return ended


def timed_out(state: WorkerState, running: Running, job: ClaimedJob) -> Ended:
    """The end of a run whose time is up, for one of its jobs."""
    limit = running.deadline - running.started
    error = JobTimeout(f"ran longer than its timeout of {limit:g} s")
    try:
        prepared: Prepared | None = prepare(state, job, batch=job.task is not None and job.task.batch > 0)
    except Exception:  # noqa: BLE001 - it had been prepared before; if not now, its policy is the default
        prepared = None
    return ended_badly(state, job, error, prepared, running.started)


def interrupted(running: Running, job: ClaimedJob) -> Ended:
    """The end of a run that the shutdown did not wait for: it costs no attempt."""
    return Ended(
        job,
        Settlement(Kind.RELEASED, reason="released"),
        running.started - job.claim.received,
        time.monotonic() - running.started,
        job.max_attempts,
    )
