"""Dead letters: seen, grouped by cause, tried again or given up. `app.dead_letters` and `pgqueue dlq …`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pgqueue.control.desk import BATCH, Desk, Ids, Row, Rows, task_filter
from pgqueue.errors import NotFoundError

AGE_MAX_S: Final = 1e9
_LATEST: Final = datetime(9998, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class DeadFilter:
    """Which dead letters are meant; `task` may end in `*`, `age_max_s` counts back from now."""

    queue: str | None = None
    task: str | None = None
    reason: str | None = None
    error_type: str | None = None
    fingerprint: str | None = None
    age_max_s: float = AGE_MAX_S

    def parameters(self) -> dict[str, object]:
        """As the statements take it."""
        return {
            "queue": self.queue,
            "reason": self.reason,
            "error_type": self.error_type,
            "fingerprint": self.fingerprint,
            "age_max_s": self.age_max_s,
            **task_filter(self.task),
        }


class DeadLetters:
    """Questions and deeds about dead letters. All methods raise DatabaseUnreachable."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def list(self, where: DeadFilter | None = None, *, limit: int = 50, waiting: bool = True) -> Rows:
        """Dead letters, newest first; `waiting`: only those nobody has redriven."""
        parameters = {
            **(where or DeadFilter()).parameters(),
            "limit": limit,
            "waiting": waiting,
            "before_at": _LATEST,
            "before": 2**63 - 1,
        }
        return self._desk.rows("list_dead_letters", parameters)

    def groups(self, *, queue: str | None = None, task: str | None = None, limit: int = 50) -> Rows:
        """Dead letters that wait for a decision, by cause, the most frequent first."""
        return self._desk.rows("dead_letter_groups", {"queue": queue, "task": task, "limit": limit})

    def get(self, job_id: int) -> Row:
        """One dead letter with everything kept of it. Raises NotFoundError."""
        rows = self._desk.rows("find_dead_letters", {"ids": [job_id]})
        if not rows:
            raise NotFoundError(f"dead letter {job_id}: not found; `pgqueue dlq list` shows what there is")
        return rows[0]

    def matching(self, where: DeadFilter) -> Ids:
        """Ids of the waiting dead letters that a filter means."""
        return self._desk.matching("match_dead", "dead_upper", where.parameters())

    def redrive(
        self,
        *job_ids: int,
        reason: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        rate_per_s: float = 0,
    ) -> dict[int, int | None]:
        """Enqueue dead jobs again as new, linked jobs; per id the new job's id, None if there is no such letter.

        A second call returns the same ids. `rate_per_s`: spread the new jobs over time; 0 = all at once.
        """
        spacing_s = 1 / rate_per_s if rate_per_s > 0 else 0.0
        redriven: dict[int, int | None] = {}
        ids: Ids = [*job_ids]
        for at in range(0, len(ids), BATCH):
            rows = self._desk.deeds(
                "redrive_jobs",
                ids[at : at + BATCH],
                reason,
                queue=queue,
                priority=priority,
                delay_s=at * spacing_s,
                spacing_s=spacing_s,
            )
            redriven |= {row[0]: row[2] for row in rows}
        return redriven

    def discard(self, *job_ids: int, reason: str | None = None) -> dict[int, bool]:
        """Give dead letters up: they move to the history as cancelled; per id whether there was one."""
        return dict(self._desk.deeds("discard_letters", [*job_ids], reason))

    def export(self, where: DeadFilter) -> Iterator[Row]:
        """Every dead letter that a filter means, whole, arguments included."""
        ids = self.matching(where)
        for at in range(0, len(ids), BATCH):
            yield from self._desk.rows("find_dead_letters", {"ids": ids[at : at + BATCH]})
