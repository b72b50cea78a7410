"""Jobs that share a transaction: a batch (one call for many jobs) and a group (a call and a savepoint each).

The sync executor hands its slot's jobs over here. Both fall back the same way: what cannot be committed together
is tried in smaller company, down to the one job that is at fault.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import psycopg

from pgqueue.core.events import TransactionEnded
from pgqueue.core.payload import encode_result
from pgqueue.errors import InvalidArguments, TransactionMisuse
from pgqueue.storage.faults import Fault, classify
from pgqueue.storage.job_transaction import JobTransaction
from pgqueue.worker.along import along
from pgqueue.worker.claimed import ClaimedJob
from pgqueue.worker.context import BatchContext, JobContext
from pgqueue.worker.executor_errors import handler_fault, leave_if_forked, refuse_hidden_error
from pgqueue.worker.outcome import Prepared, ended_badly, not_to_start, prepare
from pgqueue.worker.settler import Settler, array_parameters
from pgqueue.worker.spans import spanning
from pgqueue.worker.state import NEVER, Running, WorkerState

LINGER_S: Final = 0.02  # the rest of a batch is usually one claim away


@dataclass(slots=True)
class Member:
    """One job of a batch or group that is fit to run."""

    job: ClaimedJob
    prepared: Prepared
    result: str | None = None
    warning: str | None = None
    run_s: float = 0.0


def fit_members(
    state: WorkerState, settler: Settler, jobs: Sequence[ClaimedJob], started: float
) -> list[Member]:
    """Settle what may not or cannot run, and return the rest."""
    members: list[Member] = []
    for job in jobs:
        if job.claim.lost:
            continue  # not ours to run any more; the rescue has its claim
        if (ended := not_to_start(state, job)) is not None:
            settler.put_other(ended)
        else:
            try:
                members.append(
                    Member(job, prepare(state, job, batch=job.task is not None and job.task.batch > 0))
                )
            except (InvalidArguments, ValueError) as error:
                settler.put_other(ended_badly(state, job, error, None, started))
    return members


def by_key(members: list[Member], key: str | None) -> list[list[Member]]:
    """Members of a batch, one list per value of the argument `key`."""
    if key is None:
        return [members] if members else []
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(repr(member.prepared.args.get(key)), []).append(member)
    return list(groups.values())


class Together:
    """What sync and async runners share: how a member ends badly, and how a run is no longer watched."""

    _state: WorkerState
    _settler: Settler

    def __init__(self, state: WorkerState, settler: Settler) -> None:
        self._state = state
        self._settler = settler
        self._pid = os.getpid()

    def _leave(self, running: Running) -> bool:
        """The handler is no longer at work for this run; False if the monitor has ended its jobs already."""
        return self._state.forget(running)

    def _fail_one(
        self,
        member: Member,
        error: BaseException,
        started: float,
        *,
        lost: bool = False,
        cancel_reason: str | None = None,
    ) -> None:
        verdict = handler_fault(error, lost=lost)
        if verdict == "claim_lost":
            self._settler.note_lost(member.job)
            return
        if isinstance(verdict, TransactionMisuse):
            error = verdict
        ended = ended_badly(
            self._state, member.job, error, member.prepared, started, cancel_reason=cancel_reason
        )
        if verdict == "unknown":
            self._settler.put_unknown(ended)
        else:
            self._settler.put_other(ended)


class GroupRunner(Together):
    """Runs batches and groups in the calling executor thread."""

    def __init__(
        self, state: WorkerState, settler: Settler, begin: Callable[[str, float | None], JobTransaction]
    ) -> None:
        super().__init__(state, settler)
        self._begin = begin
        self._slot = threading.local()

    def run(self, jobs: Sequence[ClaimedJob], started: float) -> bool:
        """Run jobs of one task that share the slot; False if a run was given up as stuck meanwhile."""
        self._slot.kept = True
        task = jobs[0].task
        assert task is not None  # noqa: S101 - unknown tasks were put aside by the claimer
        members = fit_members(self._state, self._settler, jobs, started)
        if task.batch:
            for group in by_key(members, task.batch_key):
                for at in range(0, len(group), task.batch):
                    self._batch(group[at : at + task.batch])
        elif members:
            self._group(members)
        kept: bool = self._slot.kept
        return kept

    def _leave(self, running: Running) -> bool:
        left = super()._leave(running)
        self._slot.kept = self._slot.kept and left
        return left

    def _batch(self, members: list[Member]) -> None:
        started = time.monotonic()
        context, running = self._enter(members, started)
        try:
            task = members[0].job.task
            assert task is not None  # noqa: S101
            jobs = context.jobs
            with spanning(self._state, [(m.job, m.prepared) for m in members], many=True):
                if task.signature.takes_context:
                    task.function(context, jobs)
                else:
                    task.function(jobs)
            leave_if_forked(self._pid)
            good = [m for m in members if m.job.id not in context.failures]
            self._commit(context, good, started)
            for member in members:
                failure = context.failures.get(member.job.id)
                if failure is not None:
                    self._fail_one(member, failure, started)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its jobs' affair
            self._halve(members, context, running, error, started)
        finally:
            self._leave(running)

    def _halve(
        self,
        members: list[Member],
        context: BatchContext,
        running: Running,
        error: BaseException,
        started: float,
    ) -> None:
        """One of them is at fault: try each half by itself. Not when the fault is the connection's."""
        leave_if_forked(self._pid)
        lost = _close(context)
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
        self._batch(members[:middle])
        self._batch(members[middle:])

    def _group(self, members: list[Member]) -> None:
        started = time.monotonic()
        shared, running = self._enter(members, started)
        good: list[Member] = []
        failed: list[tuple[Member, BaseException]] = []
        ran: set[int] = set()
        try:
            for member in members:
                if running.job.done:
                    break
                began = time.monotonic()
                own = self._context_of(member, shared)
                ran.add(member.job.id)
                try:
                    member.result, member.warning = self._call(member, own)
                    if (transaction := own.opened()) is not None:
                        transaction.flush()
                        refuse_hidden_error(fails=transaction.fails())
                    member.run_s = time.monotonic() - began
                    good.append(member)
                except Exception as error:
                    leave_if_forked(self._pid)
                    transaction = own.opened()
                    if transaction is not None and (transaction.lost or not transaction.undo_step()):
                        raise
                    failed.append((member, error))
            if not running.job.done:
                self._commit(shared, good, started)
        except BaseException as error:  # noqa: BLE001
            leave_if_forked(self._pid)
            lost = _close(shared)
            if self._leave(running):  # now, since each that runs again is watched by itself
                met_by = {m.job.id: e for m, e in failed}
                self._singly(members, met_by, error, started, unknown=ran if lost else set())
            return
        finally:
            self._leave(running)
        for member, met in failed:
            self._fail_one(member, met, started)

    def _context_of(self, member: Member, shared: BatchContext) -> JobContext:
        begin = shared.member_transaction
        if (transaction := shared.opened()) is not None:
            transaction.step()  # its answer comes while the call is prepared
            begin = partial(_same, transaction)
        prepared = member.prepared
        return JobContext(
            member.job,
            prepared.args,
            prepared.extras,
            prepared.max_attempts,
            shared.deadline,
            begin,
            self._state.steps,
            self._state.progress,
        )

    def _singly(
        self,
        members: list[Member],
        failed: dict[int, BaseException],
        error: BaseException,
        started: float,
        *,
        unknown: set[int],
    ) -> None:
        """The transaction they shared is gone: each runs in one of its own; alone, the error is its own.

        `unknown`: those that ran when the connection went with it. It may have been committed: they are read back.
        """
        for member in members:
            if member.job.id in failed:
                self._fail_one(member, failed[member.job.id], started)
            elif len(members) == 1 or member.job.id in unknown:
                self._fail_one(member, error, started, lost=member.job.id in unknown)
            else:
                self._group([member])

    def _call(self, member: Member, context: JobContext) -> tuple[str | None, str | None]:
        task = member.job.task
        assert task is not None  # noqa: S101
        args = member.prepared.args
        with spanning(self._state, [(member.job, member.prepared)]):
            result: Any = (
                task.function(context, **args) if task.signature.takes_context else task.function(**args)
            )
        leave_if_forked(self._pid)
        return (
            (None, None)
            if result is None
            else encode_result(result, bytes_max=self._state.settings.result_bytes_max)
        )

    def _commit(self, context: BatchContext, members: list[Member], started: float) -> None:
        now = time.monotonic()
        transaction = context.opened()
        rows = [(m.job, started - m.job.claim.received, m.run_s or now - started, m.result) for m in members]
        if transaction is None:
            for member, (job, buffered_s, run_s, result) in zip(members, rows, strict=True):
                self._settler.put_succeeded(job, member.prepared, buffered_s, run_s, result, member.warning)
            return
        if not members:
            transaction.abort()
            return
        returned = time.monotonic()
        transaction.settle(
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

    def _enter(self, members: list[Member], started: float) -> tuple[BatchContext, Running]:
        first = members[0]
        limit_s = first.prepared.timeout_s
        deadline = started + limit_s if limit_s else NEVER
        context = BatchContext(
            [(m.job, m.prepared) for m in members],
            deadline if limit_s else None,
            lambda: self._begin(first.job.claim.id, limit_s),
            self._state.progress,
        )
        running = Running(first.job, started, deadline, context, others=tuple(m.job for m in members[1:]))
        for member in members:
            self._state.running[member.job.id] = running
        return context, running


def _same(transaction: JobTransaction) -> JobTransaction:
    return transaction


def _close(context: BatchContext) -> bool:
    """Roll the shared transaction back; True if its connection was lost."""
    transaction = context.opened()
    if transaction is None:
        return False
    lost = transaction.lost
    transaction.abort()
    return lost
