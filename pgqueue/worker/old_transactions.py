"""Warns of handlers that keep their transaction open for long: it holds back every clean-up in the database.

Called by worker/runtime's monitor, which looks often; this looks once a second.
"""

from __future__ import annotations

import time
from typing import Final

from pgqueue.core.events import Warned
from pgqueue.worker.state import WorkerState

LOOK_S: Final = 1.0


class OldTransactions:
    """One per worker process; each run is warned about once."""

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._look_at = 0.0
        self._told: set[str] = set()

    def look(self) -> None:
        """Warn of transactions older than `handler_transaction_warn_s`."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        limit_s = self._state.settings.handler_transaction_warn_s
        old: set[str] = set()
        for running in list(self._state.running.values()):
            transaction = running.context.opened()
            if transaction is None or now - transaction.began < limit_s:
                continue
            job = running.job
            which = f"{job.id} {job.claim.id}"
            old.add(which)
            if which in self._told:
                continue
            age_s = now - transaction.began
            self._state.events.emit(
                Warned(
                    "handler_transaction_old",
                    f"job {job.id}: its transaction is open for {age_s:.0f} s and holds back vacuum in the whole database;"
                    " do the slow part before ctx.conn is touched",
                    {
                        "job_id": job.id,
                        "task": job.task_name,
                        "queue": job.queue,
                        "transaction_s": round(age_s, 3),
                    },
                )
            )
        self._told = old
