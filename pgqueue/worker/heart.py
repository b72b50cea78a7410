"""Signs of life: a thread and a connection of their own, so that no handler, claim or settlement delays a beat.

Registers the worker, beats, holds its advisory lock, hears of cancels, pauses and drains, and gives claims
back that nobody here knows. If others declared this worker dead, its claims are lost and it registers anew.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
import psycopg

from pgqueue.core.events import Warned, WorkerChanged
from pgqueue.storage.connect import HEART
from pgqueue.storage.faults import summary_of
from pgqueue.storage.link import Link
from pgqueue.storage.statements import statement
from pgqueue.worker.state import WorkerState

LOOK_S: Final = 0.5
LATE_TIMES: Final = 2  # a beat this many times its interval late is reported


@dataclass(frozen=True, slots=True)
class HeartHooks:
    """What the heart asks of other rooms."""

    cancel: Callable[[int, str], None]
    paused: Callable[[frozenset[str]], None]
    lost: Callable[[], None]
    drain: Callable[[], None]


class Heart:
    """One per worker process."""

    def __init__(
        self, state: WorkerState, dsn: str, hooks: HeartHooks, *, version: str, lock: bool = True
    ) -> None:
        self._state = state
        self._hooks = hooks
        self._version = version
        self._wants_lock = lock
        settings = state.settings
        self._link = Link(
            dsn,
            HEART,
            label=state.label,
            connect_timeout_s=min(settings.connect_timeout_s, settings.heartbeat_s),
            deadline_s=settings.heartbeat_s,
            stop=state.ending,
            report=state.trouble,
        )
        self._lock_key = _new_lock_key()
        self._locked_generation = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="pgqueue-heart", daemon=True)
        self._last_beat = time.monotonic()

    @property
    def pooled(self) -> bool:
        """Whether a transaction pooler stands between: then there is no lock and no wake-up."""
        return self._link.pooled

    @property
    def beat_at(self) -> float:
        """When the last beat was answered, by the process's own clock."""
        return self._last_beat

    def start(self) -> None:
        """Register the worker (before its first claim) and start beating."""
        self._register()
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye: the row says stopped, the lock is free."""
        self._stop.set()
        self._thread.join(self._state.settings.heartbeat_s * 2)
        state = self._state
        counters = {
            "id": state.worker_id,
            "claimed": state.claimed,
            "settled": state.settled,
            "failed": state.failed,
            "claims_lost": state.claims_lost,
        }

        def leave(conn: psycopg.Connection[Any]) -> None:
            conn.execute(statement("stay_awake"), {"id": state.worker_id})
            conn.execute(statement("close_claims"), {"spent": state.claims.take_spent()})
            conn.execute(statement("end_worker"), counters)

        self._link.try_once(leave)
        self._link.close()

    def _register(self) -> None:
        state, settings = self._state, self._state.settings
        tasks = [
            {
                "name": t.name,
                "queue": t.queue,
                "priority": t.priority,
                "max_attempts": state.registry.policy(t.name, t.queue).max_attempts,
                "batch_window_s": t.batch_window_s,
                "audit_full": t.audit_full,
                "batch_key": t.batch_key,
            }
            for t in state.registry.tasks.values()
        ]

        def write(conn: psycopg.Connection[Any]) -> float:
            sent = time.monotonic()
            lock_key = None if self._link.pooled or not self._wants_lock else self._lock_key
            if lock_key is not None:
                conn.execute(b"SELECT pg_catalog.pg_try_advisory_lock(%s)", (lock_key,))
                self._locked_generation = self._link.generation
            conn.execute(
                statement("register_queues"),
                {
                    "queues": list(state.queues),
                    "defaults": orjson.dumps(settings.queue_defaults()).decode(),
                },
            )
            if tasks:
                conn.execute(statement("register_tasks"), {"tasks": orjson.dumps(tasks).decode()})
            conn.execute(
                statement("register_worker"),
                {
                    "id": state.worker_id,
                    "lock_key": lock_key,
                    "lease_s": settings.lease_s,
                    "pid": os.getpid(),
                    "host": platform.node(),
                    "version": self._version,
                    "kind": state.kind,
                    "queues": list(state.queues),
                    "slots": state.slots,
                },
            )
            return sent

        sent = self._link.run(write)
        state.lease_until = sent + settings.lease_s
        self._last_beat = time.monotonic()
        if self._link.pooled:
            state.events.emit(
                Warned(
                    "pooled",
                    "the DSN leads through a transaction pooler: no wake-ups and no liveness lock; polling and the lease do their work",
                )
            )
        state.events.emit(WorkerChanged(state.worker_id, "live", state.queues, state.slots))

    def _work(self) -> None:
        interval = self._state.settings.heartbeat_s
        due = time.monotonic() + interval
        while not self._stop.wait(min(LOOK_S, max(0.0, due - time.monotonic()))):
            # A free lock counts as a dead worker after two seconds: a cut connection must not wait for its beat.
            if time.monotonic() < due and not self._link.is_cut():
                continue
            due = time.monotonic() + interval
            try:
                self._round(interval)
            except Exception as error:  # noqa: BLE001 - a heart that dies of one bad beat kills the worker
                self._state.events.emit(Warned("beat_failed", f"heartbeat failed: {summary_of(error)}"))

    def _round(self, interval: float) -> None:
        late = time.monotonic() - self._last_beat - interval
        if late > LATE_TIMES * interval:
            self._state.beats_late += 1
            self._state.events.emit(
                Warned(
                    "heartbeat_late",
                    f"heartbeat came {late:.1f} s late: something holds the interpreter",
                    {"late_s": late},
                )
            )
        sent = time.monotonic()
        answer = self._link.try_once(self._beat)
        if answer is None:
            return  # a failed beat is not a lost lease; the lease itself runs on
        self._last_beat = time.monotonic()
        if answer == "dead":
            self._hooks.lost()
            self._state.events.emit(
                WorkerChanged(
                    self._state.worker_id, "lost", note="declared dead by another worker; its claims are lost"
                )
            )
            self._start_over()
            return
        self._state.lease_until = sent + self._state.settings.lease_s
        if answer == "drain":
            self._hooks.drain()

    def _beat(self, conn: psycopg.Connection[Any]) -> str:
        state = self._state
        if self._link.generation != self._locked_generation and not self._link.pooled and self._wants_lock:
            row = conn.execute(b"SELECT pg_catalog.pg_try_advisory_lock(%s)", (self._lock_key,)).fetchone()
            if row is not None and row[0]:
                self._locked_generation = self._link.generation
        # Before the beat: who waits for a pause to take effect counts beats.
        self._hooks.paused(frozenset(name for (name,) in conn.execute(statement("paused_queues")).fetchall()))
        row = conn.execute(
            statement("beat"),
            {
                "id": state.worker_id,
                "claimed": state.claimed,
                "settled": state.settled,
                "failed": state.failed,
                "busy": len(state.running),
                "status": "draining" if state.draining.is_set() else "live",
                "port": state.port,
                "claims_lost": state.claims_lost,
                "beats_late": state.beats_late,
            },
        ).fetchone()
        if row is None:
            return "dead"
        for job_id, claim_id in conn.execute(
            statement("cancel_requests"), {"id": state.worker_id}
        ).fetchall():
            self._hooks.cancel(job_id, str(claim_id))
        self._give_back_strays(conn)
        state.objectives_s = dict(
            conn.execute(statement("queue_objectives"), {"queues": list(state.queues)}).fetchall()
        )
        return "drain" if row[0] else "live"

    def _give_back_strays(self, conn: psycopg.Connection[Any]) -> None:
        """A claim whose answer was lost is in the database and nowhere else: without this its jobs would run for ever."""
        state = self._state
        stored = {
            str(claim_id)
            for (claim_id,) in conn.execute(
                statement("own_claims"), {"worker_id": state.worker_id}
            ).fetchall()
        }
        for claim_id in stored - state.claims.known():
            released = conn.execute(
                statement("release_claim"), {"claim_id": claim_id, "actor": state.actor}
            ).fetchall()
            if released:
                state.events.emit(
                    Warned(
                        "claim_returned",
                        f"a claim of {len(released)} jobs whose answer was lost was given back",
                        {"jobs": len(released)},
                    )
                )
                state.wake.set()

    def _start_over(self) -> None:
        state = self._state
        state.worker_id = str(uuid.uuid4())
        self._lock_key = _new_lock_key()
        self._link.close()  # and with it the old lock
        self._register()


def _new_lock_key() -> int:
    return int.from_bytes(os.urandom(8), "big", signed=True)
