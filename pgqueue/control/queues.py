"""Queues and the processes that serve them: `app.queues`, `pgqueue queues|workers|stats|health`."""

from __future__ import annotations

import time
from typing import Final

from pgqueue.control.desk import Desk, Row, Rows
from pgqueue.core.names import check_queue
from pgqueue.errors import ConflictError, NotFoundError
from pgqueue.storage.statements import statement

PAUSE_STEP_S: Final = 0.1
BEATS_PROVING: Final = 3  # the one that stood there, and two more


class Queues:
    """Questions and deeds about queues. All methods raise DatabaseUnreachable."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def list(self, queue: str | None = None) -> Rows:
        """Every known queue: what is due, how late, who works on it."""
        return self._desk.rows("queue_health", {"queue": queue})

    def strays(self) -> Rows:
        """Queues that jobs wait in and no worker ever served."""
        return self._desk.rows("stray_queues")

    def get(self, queue: str) -> Row:
        """One queue. Raises NotFoundError."""
        rows = self.list(check_queue(queue))
        if not rows:
            raise NotFoundError(f"queue {queue}: not known; `pgqueue queues list` shows the known ones")
        return rows[0]

    def pause(
        self, queue: str, *, reason: str | None = None, for_s: float | None = None, wait_s: float = 20
    ) -> None:
        """Pause a queue. When this returns, no job of it starts any more: every worker has heard of it or lost its lease.

        Raises ConflictError if a worker has not heard within `wait_s`; the pause stands all the same.
        """
        check_queue(queue)
        self._desk.value(
            "pause_queue",
            {
                "queue": queue,
                "reason": reason,
                "for_s": for_s,
                "actor": self._desk.actor,
                "via": self._desk.via,
            },
        )
        until = time.monotonic() + wait_s
        beats: dict[str, set[object]] = {}
        while True:
            deaf = []
            for row in self._desk.rows("pause_witnesses", {"queue": queue}):
                # A worker reads the pauses, then beats. The round of the second beat seen from here on began
                # after the first was visible, hence after the pause was committed.
                seen = beats.setdefault(row["id"], set())
                seen.add(row["beat_at"])
                if len(seen) < BEATS_PROVING:
                    deaf.append(row["id"])
            if not deaf:
                return
            if time.monotonic() > until:
                raise ConflictError(
                    f"queue {queue}: paused, but worker {deaf[0][:8]} has not confirmed; it may still start jobs it had claimed"
                )
            time.sleep(PAUSE_STEP_S)

    def resume(self, queue: str, *, reason: str | None = None) -> bool:
        """Lift a pause; False if the queue was not paused. Raises NotFoundError."""
        lifted = self._desk.value(
            "resume_queue",
            {"queue": check_queue(queue), "reason": reason, "actor": self._desk.actor, "via": self._desk.via},
        )
        if not lifted and not self._desk.value("queue_exists", {"queue": queue}):
            raise NotFoundError(f"queue {queue}: not known; `pgqueue queues list` shows the known ones")
        return bool(lifted)

    def workers(self, *, ended: bool = False, limit: int = 200) -> Rows:
        """Worker processes, the living first."""
        return self._desk.rows("list_workers", {"ended": ended, "limit": limit})

    def fleet(self) -> Row:
        """Totals over all workers."""
        with self._desk.connection() as conn:
            row = conn.execute(statement("fleet")).fetchone()
        names = ("workers", "slots", "busy", "settled", "failed", "clock")
        return dict(zip(names, row or (0, 0, 0, 0, 0, None), strict=True))
