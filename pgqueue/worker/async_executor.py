"""Runs async handlers: one event loop in one thread, a task per job, the same steps as the sync executor."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any, Final

from psycopg_pool import AsyncConnectionPool

from pgqueue.core.decide import Kind
from pgqueue.core.events import LoopLagged, TransactionEnded
from pgqueue.core.payload import encode_result
from pgqueue.errors import TransactionMisuse
from pgqueue.storage.handlers import AsyncJobConnection
from pgqueue.storage.job_transaction import AsyncJobTransaction
from pgqueue.tracing import Processing
from pgqueue.worker.along import along
from pgqueue.worker.claimed import ClaimedJob
from pgqueue.worker.context import AsyncJobContext
from pgqueue.worker.executor_errors import handler_fault, leave_if_forked
from pgqueue.worker.grouped import LINGER_S
from pgqueue.worker.grouped_async import AsyncGroupRunner
from pgqueue.worker.outcome import Ended, Prepared, ended_badly, not_to_start, prepare
from pgqueue.worker.settler import Settler
from pgqueue.worker.slots import Pool
from pgqueue.worker.spans import begin_span, end_span
from pgqueue.worker.state import NEVER, Running, WorkerState
from pgqueue.worker.windows import gather_async, leads

TICK_S: Final = 0.5


class AsyncExecutor:
    """The event loop of one worker process, for all its pools."""

    def __init__(
        self,
        state: WorkerState,
        pools: tuple[Pool, ...],
        settler: Settler,
        connections: AsyncConnectionPool[AsyncJobConnection],
    ) -> None:
        self._state = state
        self._pools = pools
        self._settler = settler
        self._connections = connections
        self._groups = AsyncGroupRunner(
            state, settler, lambda claim_id, limit_s: AsyncJobTransaction(connections, claim_id, limit_s)
        )
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pumping = False
        self._thread = threading.Thread(target=self._serve, name="pgqueue-loop", daemon=True)
        self.ticked_at = time.monotonic()
        self._tick_in_s = float("inf")  # nothing was planned before the first tick
        for pool in pools:
            pool.pump_async = self._ask_to_pump

    def start(self) -> None:
        """Start the loop's thread."""
        self._thread.start()

    def cancel(self, running: Running) -> None:
        """Cancel a run's task from another thread."""
        task: asyncio.Task[None] | None = running.cancel
        if task is not None:
            self._loop.call_soon_threadsafe(task.cancel)

    def stop(self) -> None:
        """End the loop; runs still at work are cancelled."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._connections.open())
        self._tick()
        self._loop.run_forever()
        self._loop.run_until_complete(self._finish())
        self._loop.close()

    async def _finish(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
        await self._connections.close(timeout=1)

    def _tick(self) -> None:
        now = time.monotonic()
        self._state.events.emit(LoopLagged(max(0.0, now - self.ticked_at - self._tick_in_s)))
        self.ticked_at, self._tick_in_s = now, TICK_S
        self._loop.call_later(TICK_S, self._tick)

    def _ask_to_pump(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon_threadsafe(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        for pool in self._pools:
            while (job := pool.take_async()) is not None:
                task = self._loop.create_task(self._run(pool, job))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _run(self, pool: Pool, job: ClaimedJob) -> None:
        started = time.monotonic()
        along = 0
        try:
            if job.task is not None and job.task.shares:
                along = await self._together(pool, job, job.task.together, started)
            else:
                await self._attempt(job, started)
        finally:
            pool.count_along(along)
            pool.finish_async(job, time.monotonic() - started)
            self._pump()

    async def _together(self, pool: Pool, first: ClaimedJob, most: int, started: float) -> int:
        if leads(first):
            jobs = [first, *await gather_async(self._state, self._connections, first)]
            await self._groups.run(jobs, started, asyncio.current_task())
            return 0
        jobs = [first, *pool.take_along(first, most - 1, is_async=True)]
        if len(jobs) < most and first.task is not None and first.task.batch:
            await asyncio.sleep(LINGER_S)
            jobs += pool.take_along(first, most - len(jobs), is_async=True)
        await self._groups.run(jobs, started, asyncio.current_task())
        return len(jobs) - 1

    async def _attempt(self, job: ClaimedJob, started: float) -> None:
        state = self._state
        if job.claim.lost:
            return  # not ours to run any more; the rescue has its claim
        if (ended := not_to_start(state, job)) is not None:
            self._settler.put_other(ended)
            return
        prepared: Prepared | None = None
        context: AsyncJobContext | None = None
        running: Running | None = None
        span: Processing | None = None
        try:
            prepared = prepare(state, job)
            span = begin_span(state, [(job, prepared)])
            limit_s = prepared.timeout_s
            deadline = started + limit_s if limit_s else NEVER
            context = AsyncJobContext(
                job,
                prepared.args,
                prepared.extras,
                prepared.max_attempts,
                deadline if limit_s else None,
                lambda: AsyncJobTransaction(self._connections, job.claim.id, limit_s),
                state.steps,
                state.progress,
            )
            running = state.running[job.id] = Running(
                job, started, deadline, context, cancel=asyncio.current_task()
            )
            task = job.task
            assert task is not None  # noqa: S101 - checked by prepare
            result = await (
                task.function(context, **prepared.args)
                if task.signature.takes_context
                else task.function(**prepared.args)
            )
            leave_if_forked(self._pid)
            await self._succeed(job, prepared, context, result, started)
            if span is not None:
                span.outcome(Kind.SUCCEEDED.value)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its job's affair, and only its
            leave_if_forked(self._pid)
            end_span(span, await self._fail(job, prepared, context, running, error, started))
        finally:
            if span is not None:
                span.close()
            if running is not None:
                state.forget(running)

    async def _succeed(
        self, job: ClaimedJob, prepared: Prepared, context: AsyncJobContext, result: Any, started: float
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
            await transaction.abort()
            return
        await transaction.settle(
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

    async def _fail(
        self,
        job: ClaimedJob,
        prepared: Prepared | None,
        context: AsyncJobContext | None,
        running: Running | None,
        error: BaseException,
        started: float,
    ) -> Ended | None:
        transaction = context.opened() if context is not None else None
        lost = False
        if transaction is not None:
            lost = transaction.lost
            await transaction.abort()
            self._state.events.emit(
                TransactionEnded(job.queue, time.monotonic() - transaction.began, committed=False)
            )
        if job.done:
            return None
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
