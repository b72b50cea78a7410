"""Schedules as people ask about them and act on them: `app.schedules` and `pgqueue schedules …`.

The deeds go through the SQL functions, which write their audit rows. Moments come from core; "now" is the
database's, except for previews of expressions that no database knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Unpack

from pgqueue.control.desk import Desk
from pgqueue.control.limits import checked_limit
from pgqueue.core.schedule import (
    ScheduleDefinition,
    ScheduleOptions,
    check_schedule_name,
    define_schedule,
    timing_of,
)
from pgqueue.core.schedule_plan import Preview, Timing, preview
from pgqueue.errors import ConflictError, NotFoundError

PREVIEW_FIRES: Final = 5
RUNS_LIMIT: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRow:
    """One schedule: its definition, its next fire, its last run.

    `state`: enabled, paused, orphaned (its code no longer defines it) or ended (no fire is left). `last_outcome`:
    succeeded, cancelled, dead, running, waiting, forgotten (past retention), missed or skipped; None before the
    first run. `last_error`: why the scheduler cannot fire it.
    """

    name: str
    state: str
    task: str
    queue: str
    cron: str | None
    every_s: float | None
    tz: str
    misfire: str
    overlap: str
    source: str
    defined_in: str | None
    next_fire_at: datetime | None
    overdue_s: float
    last_fire_at: datetime | None
    last_job_id: int | None
    last_outcome: str | None
    last_started_at: datetime | None
    last_duration_s: float | None
    last_note: str | None
    last_error: str | None
    paused_at: datetime | None
    paused_by: str | None
    pause_reason: str | None
    orphaned_at: datetime | None
    starts_at: datetime | None
    ends_at: datetime | None
    max_catch_up: int
    grace_s: float
    jitter_s: float

    @property
    def timing(self) -> Timing:
        """When it fires. Raises InvalidSchedule or InvalidTimezone for a row written by hand that makes no sense."""
        return timing_of(self.cron, self.every_s, self.tz, self.starts_at, self.ends_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRun:
    """One line of the fire log: enqueued, skipped, missed or manual."""

    schedule: str
    run_key: str
    fire_at: datetime
    outcome: str
    job_id: int | None
    leader: str
    ticked_at: datetime
    note: str | None


class Schedules:
    """Questions and deeds about schedules.

    All methods that ask the database raise DatabaseUnreachable; deeds raise InvalidOption where the environment
    wants a reason. `check_args` raises InvalidArguments for
    arguments that do not fit a task whose code is known here.
    """

    def __init__(
        self, desk: Desk, check_args: Callable[[str, Mapping[str, Any]], None] | None = None
    ) -> None:
        self._desk = desk
        self._check_args = check_args

    def upsert(
        self,
        name: str,
        *,
        task: str,
        cron: str | None = None,
        every: str | float | timedelta | None = None,
        args: Mapping[str, Any] | None = None,
        reason: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> str:
        """Define a schedule, or change its definition; returns `created`, `changed` or `same`.

        cron or every, and further options, as for `@app.schedule`. A pause stays; another expression, interval,
        zone or start begins anew from now. Raises InvalidInput for what `define_schedule` refuses.
        """
        definition = define_schedule(name=name, task=task, cron=cron, every=every, args=args, **options)
        if self._check_args is not None:
            self._check_args(task, args or {})
        return self.put(definition, reason=reason)

    def put(self, definition: ScheduleDefinition, *, reason: str | None = None) -> str:
        """The same for a definition that is made already."""
        self._desk.need_reason(reason)
        parameters = {"definition": definition.as_json(), "source": self._desk.via, "defined_in": None}
        return str(self._desk.value("put_schedule", {**parameters, **self._deed(reason)}))

    def list(self) -> Sequence[ScheduleRow]:
        """Every schedule, by name."""
        return self._desk.rows(ScheduleRow, "schedule_status", {"name": None})

    def get(self, name: str) -> ScheduleRow:
        """One schedule. Raises NotFoundError."""
        rows = self._desk.rows(ScheduleRow, "schedule_status", {"name": check_schedule_name(name)})
        if not rows:
            raise _unknown(name)
        return rows[0]

    def runs(self, name: str, *, limit: int = RUNS_LIMIT) -> Sequence[ScheduleRun]:
        """A schedule's fire log, newest first; also of one that was deleted."""
        return self._desk.rows(
            ScheduleRun, "schedule_runs", {"name": check_schedule_name(name), "limit": checked_limit(limit)}
        )

    def next(self, name: str, *, count: int = PREVIEW_FIRES) -> Preview:
        """A stored schedule's next fires after the database's now, with notes on clock changes.

        Raises NotFoundError; ConflictError if it does not fire at the moment.
        """
        row = self.get(name)
        if row.state in {"paused", "orphaned"}:
            raise ConflictError(f"schedule {name}: is {row.state}, so it has no next fire")
        return preview(row.timing, after=self._desk.value("scheduler_clock"), count=count)

    def preview(
        self,
        cron: str | None = None,
        *,
        every: str | float | timedelta | None = None,
        tz: str = "UTC",
        after: datetime | None = None,
        count: int = PREVIEW_FIRES,
    ) -> Preview:
        """What an expression or interval would do; asks no database. `after`: default now, by this host's clock."""
        return preview_of(cron, every=every, tz=tz, after=after, count=count)

    def pause(self, name: str, *, reason: str | None = None) -> datetime:
        """Stop a schedule; returns since when. When this returns, it enqueues nothing more. Raises NotFoundError."""
        since: datetime | None = self._do("pause_schedule", name, reason)
        if since is None:
            raise _unknown(name)
        return since

    def resume(self, name: str, *, reason: str | None = None) -> bool:
        """Let it fire again, from now on; False if it was not paused. Raises NotFoundError."""
        if self._do("resume_schedule", name, reason):
            return True
        self.get(name)
        return False

    def run_now(self, name: str, *, reason: str | None = None) -> int:
        """Enqueue its job now and return the id; the next fire stays as it was. Raises NotFoundError."""
        job_id: int | None = self._do("run_schedule", name, reason)
        if job_id is None:
            raise _unknown(name)
        return job_id

    def delete(self, name: str, *, reason: str | None = None) -> None:
        """Delete a schedule; its fire log and its jobs stay. Raises NotFoundError.

        One that code defines comes back when a scheduler starts with that code.
        """
        if not self._do("delete_schedule", name, reason):
            raise _unknown(name)

    def _do(self, deed: str, name: str, reason: str | None) -> Any:
        self._desk.need_reason(reason)
        return self._desk.value(deed, {"name": check_schedule_name(name), **self._deed(reason)})

    def _deed(self, reason: str | None) -> dict[str, str | None]:
        return {"reason": reason, "actor": self._desk.actor, "via": self._desk.via}


def preview_of(
    cron: str | None,
    *,
    every: str | float | timedelta | None = None,
    tz: str = "UTC",
    after: datetime | None = None,
    count: int = PREVIEW_FIRES,
) -> Preview:
    """As Schedules.preview, without a desk."""
    definition = define_schedule(name="preview", task="preview", cron=cron, every=every, tz=tz)
    return preview(definition.timing, after=after or datetime.now(UTC), count=count)


def _unknown(name: str) -> NotFoundError:
    return NotFoundError(f"schedule {name}: not known; `pgqueue schedules list` shows the known ones")
