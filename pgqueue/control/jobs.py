"""Jobs as people ask about them and act on them: `app.jobs` and `pgqueue jobs …`."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import psycopg

from pgqueue.control.desk import Desk, Ids, Matched, decoded, read, task_filter
from pgqueue.control.limits import checked_limit
from pgqueue.control.rows import Explanation, JobDetail, JobRow, TimelineEntry
from pgqueue.core.filter import EVERYTHING, Filter, parse_filter
from pgqueue.core.filter_compile import compile_filter
from pgqueue.core.states import ENDED, LIVE
from pgqueue.errors import ConflictError, InvalidOption, JobCancelled, JobFailed, NotFoundError
from pgqueue.producer.options import JobOptions
from pgqueue.storage.statements import statement

NEWEST: Final = 2**63 - 1
WAIT_STEP_S: Final = 0.05
WAIT_STEP_MAX_S: Final = 1.0
GONE: Final = "not found; it never existed, or its history is past retention"


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs are meant: any of the seven states (none: the live ones); `task` may end in `*`.

    `more`: what was written in the filter grammar; it narrows the rest.
    """

    states: Sequence[str] = ()
    queue: str | None = None
    task: str | None = None
    more: Filter = EVERYTHING

    def __post_init__(self) -> None:
        known = LIVE | ENDED
        if any(state not in known for state in self.states):
            raise InvalidOption("state", f"unknown; there are {', '.join(sorted(known))}")

    def __str__(self) -> str:
        words = [*(f"state:{s}" for s in self.states), *_words(queue=self.queue, task=self.task)]
        return " ".join([*words, *([self.more.text] if self.more.text else [])]) or "all"

    def wanted(self, default: Collection[str]) -> list[str]:
        """The states meant: those given, else those the filter speaks of, else `default`."""
        spoken = self.more.states()
        if spoken is None:
            return sorted(self.states or default)
        return sorted(spoken & set(self.states) if self.states else spoken)

    def parameters(self) -> dict[str, object]:
        """All but the states, as the statements take it."""
        return {"queue": self.queue, **task_filter(self.task), **compile_filter(self.more).parameters()}


@dataclass(frozen=True, slots=True)
class JobPage:
    """Part of a listing; `before` continues it, None = that was all. A page may be short and yet not the last."""

    rows: list[JobRow]
    before: int | None


class Retried(NamedTuple):
    """What `retry` did: freed (it is ready now), redriven (as the new job `job_id`), or ready, as it was."""

    verdict: str
    job_id: int


class Jobs:
    """Questions and deeds about jobs, wherever they stand.

    All methods raise DatabaseUnreachable; deeds raise InvalidOption where the environment wants a reason.
    """

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
        where: str = "",
    ) -> list[JobRow]:
        """Jobs, newest first: of any of the seven `states`, default the live ones; `task` may end in `*`.

        `where` is written as on the command line: `state:dead age:>5m args.ride_id:12`. `before` continues a
        listing: the id of its last row. Raises InvalidFilter.
        """
        chosen = JobFilter(states, queue, task, parse_filter(where, "jobs"))
        return self.page(chosen, limit=limit, before=before).rows

    def page(self, where: JobFilter, *, limit: int = 50, before: int = NEWEST) -> JobPage:
        """As `list`, with the place to go on from. Looks at 100,000 rows of a table at most."""
        checked_limit(limit)
        states = where.wanted(LIVE)
        asked = {"limit": limit, "before": before, **where.parameters()}
        sources = [
            ("list_live", "live_window", [s for s in states if s in LIVE]),
            ("list_ended", "ended_window", [s for s in states if s in ENDED and s != "dead"]),
            ("list_dead", "dead_window", [s for s in states if s == "dead"]),
        ]
        rows: list[JobRow] = []
        windows: list[int] = []
        with self._desk.connection("jobs list") as conn:
            for name, window, wanted in sources:
                if wanted:
                    found = read(conn, JobRow, name, {**asked, "states": wanted})
                    rows += found
                    if len(found) < limit:
                        windows += _first(conn, window, {"before": before})
        rows.sort(key=lambda row: -row.id)
        if len(rows) > limit or not windows:
            rows = rows[:limit]
            return JobPage(rows, rows[-1].id if len(rows) == limit else None)
        # Where one table's window ended, the others must end as well, or their rows would come twice.
        end = max(windows)
        return JobPage([row for row in rows if row.id >= end], end)

    def get(self, job_id: int) -> JobDetail:
        """One job with everything kept of it. Raises NotFoundError."""
        rows = self._desk.rows(_detail, "find_job", {"id": job_id})
        if not rows:
            raise NotFoundError(f"job {job_id}: {GONE}")
        return rows[0]

    def timeline(self, job_id: int) -> Sequence[TimelineEntry]:
        """One job's life, in order. Raises NotFoundError."""
        rows = self._desk.rows(TimelineEntry, "timeline", {"id": job_id})
        if not rows:
            raise NotFoundError(f"job {job_id}: {GONE}")
        return rows

    def explain(self, job_id: int) -> Explanation:
        """Say the one reason why a job is not running, and the command that lifts it."""
        (row,) = self._desk.rows(Explanation, "explain", {"id": job_id})
        return row

    def matching(self, where: JobFilter) -> Ids:
        """Ids of live jobs that a filter means; jobs enqueued meanwhile are left alone."""
        return self.matched(where).ids

    def matched(self, where: JobFilter, default: Collection[str] = LIVE) -> Matched:
        """As `matching`, with how many there are of each queue and task; `default`: the states if none is named."""
        states = where.wanted(default)
        if not LIVE.issuperset(states):
            raise InvalidOption("state", f"only live jobs can be acted on: {', '.join(sorted(LIVE))}")
        return self._desk.matched("match_live", "live_upper", {"states": states, **where.parameters()})

    def retriable(self, where: JobFilter) -> Matched:
        """What a filter means to `each_retry`: held jobs, and dead letters that wait for a decision, if it names no state."""
        states = set(where.wanted({"held", "dead"}))
        found = Matched()
        parameters = where.parameters()
        if states & LIVE:
            live = {**parameters, "states": sorted(states & LIVE)}
            found.add(self._desk.matched("match_live", "live_upper", live))
        if "dead" in states:
            none = {"reason": None, "error_type": None, "fingerprint": None, "age_max_s": 1e9}
            found.add(self._desk.matched("match_dead", "dead_upper", {**none, **parameters}))
        return found

    def cancel(self, *job_ids: int, reason: str | None = None) -> dict[int, str]:
        """Cancel jobs; per id: cancelled, requested (it runs and is asked to stop), ended or unknown."""
        return dict(self.each_cancel(job_ids, reason))

    def run_now(self, *job_ids: int, reason: str | None = None) -> dict[int, str]:
        """Make scheduled and held jobs ready; per id: freed, ready, running, ended or unknown."""
        return dict(self.each_run_now(job_ids, reason))

    def reschedule(
        self,
        *job_ids: int,
        delay: str | float | timedelta | None = None,
        run_at: datetime | None = None,
        reason: str | None = None,
    ) -> dict[int, str]:
        """Move scheduled and ready jobs to another moment, as `using(delay=…)` and `using(run_at=…)` give one.

        Per id: rescheduled, ready (it is due already), running, held, expires (before that moment), ended or unknown.
        """
        return dict(self.each_reschedule(job_ids, moment(delay, run_at), reason))

    def each_cancel(self, job_ids: Sequence[int], reason: str | None) -> Iterator[tuple[int, str]]:
        """As `cancel`, each verdict as its batch is committed."""
        self._desk.need_reason(reason)
        return self._desk.deeds("cancel_jobs", job_ids, reason)

    def each_run_now(self, job_ids: Sequence[int], reason: str | None) -> Iterator[tuple[int, str]]:
        """As `run_now`, each verdict as its batch is committed."""
        self._desk.need_reason(reason)
        return self._desk.deeds("run_jobs_now", job_ids, reason)

    def each_reschedule(
        self, job_ids: Sequence[int], to: Mapping[str, Any], reason: str | None
    ) -> Iterator[tuple[int, str]]:
        """As `reschedule`, each verdict as its batch is committed; `to` is what `moment` made."""
        self._desk.need_reason(reason)
        return self._desk.deeds("reschedule_jobs", job_ids, reason, lambda _: to)

    def retry(self, job_id: int, *, reason: str | None = None) -> Retried:
        """Try a job again: a waiting one now, a dead one as a new, linked job (a second call finds the same one).

        Raises ConflictError for a job that runs, or ended otherwise; NotFoundError.
        """
        verdict = self.run_now(job_id, reason=reason)[job_id]
        if verdict in {"freed", "ready"}:
            return Retried(verdict, job_id)
        if verdict == "unknown":
            raise NotFoundError(f"job {job_id}: {GONE}")
        if verdict == "running":
            raise ConflictError(f"job {job_id}: it is running; cancel it first, or wait for its end")
        options = {"queue": None, "priority": None, "delay_s": 0.0, "spacing_s": 0.0}
        ((_, _, new_id),) = self._desk.deeds("redrive_jobs", [job_id], reason, lambda _: options)
        if new_id is None:
            raise ConflictError(f"job {job_id}: it has ended well or was cancelled; enqueue it anew")
        return Retried("redriven", int(new_id))

    def each_retry(self, job_ids: Sequence[int], reason: str | None) -> Iterator[tuple[int, str, int | None]]:
        """Try many jobs again as `retry` does: per id the verdict and the job that runs now, if there is one.

        Verdicts: freed, ready, redriven; running, ended (well, or cancelled) and unknown are left alone.
        """
        options = {"queue": None, "priority": None, "delay_s": 0.0, "spacing_s": 0.0}
        ended: list[int] = []
        for job_id, verdict in self.each_run_now(job_ids, reason):
            if verdict == "ended":
                ended.append(job_id)
            else:
                yield job_id, verdict, job_id if verdict in {"freed", "ready"} else None
        for old, _, new in self._desk.deeds("redrive_jobs", ended, reason, lambda _: options):
            yield old, "ended" if new is None else "redriven", new

    def wait(self, job_id: int, *, timeout_s: float = 60) -> Any:
        """Wait until a job has ended and return its result.

        Raises JobFailed or JobCancelled if it ended badly, NotFoundError, TimeoutError.
        """
        state = self._end_of(job_id, timeout_s)
        if state == "succeeded":
            return self.get(job_id).result
        raise JobCancelled(job_id, "cancelled")

    def result_of(self, task: str, key: str, default: Any = None) -> Any:
        """What the job of an idempotency key returned, if it succeeded and the key is still held; else `default`."""
        with self._desk.connection("jobs result") as conn:
            row = conn.execute(statement("key_result"), {"task": task, "key": key}).fetchone()
        return default if row is None or row[0] is None else decoded(row[0])

    def reveal(self, job_id: int, reason: str | None) -> None:
        """Write down that somebody looked at a job's argument values."""
        self._desk.need_reason(reason)
        self._desk.note("reveal_args", f"job {job_id}", reason)

    def _end_of(self, job_id: int, timeout_s: float) -> str:
        """The state in which a job ended, once it has; a dead one raises."""
        until, step_s = time.monotonic() + timeout_s, WAIT_STEP_S
        with self._desk.connection("jobs wait") as conn:
            while True:
                row = conn.execute(statement("job_end"), {"id": job_id}).fetchone()
                if row is None:
                    raise NotFoundError(f"job {job_id}: {GONE}")
                state, reason = row
                if state == "dead":
                    raise JobFailed(job_id, reason)
                if state in ENDED:
                    return str(state)
                left_s = until - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError(f"job {job_id}: still {state} after {timeout_s:g} s")
                time.sleep(min(step_s, left_s))
                step_s = min(step_s * 1.5, WAIT_STEP_MAX_S)


def moment(delay: str | float | timedelta | None, run_at: datetime | None) -> Mapping[str, Any]:
    """The parameters of a moment for `each_reschedule`. Raises InvalidInput unless it is given in one way, and well."""
    options = JobOptions.checked(delay=delay, run_at=run_at)
    if options.delay_s is None and options.run_at is None:
        raise InvalidOption("run_at", "missing; give it or delay")
    return {"delay_s": options.delay_s, "run_at": options.run_at}


def _detail(*, args: str, result: str | None, **rest: Any) -> JobDetail:
    return JobDetail(args=decoded(args), result=decoded(result), **rest)


def _first(conn: psycopg.Connection[Any], name: str, parameters: dict[str, Any]) -> Ids:
    row = conn.execute(statement(name), parameters).fetchone()
    return [] if row is None else [int(row[0])]


def _words(**facts: str | None) -> list[str]:
    return [f"{name}:{value}" for name, value in facts.items() if value is not None]
