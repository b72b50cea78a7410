"""Queues and the processes that serve them: `app.queues`, `pgqueue queues|workers|stats|health`.

Deeds go through the SQL functions, which write their audit rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Unpack

import orjson

from pgqueue.control.desk import Desk
from pgqueue.control.limits import checked_limit
from pgqueue.control.rows import Fleet, QueueHealth, WorkerRow
from pgqueue.core.durations import check_moment
from pgqueue.core.names import check_queue
from pgqueue.core.objectives import ObjectiveOptions, Objectives
from pgqueue.errors import ConflictError, InvalidTime, NotFoundError
from pgqueue.storage.revisions import require_head
from pgqueue.storage.statements import statement

PAUSE_STEP_S: Final = 0.1
DRAIN_STEP_S: Final = 0.5
WAIT_MAX_S: Final = 20.0
BEATS_PROVING: Final = 3  # the one that stood there, and two more


class Queues:
    """Questions and deeds about queues.

    All methods raise DatabaseUnreachable; deeds raise InvalidOption where the environment wants a reason.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def list(self, queue: str | None = None) -> list[QueueHealth]:
        """Every queue, also those that no worker ever served: what is due, how late, who works on it."""
        return self._desk.rows(QueueHealth, "queue_health", {"queue": queue})

    def get(self, queue: str) -> QueueHealth:
        """One queue. Raises NotFoundError."""
        rows = self.list(check_queue(queue))
        if not rows:
            raise NotFoundError(f"queue {queue}: not known; `pgqueue queues list` shows the known ones")
        return rows[0]

    def set(self, queue: str, *, reason: str | None = None, **attributes: Unpack[ObjectiveOptions]) -> str:
        """Set what is promised of a queue and whose it is; returns `created`, `changed` or `same`.

        Attributes as ObjectiveOptions says: `set("critical", sla="5s", tier="critical")`. Raises InvalidOption,
        InvalidTime.
        """
        self._desk.need_reason(reason)
        text = orjson.dumps(Objectives.checked(**attributes).given).decode()
        deed = {"queue": check_queue(queue), "attributes": text}
        return str(self._desk.value("set_queue", {**deed, **self._who(reason)}))

    def pause(
        self,
        queue: str,
        *,
        reason: str | None = None,
        for_s: float | None = None,
        until: datetime | None = None,
        wait_s: float = WAIT_MAX_S,
    ) -> None:
        """Pause a queue. When this returns, no job of it starts any more: every worker has heard of it or lost its lease.

        for_s, until: the pause ends by itself after so many seconds, or at that moment by the database's clock.
        wait_s: how long to wait for the workers, 0 = not at all. Raises ConflictError if one has not heard by then;
        the pause stands all the same.
        """
        if until is not None:
            if for_s is not None:
                raise InvalidTime("until", "given together with a duration; give one of them")
            check_moment(until, field="until")
        self._desk.need_reason(reason)
        deed = {"queue": check_queue(queue), "for_s": for_s, "until": until}
        self._desk.value("pause_queue", {**deed, **self._who(reason)})
        if wait_s > 0:
            self._wait_until_heard(queue, wait_s)

    def drain(
        self, queue: str, *, timeout_s: float, told: Callable[[QueueHealth], None] | None = None
    ) -> bool:
        """Wait until a queue holds nothing that is ready, runs or waits for a retry; False if it still does then.

        Deferred jobs are not waited for. `told` hears how far it is. Raises NotFoundError, and ConflictError while
        the queue is paused or nobody serves it, since it would never be empty.
        """
        until = time.monotonic() + timeout_s
        while True:
            row = self.get(queue)
            waits = row.paused and row.due > 0
            if not waits and self._desk.value("drained", {"queues": [queue]}):
                return True
            if waits:
                raise ConflictError(
                    f"queue {queue}: paused, so it does not drain; `pgqueue queues resume {queue}`"
                )
            if not row.workers_live:
                raise ConflictError(
                    f"queue {queue}: no worker serves it, so it does not drain; start one with -q {queue}"
                )
            if time.monotonic() > until:
                return False
            if told is not None:
                told(row)
            time.sleep(DRAIN_STEP_S)

    def resume(self, queue: str, *, reason: str | None = None) -> bool:
        """Lift a pause; False if the queue was not paused. Raises NotFoundError."""
        self._desk.need_reason(reason)
        lifted = self._desk.value("resume_queue", {"queue": check_queue(queue), **self._who(reason)})
        if not lifted and not self._desk.value("queue_exists", {"queue": queue}):
            raise NotFoundError(f"queue {queue}: not known; `pgqueue queues list` shows the known ones")
        return bool(lifted)

    def workers(self, *, ended: bool = False, limit: int = 200) -> Sequence[WorkerRow]:
        """Worker processes, the living first; `ended`: also those that stopped or died lately."""
        return self._desk.rows(WorkerRow, "list_workers", {"ended": ended, "limit": checked_limit(limit)})

    def drain_worker(self, worker: str, *, reason: str | None = None) -> None:
        """Ask a worker to take nothing new, finish what runs and leave; `worker`: its id, or the first 8 characters.

        Raises NotFoundError; ConflictError if it has left already, or more than one id begins so.
        """
        self._desk.need_reason(reason)
        deed = {"reason": reason, "actor": self._desk.actor, "via": self._desk.via}
        verdict = self._desk.value("drain_worker", {"worker": worker, **deed})
        if verdict == "unknown":
            raise NotFoundError(f"worker {worker}: not known; `pgqueue workers list` shows the living ones")
        if verdict == "ended":
            raise ConflictError(f"worker {worker}: it has left already")
        if verdict == "ambiguous":
            raise ConflictError(f"worker {worker}: more than one begins so; give the whole id")

    def fleet(self) -> Fleet:
        """Totals over all workers."""
        return self._desk.rows(Fleet, "fleet")[0]

    def ailments(self, queue: str | None = None, *, max_lag_s: float) -> Sequence[str]:
        """What is wrong with the queues now, one line each; paused ones are left out.

        Raises SchemaMismatch, and NotFoundError for a `queue` that neither a table nor a job names.
        """
        with self._desk.connection("health") as conn:
            require_head(conn)
        known = self.list(None if queue is None else check_queue(queue))
        if queue is not None and not known:
            raise NotFoundError(f"queue {queue}: not known; `pgqueue queues list` shows the known ones")
        problems = []
        for row in known:
            if row.paused:
                continue
            if row.due and not row.workers_live:
                problems.append(f"queue {row.queue}: {unserved(row)}")
            elif row.lag_s > max_lag_s:
                problems.append(f"queue {row.queue}: the oldest due job waits for {row.lag_s:.1f} s")
        return problems

    def _who(self, reason: str | None) -> Mapping[str, Any]:
        return {"reason": reason, "actor": self._desk.actor, "via": self._desk.via}

    def _wait_until_heard(self, queue: str, wait_s: float) -> None:
        until = time.monotonic() + wait_s
        beats: dict[str, set[object]] = {}
        with self._desk.connection("queues pause") as conn:
            while True:
                deaf = []
                for worker_id, beat_at in conn.execute(
                    statement("pause_witnesses"), {"queue": queue}
                ).fetchall():
                    # A worker reads the pauses, then beats. The round of the second beat seen from here on began
                    # after the first was visible, hence after the pause was committed.
                    seen = beats.setdefault(worker_id, set())
                    seen.add(beat_at)
                    if len(seen) < BEATS_PROVING:
                        deaf.append(worker_id)
                if not deaf:
                    return
                if time.monotonic() > until:
                    raise ConflictError(
                        f"queue {queue}: paused, but worker {deaf[0][:8]} has not confirmed; it may still start jobs it had claimed"
                    )
                time.sleep(PAUSE_STEP_S)


def unserved(row: QueueHealth) -> str:
    """What is wrong with a queue whose due jobs nobody starts."""
    if not row.known:
        return "jobs wait and no worker ever served it"
    return f"{row.due} jobs are due and no worker serves it"
