"""What is due, decided: reads the schedules whose fire has come, plans, and writes the plans in one statement.

Called by the runtime at each round. A plan is made from a row that may be old by the time it is written: the
statement checks that, so this file may be killed, stopped or overtaken at any line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson
import psycopg
from psycopg.rows import class_row

from pgqueue.core.events import Events, ScheduleFailed, ScheduleFired, ScheduleMissed
from pgqueue.core.schedule import timing_of
from pgqueue.core.schedule_plan import FIRES_PER_TICK_MAX, PlannedRun, TickPlan, plan_tick
from pgqueue.errors import InvalidInput
from pgqueue.storage.faults import summary_of
from pgqueue.storage.link import Link
from pgqueue.storage.statements import statement
from pgqueue.tracing import Carrier, Fire, firing

REST_FIRST_S: Final = 1.0
REST_MAX_S: Final = 60.0
REST_BUSY_S: Final = 0.25
"""How long a schedule is left alone whose row is locked, or was changed while its plan was made."""
PRUNE_BATCH: Final = 1_000
ERROR_CHARS_MAX: Final = 500

BATCH_SCHEDULES: Final = 50
"""Schedules decided in one transaction; one that is refused makes the batch be repeated one by one."""

Decided = list[tuple[str | None, str, int | None]]
"""(run_key, outcome, job_id) of each run of a schedule, then one row without a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueSchedule:
    """A schedule that is due or not planned yet, as it was read at `now`."""

    name: str
    revision: int
    last_fire_at: datetime
    cron: str | None
    every_s: float | None
    tz: str
    starts_at: datetime | None
    ends_at: datetime | None
    misfire: str
    max_catch_up: int
    grace_s: float
    jitter_s: float
    now: datetime


Planned = tuple[DueSchedule, TickPlan]
FireKey = tuple[str, str | None]
"""A schedule's name and a run's key."""
NO_TRACES: Final[Mapping[FireKey, Carrier]] = {}


class Ticker:
    """Decides over due fires. Schedules that failed or were busy rest before they are looked at again."""

    def __init__(
        self, link: Link, scheduler_id: str, events: Events, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._link = link
        self._id = scheduler_id
        self._events = events
        self._clock = clock
        self._resting: dict[str, tuple[float, float]] = {}  # name -> until when, for how long
        self._read_at = 0.0

    def due(self, late_s: float) -> list[DueSchedule]:
        """The schedules whose next fire is at least `late_s` old, the oldest first."""
        found = self._link.run(lambda conn: read_due(conn, late_s, self._names_resting()))
        self._read_at = self._clock()
        return found

    def next_in_s(self) -> float | None:
        """Seconds until the next fire, by the database's clock; None if none is planned."""
        parameters = {"resting": self._names_resting()}
        row = self._link.run(lambda conn: conn.execute(statement("schedules_next"), parameters).fetchone())
        return None if row is None or row[0] is None else float(row[0])

    def tick(self, due: Sequence[DueSchedule]) -> bool:
        """Decide over some schedules' fires; whether any were decided. Each one's faults stay its own."""
        plans = []
        for one in due:
            try:
                plans.append((one, plan_for(one)))
            except InvalidInput as error:
                self._failed(one, str(error).splitlines()[0])
        return any([self._write(batch) for batch in _batches(plans)])  # noqa: C419 - each is to be written

    def _write(self, plans: list[Planned]) -> bool:
        fires = _fires_of(plans)
        traces = {fire: span.headers for fire, span in fires.items() if span.headers}
        try:
            # One try: what the database does not take now is taken in a later round, and others come first.
            decided = self._link.try_once(lambda conn: write_plans(conn, plans, self._id, traces)) or {}
        except psycopg.Error as error:
            for span in fires.values():
                span.undecided(type(error).__name__)
            if len(plans) > 1:
                return any([self._write([one]) for one in plans])  # noqa: C419 - as above
            self._failed(plans[0][0], summary_of(error))
            return False
        _told(fires, decided)
        for due, plan in plans:
            if due.name in decided:
                self._resting.pop(due.name, None)
                self._tell(due, plan, decided[due.name])
            else:
                self._rest(due.name, REST_BUSY_S)
        return any(plan.runs and due.name in decided for due, plan in plans)

    def prune(self, keep_days: int) -> int:
        """Drop one batch of old rows of the fire log; returns how many."""
        parameters = {"keep_days": keep_days, "batch": PRUNE_BATCH}
        row = self._link.run(
            lambda conn: conn.execute(statement("prune_schedule_runs"), parameters).fetchone()
        )
        return 0 if row is None else int(row[0])

    def _tell(self, due: DueSchedule, plan: TickPlan, rows: Decided) -> None:
        planned = {run.run_key: run for run in plan.runs}
        missed = plan.missed_total
        for run_key, outcome, job_id in rows:
            run = planned.get(run_key or "")
            if run is None:
                continue
            if run.outcome == "enqueue":
                late_s = (due.now - run.fire_at).total_seconds() + self._clock() - self._read_at
                self._events.emit(
                    ScheduleFired(due.name, run.run_key, run.fire_at, outcome, job_id, late_s, self._id)
                )
            elif outcome == "duplicate":
                missed -= 1
        if missed > 0:
            self._events.emit(ScheduleMissed(due.name, missed, plan.missed_exact, self._id))

    def _failed(self, due: DueSchedule, cause: str) -> None:
        _, before_s = self._resting.get(due.name, (0.0, 0.0))
        rest_s = min(REST_MAX_S, max(REST_FIRST_S, 2 * before_s))
        self._rest(due.name, rest_s)
        parameters = {"name": due.name, "revision": due.revision, "error": cause[:ERROR_CHARS_MAX]}
        self._link.try_once(lambda conn: conn.execute(statement("schedule_failed"), parameters))
        self._events.emit(ScheduleFailed(due.name, cause, rest_s))

    def _rest(self, name: str, seconds: float) -> None:
        self._resting[name] = (self._clock() + seconds, seconds)

    def _names_resting(self) -> list[str]:
        now = self._clock()
        # One that has not failed again for so long is forgotten: it may have been mended or deleted.
        self._resting = {n: rest for n, rest in self._resting.items() if rest[0] > now - REST_MAX_S}
        return [name for name, (until, _) in self._resting.items() if until > now]


def read_due(
    conn: psycopg.Connection[Any], late_s: float = 0.0, resting: list[str] | None = None
) -> list[DueSchedule]:
    """Schedules whose next fire is at least `late_s` old or that have no plan yet, but for those `resting`."""
    with conn.cursor(row_factory=class_row(DueSchedule)) as cursor:
        parameters = {"late_s": late_s, "resting": resting or []}
        return cursor.execute(statement("schedules_due"), parameters).fetchall()


def plan_for(due: DueSchedule) -> TickPlan:
    """What to do about one schedule. Raises InvalidInput if its row, perhaps written by hand, makes no sense."""
    return plan_tick(
        timing_of(due.cron, due.every_s, due.tz, due.starts_at, due.ends_at),
        name=due.name,
        last_fire_at=due.last_fire_at,
        now=due.now,
        misfire=due.misfire,
        max_catch_up=due.max_catch_up,
        grace_s=due.grace_s,
        jitter_s=due.jitter_s,
    )


def write_plans(
    conn: psycopg.Connection[Any],
    plans: Sequence[Planned],
    scheduler_id: str,
    traces: Mapping[FireKey, Carrier] = NO_TRACES,
) -> Mapping[str, Decided]:
    """Write plans, all in one transaction; what was decided by schedule, without those that have moved on.

    `traces`: headers with the context of a fire's span, for its job.
    """
    rows = [
        {
            "name": due.name,
            "revision": due.revision,
            "decided_from": due.last_fire_at.isoformat(),
            "decided_until": plan.decided_until.isoformat(),
            "next_fire_at": None if plan.next_fire_at is None else plan.next_fire_at.isoformat(),
            "runs": [_as_row(run, traces.get((due.name, run.run_key))) for run in plan.runs],
        }
        for due, plan in plans
    ]
    decided: dict[str, Decided] = {}
    parameters = {"plans": orjson.dumps(rows).decode(), "leader": scheduler_id}
    for name, run_key, outcome, job_id in conn.execute(statement("tick_schedules"), parameters).fetchall():
        decided.setdefault(name, []).append((run_key, outcome, job_id))
    return decided


def write_plan(conn: psycopg.Connection[Any], due: DueSchedule, plan: TickPlan, scheduler_id: str) -> Decided:
    """Write one plan; an empty list if the schedule has moved on."""
    return write_plans(conn, [(due, plan)], scheduler_id).get(due.name, [])


def _fires_of(plans: Sequence[Planned]) -> dict[FireKey, Fire]:
    return {
        (due.name, run.run_key): firing(due.name, run.run_key)
        for due, plan in plans
        for run in plan.runs
        if run.outcome == "enqueue"
    }


def _told(fires: Mapping[FireKey, Fire], decided: Mapping[str, Decided]) -> None:
    outcomes = {
        (name, run_key): (outcome, job_id)
        for name, rows in decided.items()
        for run_key, outcome, job_id in rows
    }
    for fire, span in fires.items():
        if fire in outcomes:
            span.decided(*outcomes[fire])
        else:
            span.undecided("overtaken")


def _as_row(run: PlannedRun, trace: Carrier | None) -> dict[str, Any]:
    return {
        "run_key": run.run_key,
        "fire_at": run.fire_at.isoformat(),
        "run_at": run.run_at.isoformat(),
        "outcome": "enqueued" if run.outcome == "enqueue" else "missed",
        "note": run.note,
        "headers": trace,
    }


def _batches(plans: Sequence[Planned]) -> Iterator[list[Planned]]:
    """Plans in their order, at most so many schedules and, but for a single one's, so many runs to a batch."""
    batch: list[Planned] = []
    for one in plans:
        runs = sum(len(plan.runs) for _, plan in batch) + len(one[1].runs)
        if batch and (len(batch) >= BATCH_SCHEDULES or runs > FIRES_PER_TICK_MAX):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch
