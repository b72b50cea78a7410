"""Dead letters: seen, grouped by cause, tried again or given up. `app.dead_letters` and `pgqueue dlq …`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final

from pgqueue.control.desk import BATCH, Desk, Ids, Matched, decoded, read, task_filter
from pgqueue.control.limits import checked_limit
from pgqueue.control.rows import DeadLetter, DeadLetterDetail, DeadLetterGroup, Redriven
from pgqueue.core.filter import EVERYTHING, Filter
from pgqueue.core.filter_compile import compile_filter
from pgqueue.errors import InvalidOption, NotFoundError
from pgqueue.storage.statements import statement

AGE_MAX_S: Final = 1e9
RATE_MAX_PER_S: Final = 100_000.0


@dataclass(frozen=True, slots=True)
class DeadFilter:
    """Which dead letters are meant; `task` may end in `*`, `age_max_s` counts back from now."""

    queue: str | None = None
    task: str | None = None
    reason: str | None = None
    error_type: str | None = None
    fingerprint: str | None = None
    age_max_s: float = AGE_MAX_S
    more: Filter = EVERYTHING

    def parameters(self) -> dict[str, object]:
        """As the statements take it."""
        return {
            "queue": self.queue,
            "reason": self.reason,
            "error_type": self.error_type,
            "fingerprint": self.fingerprint,
            "age_max_s": self.age_max_s,
            **task_filter(self.task),
            **compile_filter(self.more).parameters(),
        }

    def __str__(self) -> str:
        given = [
            f"{f.name}:{getattr(self, f.name)}"
            for f in fields(self)
            if f.name != "more" and getattr(self, f.name) != f.default
        ]
        if self.more.text:
            given.append(self.more.text)
        return " ".join(given) or "all"


@dataclass(frozen=True, slots=True, order=True)
class DeadCursor:
    """A place in a listing of dead letters: before the one that came at this moment with this id."""

    at: datetime = datetime(9998, 1, 1, tzinfo=UTC)
    job_id: int = 2**63 - 1

    def __str__(self) -> str:
        return f"{self.at.astimezone(UTC).isoformat().replace('+00:00', 'Z')}/{self.job_id}"

    @classmethod
    def parse(cls, text: str) -> DeadCursor:
        """Read what `str` wrote. Raises InvalidOption."""
        at, _, job_id = text.partition("/")
        try:
            place = cls(datetime.fromisoformat(at), int(job_id))
        except ValueError:
            place = None
        if place is None or place.at.tzinfo is None:
            raise InvalidOption("after", "not a place that a listing gave; copy it from its last line")
        return place


@dataclass(frozen=True, slots=True)
class DeadPage:
    """Part of a listing; `after` continues it, None = that was all. A page may be short and yet not the last."""

    rows: list[DeadLetter]
    after: DeadCursor | None


class DeadLetters:
    """Questions and deeds about dead letters.

    All methods raise DatabaseUnreachable; deeds raise InvalidOption where the environment wants a reason.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def list(
        self, where: DeadFilter | None = None, *, limit: int = 50, waiting: bool = True
    ) -> list[DeadLetter]:
        """Dead letters, newest first; `waiting`: only those nobody has redriven."""
        return self.page(where, limit=limit, waiting=waiting).rows

    def page(
        self,
        where: DeadFilter | None = None,
        *,
        limit: int = 50,
        waiting: bool = True,
        after: DeadCursor | None = None,
    ) -> DeadPage:
        """As `list`, with the place to go on from. Looks at 100,000 letters at most."""
        checked_limit(limit)
        start = after or DeadCursor()
        place = {"before_at": start.at, "before": start.job_id}
        parameters = {**(where or DeadFilter()).parameters(), **place, "limit": limit, "waiting": waiting}
        with self._desk.connection("dlq list") as conn:
            rows = read(conn, DeadLetter, "list_dead_letters", parameters)
            if len(rows) == limit:
                return DeadPage(rows, DeadCursor(rows[-1].created_at, rows[-1].job_id))
            window = conn.execute(statement("dead_letters_window"), parameters).fetchone()
        return DeadPage(rows, None if window is None else DeadCursor(*window))

    def groups(
        self, *, queue: str | None = None, task: str | None = None, limit: int = 50
    ) -> Sequence[DeadLetterGroup]:
        """Dead letters that wait for a decision, by cause, the most frequent first."""
        return self._desk.rows(
            DeadLetterGroup,
            "dead_letter_groups",
            {"queue": queue, "task": task, "limit": checked_limit(limit)},
        )

    def get(self, job_id: int) -> DeadLetterDetail:
        """One dead letter with everything kept of it. Raises NotFoundError."""
        rows = self._desk.rows(_detail, "find_dead_letters", {"ids": [job_id]})
        if not rows:
            raise NotFoundError(f"dead letter {job_id}: not found; `pgqueue dlq list` shows what there is")
        return rows[0]

    def matching(self, where: DeadFilter) -> Ids:
        """Ids of the waiting dead letters that a filter means."""
        return self.matched(where).ids

    def matched(self, where: DeadFilter) -> Matched:
        """As `matching`, with how many there are of each queue and task."""
        return self._desk.matched("match_dead", "dead_upper", where.parameters())

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
        done = self.each_redrive(job_ids, reason, queue=queue, priority=priority, rate_per_s=rate_per_s)
        return {one.job_id: one.redriven_as for one in done}

    def each_redrive(
        self,
        job_ids: Sequence[int],
        reason: str | None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        rate_per_s: float = 0,
    ) -> Iterator[Redriven]:
        """As `redrive`, each result as its batch is committed."""
        self._desk.need_reason(reason)
        if not 0 <= rate_per_s <= RATE_MAX_PER_S:
            raise InvalidOption(
                "rate", "out of range", limit=f"0–{RATE_MAX_PER_S:g} a second, 0 = all at once"
            )
        spacing_s = 1 / rate_per_s if rate_per_s else 0.0

        def options(done: int) -> dict[str, Any]:
            return {"queue": queue, "priority": priority, "delay_s": done * spacing_s, "spacing_s": spacing_s}

        rows = self._desk.deeds("redrive_jobs", job_ids, reason, options)
        return (Redriven(job_id=old, redriven_as=new, redriven_before=before) for old, before, new in rows)

    def discard(self, *job_ids: int, reason: str | None = None) -> dict[int, bool]:
        """Give dead letters up: they move to the history as cancelled; per id whether there was one."""
        return dict(self.each_discard(job_ids, reason))

    def each_discard(self, job_ids: Sequence[int], reason: str | None) -> Iterator[tuple[int, bool]]:
        """As `discard`, each verdict as its batch is committed."""
        self._desk.need_reason(reason)
        return self._desk.deeds("discard_letters", job_ids, reason)

    def export(self, where: DeadFilter | None = None) -> Iterator[DeadLetterDetail]:
        """Every waiting dead letter that a filter means, whole, arguments included, oldest job first."""
        ids = self.matching(where or DeadFilter())
        for at in range(0, len(ids), BATCH):
            yield from self._desk.rows(_detail, "find_dead_letters", {"ids": ids[at : at + BATCH]})

    def reveal(self, target: str, reason: str | None, *, matched: int = 1) -> None:
        """Write down that somebody looked at argument values of dead letters."""
        self._desk.need_reason(reason)
        self._desk.note("reveal_args", target, reason, matched=matched)


def _detail(*, args: str, **rest: Any) -> DeadLetterDetail:
    return DeadLetterDetail(args=decoded(args), **rest)
