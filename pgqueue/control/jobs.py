"""Jobs as people ask about them and act on them: `app.jobs` and `pgqueue jobs …`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from pgqueue.control.desk import Desk, Ids, Row, Rows, task_filter
from pgqueue.core.states import ENDED, LIVE
from pgqueue.errors import InvalidOption, JobCancelled, JobFailed, NotFoundError

NEWEST: Final = 2**63 - 1
WAIT_STEP_S: Final = 0.1
WAIT_STEP_MAX_S: Final = 1.0


class Jobs:
    """Questions and deeds about jobs, wherever they stand. All methods raise DatabaseUnreachable."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def list(
        self,
        *,
        states: Sequence[str] = (),
        queue: str | None = None,
        task: str | None = None,
        limit: int = 50,
        before: int = NEWEST,
    ) -> Rows:
        """Jobs, newest first. `states`: any of the seven, default the live ones; `task` may end in `*`.

        `before` continues a listing: the id of its last row. Dead jobs are listed by `DeadLetters.list`.
        """
        asked = list(states) or sorted(LIVE)
        unknown = [state for state in asked if state not in LIVE | ENDED]
        if unknown:
            raise InvalidOption("state", f"unknown; there are {', '.join(sorted(LIVE | ENDED))}")
        common = {"queue": queue, "limit": limit, "before": before, **task_filter(task)}
        rows: Rows = []
        live = [state for state in asked if state in LIVE]
        ended = [state for state in asked if state in ENDED and state != "dead"]
        if live:
            rows += self._desk.rows("list_live", {**common, "states": live})
        if ended:
            rows += [_as_live(row) for row in self._desk.rows("list_ended", {**common, "states": ended})]
        if "dead" in asked:
            rows += [
                row for job_id in self._dead_ids(queue, task, limit, before) for row in self._find(job_id)
            ]
        return sorted(rows, key=lambda row: -row["id"])[:limit]

    def get(self, job_id: int) -> Row:
        """One job with everything kept of it. Raises NotFoundError."""
        rows = self._find(job_id)
        if not rows:
            raise NotFoundError(
                f"job {job_id}: not found; it never existed, or its history is past retention"
            )
        return rows[0]

    def timeline(self, job_id: int) -> Rows:
        """One job's life, in order. Raises NotFoundError."""
        rows = self._desk.rows("timeline", {"id": job_id})
        if not rows:
            raise NotFoundError(
                f"job {job_id}: not found; it never existed, or its history is past retention"
            )
        return rows

    def matching(
        self, *, states: Sequence[str] = (), queue: str | None = None, task: str | None = None
    ) -> Ids:
        """Ids of live jobs that a filter means."""
        return self._desk.matching(
            "match_live", "live_upper", {"states": list(states) or None, "queue": queue, **task_filter(task)}
        )

    def cancel(self, *job_ids: int, reason: str | None = None) -> dict[int, str]:
        """Cancel jobs; per id: cancelled, requested (it runs and is asked to stop), ended or unknown."""
        return dict(self._desk.deeds("cancel_jobs", [*job_ids], reason))

    def run_now(self, *job_ids: int, reason: str | None = None) -> dict[int, str]:
        """Make scheduled and held jobs ready; per id: freed, ready, running, ended or unknown."""
        return dict(self._desk.deeds("run_jobs_now", [*job_ids], reason))

    def retry(self, job_id: int, *, reason: str | None = None) -> tuple[str, int]:
        """Try a job again: a waiting one now (freed), a dead one as a new job (redriven). Returns verdict and job id."""
        verdict = self.run_now(job_id, reason=reason)[job_id]
        if verdict != "ended":
            return verdict, job_id
        rows = self._desk.deeds(
            "redrive_jobs", [job_id], reason, queue=None, priority=None, delay_s=0.0, spacing_s=0.0
        )
        new_id = rows[0][2]
        return ("ended", job_id) if new_id is None else ("redriven", int(new_id))

    def wait(self, job_id: int, *, timeout_s: float = 60) -> Any:
        """Wait until a job has ended and return its result.

        Raises JobFailed or JobCancelled if it ended badly, NotFoundError, TimeoutError.
        """
        until, step_s = time.monotonic() + timeout_s, WAIT_STEP_S
        while True:
            rows = self._desk.rows("job_end", {"id": job_id})
            if not rows:
                raise NotFoundError(
                    f"job {job_id}: not found; it never existed, or its history is past retention"
                )
            state = rows[0]["state"]
            if state == "succeeded":
                return self.get(job_id)["result"]
            if state == "cancelled":
                raise JobCancelled(job_id, "cancelled")
            if state == "dead":
                raise JobFailed(job_id, str(rows[0]["reason"]))
            if time.monotonic() + step_s > until:
                raise TimeoutError(f"job {job_id}: still {state} after {timeout_s:g} s")
            time.sleep(step_s)
            step_s = min(step_s * 1.5, WAIT_STEP_MAX_S)

    def reveal(self, job_id: int, reason: str | None) -> None:
        """Write down that somebody looked at a job's argument values."""
        self._desk.rows(
            "note_operation",
            {
                "actor": self._desk.actor,
                "via": self._desk.via,
                "action": "reveal_args",
                "target": f"job {job_id}",
                "reason": reason,
                "matched": 1,
                "changed": 0,
                "detail": None,
            },
        )

    def _find(self, job_id: int) -> Rows:
        return self._desk.rows("find_job", {"id": job_id})

    def _dead_ids(self, queue: str | None, task: str | None, limit: int, before: int) -> Ids:
        found = self._desk.matching(
            "match_dead",
            "dead_upper",
            {
                "queue": queue,
                "age_max_s": 1e9,
                "reason": None,
                "error_type": None,
                "fingerprint": None,
                **task_filter(task),
            },
        )
        return [job_id for job_id in reversed(found) if job_id < before][:limit]


def _as_live(row: Row) -> Row:
    """History speaks of job_id, attempts and enqueued_at; a listing has one set of names."""
    names = {"job_id": "id", "attempts": "attempt", "enqueued_at": "created_at", "due_at": "run_at"}
    return {names.get(name, name): value for name, value in row.items()}
