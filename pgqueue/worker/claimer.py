"""Takes ready jobs for all pools of the process: one thread, one connection, one statement per batch.

Decides how many (pools), from where (lanes) and when (awake: short waits while work comes; asleep: wake-ups,
with polling as the floor). Hands jobs to the pools, and unknown tasks to the settler, to be held.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Final, Literal

import psycopg

from pgqueue.core.decide import Kind
from pgqueue.core.events import ClaimTaken, Warned
from pgqueue.errors import DatabaseUnreachable
from pgqueue.storage.connect import CLAIM
from pgqueue.storage.faults import Fault, classify, summary_of
from pgqueue.storage.link import Link
from pgqueue.storage.statements import statement
from pgqueue.worker.along import claims_to_note
from pgqueue.worker.claimed import Claim, ClaimedJob
from pgqueue.worker.lanes import Lanes
from pgqueue.worker.outcome import put_aside
from pgqueue.worker.settler import Settler
from pgqueue.worker.slots import Pool
from pgqueue.worker.state import WorkerState

WAIT_FIRST_S: Final = 0.001
BUSY_WAKES_PER_S: Final = 200  # more wake-ups than this cost producers more than polling costs us
QUIET_JOBS_PER_S: Final = (
    150  # below this rate wake-ups are the cheaper way to hear of work, and the quicker one
)
LIE_DOWN_S: Final = (
    0.008  # so long without work between two looks, at a quiet time, and a wake-up is the quicker way
)
NUDGE_S: Final = 0.005
STAND_ASIDE_S: Final = 2.0
STAND_ASIDE_AGAIN_S: Final = 10.0
# More ended runs than this many settlements hold, and no more jobs are claimed: whoever dies takes them all along.
UNSETTLED_BATCHES: Final = 8

SuspectMode = Literal["never", "inline", "only"]


class Claimer:
    """One per worker process."""

    def __init__(
        self,
        state: WorkerState,
        pools: tuple[Pool, ...],
        settler: Settler,
        dsn: str,
        *,
        can_sleep: bool,
        suspects: SuspectMode,
    ) -> None:
        self._state = state
        self._pools = pools
        self._settler = settler
        self._can_sleep = can_sleep
        self._suspects = suspects
        self._lanes = Lanes(
            tuple(pool.queues for pool in pools), sweep_interval_s=state.settings.sweep_interval_s
        )
        self._link = Link(
            dsn,
            CLAIM,
            label=state.label,
            connect_timeout_s=state.settings.connect_timeout_s,
            stop=state.draining,
            report=state.trouble,
        )
        self._audited = frozenset(t.name for t in state.registry.tasks.values() if t.audit_full)
        self._generation = 0
        self._asleep = False
        self._wait_s = WAIT_FIRST_S
        self._was_full = False
        self._answered = False
        self._stood_aside_at = time.monotonic()
        self._no_suspects_until = 0.0
        self._quiet = True
        self._window_at = time.monotonic()
        self._window_jobs = 0
        self._window_wakes = 0
        self.empty_streak = 0
        self.wakeups = {"notify": 0, "local": 0, "poll": 0}
        self.ticked_at: float = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="pgqueue-claim", daemon=True)
        for pool in pools:
            pool.want_more = state.wake.set

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def moved_at(self) -> float:
        """When its thread was last seen at work, or trying to reach the database."""
        return max(self.ticked_at, self._link.tried_at)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end after `state.draining` was set."""
        self._thread.join(timeout_s)
        self._link.close()

    def _work(self) -> None:
        while not self._state.draining.is_set():
            self.ticked_at = time.monotonic()
            try:
                self._round()
            except DatabaseUnreachable:
                return
            except Exception as error:  # noqa: BLE001 - the thread must live; the cause is reported, once per cause
                self._state.events.emit(Warned("claim_failed", f"claim failed: {summary_of(error)}"))
                self._state.draining.wait(1.0)

    def _round(self) -> None:
        if self._suspects != "never" and self._stands_aside():
            return
        wants = [pool.want() for pool in self._pools]
        if self._settler.pending() > UNSETTLED_BATCHES * self._state.settings.settle_batch_max:
            self._pause(NUDGE_S)
            return
        if not any(wants) or not self._state.may_start():
            self._pause(NUDGE_S if any(pool.waiting() for pool in self._pools) else 0.1)
            return
        jobs = self._claim(wants)
        self._was_full = len(jobs) >= sum(wants)
        self._count(len(jobs))
        if jobs:
            self._deliver(jobs)
            self.empty_streak = 0
            self._wait_s = WAIT_FIRST_S
            if self._was_full:
                return
        else:
            self.empty_streak += 1
        self._rest(found=bool(jobs))

    def _stands_aside(self) -> bool:
        """Suspects are run alone in their process: nothing else is claimed until they are done. True if that is now."""
        state = self._state
        if self._suspects == "inline" and (not state.suspects or time.monotonic() < self._no_suspects_until):
            return False
        # Until it is settled, too: the next one may kill the process.
        if any(pool.running or pool.waiting() for pool in self._pools) or self._settler.pending():
            if self._suspects == "inline" and time.monotonic() - self._stood_aside_at > STAND_ASIDE_S:
                self._no_suspects_until = (
                    time.monotonic() + STAND_ASIDE_AGAIN_S
                )  # a long handler: others' work must go on
                return False
            self._pause(NUDGE_S)
            return True
        jobs = self._take(
            lambda conn, claim_id, worker_id: conn.execute(
                statement("claim_suspect"),
                {"queues": list(state.queues), "claim_id": claim_id, "worker_id": worker_id},
            ).fetchall(),
            from_state="held",
        )
        self._stood_aside_at = time.monotonic()
        if jobs:
            self.empty_streak = 0
            self._deliver(jobs)
            return True
        state.suspects = 0
        self.empty_streak += 1
        if self._suspects == "only":
            self._pause(0.2)
            return True
        return False

    def _claim(self, wants: list[int]) -> list[ClaimedJob]:
        state = self._state
        started = time.monotonic()
        mode = self._lanes.choose(started, was_full=self._was_full)
        spent = state.claims.take_spent()

        def read(conn: psycopg.Connection[Any], claim_id: str, worker_id: str) -> list[tuple[Any, ...]]:
            nonlocal mode
            if self._link.generation != self._generation:
                # What a lost connection claimed may be ready again below every floor.
                self._generation = self._link.generation
                self._lanes.forget()
                mode = "sweep"
            pools, queues, priorities, floors = self._lanes.parameters(mode)
            return conn.execute(
                statement("claim_batch"),
                {
                    "pools": pools,
                    "queues": queues,
                    "priorities": priorities,
                    "floors": floors,
                    "wants": wants,
                    "spent": spent,
                    "claim_id": claim_id,
                    "worker_id": worker_id,
                },
            ).fetchall()

        closed = False
        try:
            jobs = self._take(read)
            closed = self._answered
        finally:
            if not closed:
                state.claims.give_spent(spent)
        seconds = time.monotonic() - started
        self._lanes.took(mode, started + seconds, seconds)
        state.events.emit(ClaimTaken(len(jobs), sum(wants), seconds, mode))
        for job in jobs:
            self._lanes.saw(job.queue, job.priority, job.ready_seq)
        return jobs

    def _take(
        self,
        read: Callable[[psycopg.Connection[Any], str, str], list[tuple[Any, ...]]],
        *,
        from_state: str = "ready",
    ) -> list[ClaimedJob]:
        """Run a claim statement under a new fence and note the claim."""
        state = self._state
        claim_id, worker_id = str(uuid.uuid4()), state.worker_id
        self._answered = False

        def take(conn: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
            if not self._audited:
                return read(conn, claim_id, worker_id)
            with conn.transaction():
                taken = read(conn, claim_id, worker_id)
                moves = claims_to_note(taken, from_state, worker_id, self._audited)
                if moves is not None:
                    conn.execute(statement("note_moves"), {"rows": moves})
            return taken

        try:
            rows = self._link.run(take, repeat=False)
        except (psycopg.Error, OSError) as error:
            if classify(error, broken=True) is Fault.BUG:
                raise
            # It may have been committed, and nobody knows its jobs: the heart finds the claim and gives it back.
            return []
        self._answered = True
        if not rows:
            return []
        claim = Claim(claim_id, worker_id, (row[0] for row in rows))
        state.claims.add(claim)
        tasks = state.registry.tasks
        jobs = [ClaimedJob(row, claim, tasks.get(row[2])) for row in rows]
        jobs.sort(key=_place)  # RETURNING promises no order
        state.claimed += len(jobs)
        return jobs

    def _deliver(self, jobs: list[ClaimedJob]) -> None:
        known = [job for job in jobs if job.task is not None]
        if len(known) < len(jobs):
            for job in jobs:
                if job.task is None:
                    self._settler.put_other(put_aside(job, Kind.HELD, "unknown_task"))
        if len(self._pools) == 1:
            self._pools[0].add(known)
            return
        for number, pool in enumerate(self._pools, start=1):
            mine = [job for job in known if job.pool == number]
            if mine:
                pool.add(mine)

    def _count(self, jobs: int) -> None:
        self._window_jobs += jobs
        now = time.monotonic()
        elapsed = now - self._window_at
        if elapsed < 1.0:
            return
        if self._asleep and self._window_wakes / elapsed > BUSY_WAKES_PER_S:
            self._get_up()
        self._quiet = self._window_jobs / elapsed < QUIET_JOBS_PER_S
        self._window_at, self._window_jobs, self._window_wakes = now, 0, 0

    def _rest(self, *, found: bool) -> None:
        settings = self._state.settings
        if self._asleep:
            # Many workers woken by one notice would all come at once; a poll's moment is spread.
            self._pause(settings.poll_max_s * random.uniform(0.8, 1.0))  # noqa: S311 - jitter
            return
        if not found:
            self._wait_s = min(self._wait_s * 2, settings.poll_min_s)
            if (
                self._wait_s >= min(LIE_DOWN_S, settings.poll_min_s)
                and self._quiet
                and self._can_sleep
                and not self._link.pooled
            ):
                self._lie_down()
                return
        self._pause(self._wait_s)

    def _pause(self, seconds: float) -> None:
        state = self._state
        if state.wake.wait(seconds):
            state.wake.clear()
            self._window_wakes += 1
            source = "notify" if state.noticed else "local"
            state.noticed = False
        else:
            source = "poll"
        self.wakeups[source] += 1
        for pool in self._pools:
            pool.nudge()

    def _lie_down(self) -> None:
        queues = list(self._state.queues)
        self._link.run(
            lambda conn: conn.execute(
                statement("fall_asleep"), {"queues": queues, "id": self._state.worker_id}
            )
        )
        self._asleep = True  # and at once round again: a job committed meanwhile sent no notice

    def _get_up(self) -> None:
        self._link.run(lambda conn: conn.execute(statement("stay_awake"), {"id": self._state.worker_id}))
        self._asleep = False
        self._wait_s = WAIT_FIRST_S


def _place(job: ClaimedJob) -> tuple[int, int]:
    return job.priority, job.ready_seq
