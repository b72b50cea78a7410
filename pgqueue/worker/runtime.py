"""A worker process: puts the rooms together, watches over running handlers, and stops in order.

Called by the CLI and by applications (`app.worker(…)`). The order of start and stop is the file's point: the
heart registers before the first claim, and leaves after the last settlement.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pgqueue.core.decide import Kind
from pgqueue.core.events import Events, Warned, WorkerChanged
from pgqueue.core.redact import Redactor
from pgqueue.core.registry import Registry
from pgqueue.errors import ConfigurationError
from pgqueue.settings import Settings
from pgqueue.storage.connect import UPKEEP, connect
from pgqueue.storage.handlers import async_job_pool, job_pool
from pgqueue.storage.job_transaction import warm_sessions
from pgqueue.storage.link import Link
from pgqueue.storage.migrate import require_head
from pgqueue.storage.statements import statement
from pgqueue.upkeep.duties import Upkeep
from pgqueue.worker.async_executor import AsyncExecutor
from pgqueue.worker.claimer import Claimer, SuspectMode
from pgqueue.worker.duties import worker_upkeep
from pgqueue.worker.executor import SyncExecutor, interrupted, timed_out
from pgqueue.worker.heart import Heart, HeartHooks
from pgqueue.worker.listener import Listener
from pgqueue.worker.old_transactions import OldTransactions
from pgqueue.worker.outcome import put_aside
from pgqueue.worker.processes import hearing
from pgqueue.worker.progress import ProgressBook
from pgqueue.worker.settler import Settler
from pgqueue.worker.slots import Pool
from pgqueue.worker.state import NEVER, Running, WorkerState
from pgqueue.worker.steps import StepBook
from pgqueue.worker.suspects import LINGER_S, ORPHAN_LINGER_S, ORPHAN_MAX_S, SuspectProcesses
from pgqueue.worker.vitals import WorkerVitals

TICK_S: Final = 0.05
CONNECTIONS_MAX: Final = 32  # handler connections per process, whatever the number of slots
STUCK_MAX_TIMES: Final = (
    4  # a process with this many times its slots stuck leaves with exit code 1, to be restarted
)


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """Queues that share a number of slots."""

    queues: tuple[str, ...]
    slots: int


class Worker:
    """One worker process. `run()` blocks until it is told to stop, and returns the exit code."""

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        pools: Sequence[PoolPlan],
        *,
        version: str,
        events: Events | None = None,
        drain: bool = False,
        app_reference: str | None = None,
        suspects_only: bool = False,
    ) -> None:
        if not pools:
            raise ConfigurationError("worker: no queue to serve; name one with -q")
        self._settings = settings
        self._drain = drain
        self._suspects_only = suspects_only
        self._version = version
        self._app_reference = app_reference
        queues = tuple(dict.fromkeys(queue for pool in pools for queue in pool.queues))
        self._pools = tuple(
            Pool(pool.queues, pool.slots, buffer_s=settings.buffer_s, batch_max=settings.claim_batch_max)
            for pool in pools
        )
        self.state = WorkerState(
            registry,
            settings,
            events or Events(),
            queues,
            sum(pool.slots for pool in pools),
            kind="suspect" if suspects_only else "worker",
            redactor=Redactor(settings.redact),
        )
        self.vitals = WorkerVitals(self.state, self._pools)
        self._stops = 0
        self._linger_s = LINGER_S
        self._leave_at = NEVER
        self._suspects: SuspectProcesses | None = None
        self._done = threading.Event()
        self._executors: list[SyncExecutor] = []
        self._async: AsyncExecutor | None = None

    @property
    def events(self) -> Events:
        """Where this worker says what happens in it."""
        return self.state.events

    def stop(self) -> None:
        """Ask it to stop: no new claims, unstarted ones are given back, running handlers get the grace period."""
        self.state.draining.set()
        self.state.wake.set()
        self._done.set()

    def orphaned(self) -> None:
        """The parent of this process for suspects was killed: go on while there are some, but not for long."""
        self._linger_s = ORPHAN_LINGER_S
        self._leave_at = time.monotonic() + ORPHAN_MAX_S

    def run(self, *, signals: bool = False) -> int:
        """Work until `stop()`, a signal, or (with `drain`) until nothing is left. Returns the exit code.

        Raises SchemaMismatch or DatabaseUnreachable before it has claimed anything.
        """
        dsn = self._settings.database_url
        with contextlib.closing(
            connect(dsn, UPKEEP, label=self.state.label, connect_timeout_s=self._settings.connect_timeout_s)
        ) as conn:
            require_head(conn)
        with hearing(self.on_signal) if signals else contextlib.nullcontext():
            return self._serve(dsn, self._settings.direct_database_url or dsn)

    def _serve(self, dsn: str, direct_dsn: str) -> int:
        state = self.state
        heart = Heart(
            state,
            direct_dsn,
            HeartHooks(self._cancel, self._pause, self._lose_all, self.stop),
            version=self._version,
        )
        heart.start()
        self.vitals.heart = heart
        settler = Settler(state, dsn)
        connections = job_pool(
            dsn,
            label=state.label,
            size_max=min(state.slots, CONNECTIONS_MAX),
            connect_timeout_s=self._settings.connect_timeout_s,
        )
        self._settler = settler
        steps, progress = StepBook(state, dsn), ProgressBook(state, dsn)
        state.steps, state.progress = steps, progress
        listener = (
            None
            if heart.pooled or not self._settings.wakeups or self._suspects_only
            else Listener(state, direct_dsn)
        )
        mode: SuspectMode = "only" if self._suspects_only else "never" if self._app_reference else "inline"
        claimer = Claimer(state, self._pools, settler, dsn, can_sleep=listener is not None, suspects=mode)
        self._start_executors(settler, connections, dsn)
        settler.start()
        upkeep, self._suspects = self._upkeep(dsn)
        if not self._suspects_only:
            for one in upkeep:
                one.start()
        if listener is not None:
            listener.start()
        claimer.start()
        self.vitals.claimer = claimer
        try:
            code = self._watch(claimer, dsn)
        finally:
            self._shut_down(claimer, settler, upkeep, listener)
            connections.close(timeout=1)
            heart.stop()
            state.ending.set()
            steps.close()
            progress.close()
            state.events.emit(WorkerChanged(state.worker_id, "stopped"))
        return code

    def _start_executors(self, settler: Settler, connections: Any, dsn: str) -> None:
        warm_sessions()
        for pool in self._pools:
            executor = SyncExecutor(self.state, pool, settler, connections)
            executor.start(pool.slots)
            self._executors.append(executor)
        if any(task.is_async for task in self.state.registry.tasks.values()):
            self._async = AsyncExecutor(
                self.state,
                self._pools,
                settler,
                async_job_pool(
                    dsn,
                    label=self.state.label,
                    size_max=min(self.state.slots, CONNECTIONS_MAX),
                    connect_timeout_s=self._settings.connect_timeout_s,
                ),
            )
            self._async.start()
            self.vitals.loop = self._async

    def _upkeep(self, dsn: str) -> tuple[tuple[Upkeep, ...], SuspectProcesses | None]:
        state, settings = self.state, self._settings
        processes = None
        if self._app_reference and not self._suspects_only:
            processes = SuspectProcesses(
                state,
                self._app_reference,
                most=settings.suspect_processes_max,
                environment={"PGQUEUE_DATABASE_URL": settings.database_url},
            )
        return worker_upkeep(state, dsn, processes), processes

    def _watch(self, claimer: Claimer, dsn: str) -> int:
        """The main thread's loop: ends handlers whose time is up, and finds the moment to leave."""
        state = self.state
        link = Link(dsn, UPKEEP, label=state.label, stop=state.draining) if self._drain else None
        idle_since: float | None = None
        old_transactions = OldTransactions(state)
        while not self._done.wait(TICK_S):
            old_transactions.look()
            now = time.monotonic()
            for running in dict.fromkeys(r for r in list(state.running.values()) if r.deadline < now):
                self._time_out(running)
            if len(state.stuck) >= STUCK_MAX_TIMES * state.slots:
                state.events.emit(
                    Warned(
                        "stuck",
                        f"{len(state.stuck)} handlers outlived their timeouts; the process leaves to be restarted",
                    )
                )
                return 1
            if self._suspects_only:
                idle = claimer.empty_streak > 0 and not state.running and not self._settler.pending()
                idle_since = (idle_since or now) if idle else None
                if now > self._leave_at or (idle_since is not None and now - idle_since > self._linger_s):
                    return 0
            elif link is not None and claimer.empty_streak > 1 and self._is_idle():
                drained = link.try_once(
                    lambda conn: conn.execute(statement("drained"), {"queues": list(state.queues)}).fetchone()
                )
                if drained is not None and drained[0]:
                    link.close()
                    return 0
        return 0

    def _is_idle(self) -> bool:
        return (
            not self.state.running
            and not self._settler.pending()
            and not any(p.running or p.waiting() for p in self._pools)
        )

    def _shut_down(
        self,
        claimer: Claimer,
        settler: Settler,
        upkeep: tuple[Upkeep, ...],
        listener: Listener | None,
    ) -> None:
        state = self.state
        state.draining.set()
        state.wake.set()
        state.events.emit(WorkerChanged(state.worker_id, "draining", note=f"{len(state.running)} running"))
        claimer.join(5)
        for pool in self._pools:
            for job in pool.drop():
                settler.put_other(put_aside(job, Kind.RELEASED, "released"))
        self._wait_for_handlers(settler)
        for pool in self._pools:
            pool.close()
        if not self._suspects_only:
            for one in upkeep:
                one.stop()
        if self._suspects is not None:
            self._suspects.stop()
        settler.close()
        if self._async is not None:
            self._async.stop()
        if listener is not None:
            listener.stop()

    def _wait_for_handlers(self, settler: Settler) -> None:
        """Running handlers get the grace period; then their jobs are given back."""
        until = time.monotonic() + self._settings.grace_s
        while any(pool.running for pool in self._pools) and time.monotonic() < until and self._stops < 2:
            time.sleep(TICK_S)
        for running in dict.fromkeys(self.state.running.values()):
            if self._end(running, "shutdown"):
                for job in (running.job, *running.others):
                    settler.put_other(interrupted(running, job))

    def _time_out(self, running: Running) -> None:
        ended = [timed_out(self.state, running, job) for job in (running.job, *running.others)]
        if running.cancel is None:
            self.state.stuck.add(running.thread)
        if not self._end(running, "timeout"):
            self.state.stuck.discard(running.thread)
            return
        for one in ended:
            self._settler.put_other(one)
        if running.cancel is None:
            for pool, executor in zip(self._pools, self._executors, strict=True):
                if running.job.queue in pool.queues:
                    executor.replace_stuck()
                    return

    def _end(self, running: Running, reason: str) -> bool:
        """Take the job from its handler: it may go on, but it can settle nothing any more.

        False if the handler returned at this very moment: then nothing is taken from it.
        """
        if not self.state.forget(running, by="the monitor"):
            return False
        running.deadline = NEVER
        running.context.ask_to_stop(reason)
        for job in (running.job, *running.others):
            job.done = True
        if running.cancel is not None and self._async is not None:
            self._async.cancel(running)
        return True

    def _cancel(self, job_id: int, claim_id: str) -> None:
        running = self.state.running.get(job_id)
        if running is None or running.job.claim.id != claim_id:
            for pool in self._pools:
                for job in pool.drop(lambda job: job.id == job_id and job.claim.id == claim_id):
                    self._settler.put_other(put_aside(job, Kind.CANCELLED, "cancel_requested"))
            return
        if running.cancel_reason is None:
            running.cancel_reason = "cancelled"
            running.context.ask_to_stop("cancelled")
            if running.cancel is not None and self._async is not None:
                self._async.cancel(running)

    def _pause(self, paused: frozenset[str]) -> None:
        if paused == self.state.paused:
            return
        self.state.paused = paused
        for pool in self._pools:
            for job in pool.drop(lambda job: job.queue in paused):
                self._settler.put_other(put_aside(job, Kind.RELEASED, "released"))
        self.state.wake.set()

    def _lose_all(self) -> None:
        state = self.state
        for pool in self._pools:
            pool.drop()
        state.claims.lose_all()
        for running in list(state.running.values()):
            running.context.ask_to_stop("claim_lost")
            if running.cancel is not None and self._async is not None:
                self._async.cancel(running)

    def on_signal(self, number: int) -> None:
        """The first signal stops in order, the second at once."""
        self._stops += 1
        if self._stops > 1:
            sys.stderr.write("second signal: stopping now; running jobs will be rescued by other workers\n")
            sys.stderr.flush()
            import os  # noqa: PLC0415 - only on this way out

            if self._suspects is not None:
                self._suspects.kill()
            os._exit(128 + number)
        self.stop()
