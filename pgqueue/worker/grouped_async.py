"""Batches and groups of async handlers: the same steps as worker/grouped.py, awaited.

The async executor hands its slot's jobs over here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from pgqueue.core.events import TransactionEnded
from pgqueue.core.payload import encode_result
from pgqueue.storage.faults import Fault, classify
from pgqueue.storage.job_transaction import AsyncJobTransaction
from pgqueue.worker.along import along
from pgqueue.worker.claimed import ClaimedJob
from pgqueue.worker.context import AsyncBatchContext, AsyncJobContext
from pgqueue.worker.executor_errors import leave_if_forked, refuse_hidden_error
from pgqueue.worker.grouped import Member, Together, by_key, fit_members
from pgqueue.worker.settler import Settler, array_parameters
from pgqueue.worker.spans import spanning
from pgqueue.worker.state import NEVER, Running, WorkerState


class AsyncGroupRunner(Together):
    """Runs batches and groups on the loop."""

    def __init__(
        self, state: WorkerState, settler: Settler, begin: Callable[[str, float | None], AsyncJobTransaction]
    ) -> None:
        super().__init__(state, settler)
        self._begin = begin

    async def run(self, jobs: Sequence[ClaimedJob], started: float, cancel: Any) -> None:
        """Run jobs of one task that share the slot; `cancel` is the asyncio task that does it."""
        task = jobs[0].task
        assert task is not None  # noqa: S101 - unknown tasks were put aside by the claimer
        members = fit_members(self._state, self._settler, jobs, started)
        if task.batch:
            for group in by_key(members, task.batch_key):
                for at in range(0, len(group), task.batch):
                    await self._batch(group[at : at + task.batch], cancel)
        elif members:
            await self._group(members, cancel)

    async def _batch(self, members: list[Member], cancel: Any) -> None:
        started = time.monotonic()
        context, running = self._enter(members, started, cancel)
        try:
            task = members[0].job.task
            assert task is not None  # noqa: S101
            with spanning(self._state, [(m.job, m.prepared) for m in members], many=True):
                await (
                    task.function(context, context.jobs)
                    if task.signature.takes_context
                    else task.function(context.jobs)
                )
            leave_if_forked(self._pid)
            await self._commit(context, [m for m in members if m.job.id not in context.failures], started)
            for member in members:
                failure = context.failures.get(member.job.id)
                if failure is not None:
                    self._fail_one(member, failure, started)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its jobs' affair
            await self._halve(members, context, running, error, started, cancel)
        finally:
            self._leave(running)

    async def _halve(
        self,
        members: list[Member],
        context: AsyncBatchContext,
        running: Running,
        error: BaseException,
        started: float,
        cancel: Any,
    ) -> None:
        leave_if_forked(self._pid)
        lost = await _close(context)
        fault = classify(error, broken=lost) if isinstance(error, psycopg.Error) else None
        if not self._leave(running):  # now, since each half is watched by itself
            return
        if (
            running.cancel_reason is not None
            or fault in {Fault.RECONNECT, Fault.UNKNOWN}
            or len(members) == 1
        ):
            for member in members:
                self._fail_one(member, error, started, lost=lost, cancel_reason=running.cancel_reason)
            return
        middle = len(members) // 2
        await self._batch(members[:middle], cancel)
        await self._batch(members[middle:], cancel)

    async def _group(self, members: list[Member], cancel: Any) -> None:
        started = time.monotonic()
        shared, running = self._enter(members, started, cancel)
        good: list[Member] = []
        failed: list[tuple[Member, BaseException]] = []
        ran: set[int] = set()
        try:
            for member in members:
                if running.job.done:
                    break
                await self._member(member, shared, good, failed, ran)
            if not running.job.done:
                await self._commit(shared, good, started)
        except BaseException as error:  # noqa: BLE001
            leave_if_forked(self._pid)
            lost = await _close(shared)
            if self._leave(running):  # now, since each that runs again is watched by itself
                met_by = {m.job.id: e for m, e in failed}
                await self._singly(
                    members, met_by, error, started, unknown=ran if lost else set(), cancel=cancel
                )
            return
        finally:
            self._leave(running)
        for member, met in failed:
            self._fail_one(member, met, started)

    async def _member(
        self,
        member: Member,
        shared: AsyncBatchContext,
        good: list[Member],
        failed: list[tuple[Member, BaseException]],
        ran: set[int],
    ) -> None:
        """One member's part: a savepoint, opened before the handler since its first touch cannot await one."""
        began = time.monotonic()
        transaction = await shared.begun()
        await transaction.step()
        own = AsyncJobContext(
            member.job,
            member.prepared.args,
            member.prepared.extras,
            member.prepared.max_attempts,
            shared.deadline,
            lambda: transaction,
            self._state.steps,
            self._state.progress,
        )
        ran.add(member.job.id)
        try:
            member.result, member.warning = await self._call(member, own)
            await transaction.flush()
            refuse_hidden_error(fails=await transaction.fails())
            member.run_s = time.monotonic() - began
            good.append(member)
        except Exception as error:
            leave_if_forked(self._pid)
            if transaction.lost or not await transaction.undo_step():
                raise
            failed.append((member, error))

    async def _singly(
        self,
        members: list[Member],
        failed: dict[int, BaseException],
        error: BaseException,
        started: float,
        *,
        unknown: set[int],
        cancel: Any,
    ) -> None:
        for member in members:
            if member.job.id in failed:
                self._fail_one(member, failed[member.job.id], started)
            elif len(members) == 1 or member.job.id in unknown:
                self._fail_one(member, error, started, lost=member.job.id in unknown)
            else:
                await self._group([member], cancel)

    async def _call(self, member: Member, context: AsyncJobContext) -> tuple[str | None, str | None]:
        task = member.job.task
        assert task is not None  # noqa: S101
        args = member.prepared.args
        with spanning(self._state, [(member.job, member.prepared)]):
            result = await (
                task.function(context, **args) if task.signature.takes_context else task.function(**args)
            )
        leave_if_forked(self._pid)
        return (
            (None, None)
            if result is None
            else encode_result(result, bytes_max=self._state.settings.result_bytes_max)
        )

    async def _commit(self, context: AsyncBatchContext, members: list[Member], started: float) -> None:
        now = time.monotonic()
        transaction = context.opened()
        rows = [(m.job, started - m.job.claim.received, m.run_s or now - started, m.result) for m in members]
        if transaction is None:
            for member, (job, buffered_s, run_s, result) in zip(members, rows, strict=True):
                self._settler.put_succeeded(job, member.prepared, buffered_s, run_s, result, member.warning)
            return
        if not members:
            await transaction.abort()
            return
        returned = time.monotonic()
        await transaction.settle(
            {**array_parameters(rows), "mark": transaction.claim_id},
            many=True,
            also=along((m.job, m.prepared, m.result) for m in members),
        )
        ended = time.monotonic()
        for member, (job, buffered_s, run_s, _) in zip(members, rows, strict=True):
            self._settler.note_committed(
                job, member.prepared, buffered_s, run_s, member.warning, ended - returned
            )
        self._state.events.emit(
            TransactionEnded(members[0].job.queue, ended - transaction.began, committed=True)
        )

    def _enter(self, members: list[Member], started: float, cancel: Any) -> tuple[AsyncBatchContext, Running]:
        first = members[0]
        limit_s = first.prepared.timeout_s
        deadline = started + limit_s if limit_s else NEVER
        context = AsyncBatchContext(
            [(m.job, m.prepared) for m in members],
            deadline if limit_s else None,
            lambda: self._begin(first.job.claim.id, limit_s),
            self._state.progress,
        )
        running = Running(
            first.job, started, deadline, context, cancel=cancel, others=tuple(m.job for m in members[1:])
        )
        for member in members:
            self._state.running[member.job.id] = running
        return context, running


async def _close(context: AsyncBatchContext) -> bool:
    transaction = context.opened()
    if transaction is None:
        return False
    lost = transaction.lost
    await transaction.abort()
    return lost
