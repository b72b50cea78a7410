"""Queues and the processes that serve them: `app.queues`, `pgqueue queues|workers|stats|health`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from pgqueue.control.desk import Desk
from pgqueue.control.rows import Fleet, QueueHealth, StrayQueue, WorkerRow
from pgqueue.core.names import check_queue
from pgqueue.errors import ConflictError, NotFoundError
from pgqueue.storage.revisions import require_head
from pgqueue.storage.statements import statement

PAUSE_STEP_S: Final = 0.1
WAIT_MAX_S: Final = 20.0
BEATS_PROVING: Final = 3  # the one that stood there, and two more


class Queues:
    """Questions and deeds about queues.

    All methods raise DatabaseUnreachable; deeds raise InvalidOption where the environment wants a reason.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def list(self, queue: str | None = None) -> list[QueueHealth]:
        """Every known queue: what is due, how late, who works on it."""
        return self._desk.rows(QueueHealth, "queue_health", {"queue": queue})

    def strays(self) -> Sequence[StrayQueue]:
        """Queues that jobs wait in and no worker ever served."""
        return self._desk.rows(StrayQueue, "stray_queues")

    def get(self, queue: str) -> QueueHealth:
        """One queue. Raises NotFoundError."""
        rows = self.list(check_queue(queue))
        if not rows:
            raise NotFoundError(f"queue {queue}: not known; `pgqueue queues list` shows the known ones")
        return rows[0]

    def pause(
        self, queue: str, *, reason: str | None = None, for_s: float | None = None, wait_s: float = WAIT_MAX_S
    ) -> None:
        """Pause a queue. When this returns, no job of it starts any more: every worker has heard of it or lost its lease.

        for_s: the pause ends by itself after so many seconds. wait_s: how long to wait for the workers, 0 = not at
        all. Raises ConflictError if one has not heard by then; the pause stands all the same.
        """
        self._desk.need_reason(reason)
        parameters = {"reason": reason, "for_s": for_s, "actor": self._desk.actor, "via": self._desk.via}
        self._desk.value("pause_queue", {"queue": check_queue(queue), **parameters})
        if wait_s > 0:
            self._wait_until_heard(queue, wait_s)

    def resume(self, queue: str, *, reason: str | None = None) -> bool:
        """Lift a pause; False if the queue was not paused. Raises NotFoundError."""
        self._desk.need_reason(reason)
        parameters = {"reason": reason, "actor": self._desk.actor, "via": self._desk.via}
        lifted = self._desk.value("resume_queue", {"queue": check_queue(queue), **parameters})
        if not lifted and not self._desk.value("queue_exists", {"queue": queue}):
            raise NotFoundError(f"queue {queue}: not known; `pgqueue queues list` shows the known ones")
        return bool(lifted)

    def workers(self, *, ended: bool = False, limit: int = 200) -> Sequence[WorkerRow]:
        """Worker processes, the living first; `ended`: also those that stopped or died lately."""
        return self._desk.rows(WorkerRow, "list_workers", {"ended": ended, "limit": limit})

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
        strays = [row for row in self.strays() if queue in {None, row.queue}]
        if queue is not None and not known and not strays:
            raise NotFoundError(f"queue {queue}: not known; `pgqueue queues list` shows the known ones")
        problems = [f"queue {row.queue}: jobs wait and no worker ever served it" for row in strays]
        for row in known:
            if row.paused:
                continue
            if row.due and not row.workers_live:
                problems.append(f"queue {row.queue}: {row.due} jobs are due and no worker serves it")
            elif row.lag_s > max_lag_s:
                problems.append(f"queue {row.queue}: the oldest due job waits for {row.lag_s:.1f} s")
        return problems

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
