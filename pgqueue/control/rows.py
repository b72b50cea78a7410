"""What the control room answers with: one frozen row per job, dead letter, queue, worker or moment of a life.

Made by the other files of this room from named columns; read by the command line and by applications. Times are
aware datetimes, durations seconds; `args` and `result` are decoded JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job as a listing shows it, wherever it stands.

    reason: why it is held, cancelled or dead. progress: done, total, note and at, as its running handler says.
    """

    id: int
    task: str
    queue: str
    state: str
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime
    run_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    worker_id: str | None
    reason: str | None
    idempotency_key: str | None
    tags: Sequence[str]
    parent_id: int | None
    redrive_of: int | None
    redriven_as: int | None
    error_type: str | None
    error_message: str | None
    progress: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetail(JobRow):
    """One job with everything kept of it. `wait_s` and `run_s` are its last attempt's, once it has ended."""

    args: Mapping[str, Any]
    result: Any
    headers: Mapping[str, str]
    errors: Sequence[Mapping[str, Any]]
    concurrency_key: str | None
    timeout_s: float | None
    expires_at: datetime | None
    cancel_requested_at: datetime | None
    wait_s: float | None
    run_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a job is not running: one reason, in a word and in a sentence, and the command that lifts it, if one does."""

    job_id: int
    state: str
    reason: str
    sentence: str
    command: str | None

    def __str__(self) -> str:
        return self.sentence + (f"; {self.command}" if self.command else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """One moment of a job's life: what happened, by whom, why."""

    at: datetime
    event: str
    from_state: str | None
    to_state: str | None
    reason: str | None
    actor: str | None
    attempt: int | None
    detail: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One job that failed for good. `redriven_as`: the job that repeats it; None = it waits for a decision."""

    job_id: int
    task: str
    queue: str
    reason: str
    error_type: str | None
    error_message: str | None
    error_fingerprint: str | None
    attempts: int
    max_attempts: int
    priority: int
    first_failed_at: datetime
    failed_at: datetime
    created_at: datetime
    job_created_at: datetime
    worker_id: str | None
    idempotency_key: str | None
    tags: Sequence[str]
    redrive_of: int | None
    redriven_as: int | None
    redriven_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterDetail(DeadLetter):
    """One dead letter with everything kept of it."""

    args: Mapping[str, Any]
    headers: Mapping[str, str]
    errors: Sequence[Mapping[str, Any]]
    traceback: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterGroup:
    """Dead letters of one cause that wait for a decision."""

    error_fingerprint: str | None
    queue: str
    task: str
    reason: str
    error_type: str | None
    dead: int
    first_at: datetime
    last_at: datetime
    sample_message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueHealth:
    """One queue: what is due, how late the oldest due job is, who works on it, what was promised.

    Counts end at 10,001; `scheduled` counts among the 20,000 soonest of all queues. `known`: a worker served it or a
    person named it. `lag_s` leaves out what is deferred; what waits for a limit is `limited_lag_s`. `sla_s` and the
    attributes after it are what holds: set by hand, else configured, else built in.
    """

    queue: str
    known: bool
    display_name: str | None
    tier: str
    owner: str | None
    paused: bool
    due: int
    due_capped: bool
    scheduled: int
    scheduled_capped: bool
    held: int
    running: int
    lag_s: float
    limited_lag_s: float
    sla_s: float | None
    sla_target: float
    run_objective_s: float | None
    run_target: float
    dead_letter_limit: int
    workers_live: int
    slots: int
    dead_recent: int
    dead_waiting: int
    paused_at: datetime | None
    paused_by: str | None
    pause_reason: str | None
    paused_until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """One worker process. `stale`: it should have beaten by now; `has_lock`: its end is noticed at once.

    `port`: where it serves metrics and probes; `claims_lost`, `beats_late`: how often it was away for too long.
    """

    id: str
    kind: str
    status: str
    stale: bool
    host: str
    pid: int
    port: int | None
    version: str
    queues: Sequence[str]
    slots: int
    busy: int
    claimed: int
    settled: int
    failed: int
    claims_lost: int
    beats_late: int
    started_at: datetime
    beat_at: datetime
    ended_at: datetime | None
    lease_s: float
    has_lock: bool
    drain_requested: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Totals over the living workers, and what all that are still remembered have settled since they started."""

    workers: int
    slots: int
    busy: int
    settled: int
    failed: int
    clock: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Redriven:
    """A dead letter, the job that repeats it (None: there is no such letter), and whether it had one before."""

    job_id: int
    redriven_as: int | None
    redriven_before: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentWork:
    """Attempts that ended between two moments, of a task or (`task` None) a queue.

    Percentiles are interpolated in buckets that double, and None without a duration; the maxima are exact.
    `other`: cancelled, snoozed, released, rescued or held.
    """

    queue: str
    task: str | None
    since: datetime
    until: datetime
    ended: int
    succeeded: int
    retried: int
    dead: int
    other: int
    per_minute: float
    wait_p50_s: float | None
    wait_p95_s: float | None
    wait_p99_s: float | None
    wait_max_s: float | None
    run_p50_s: float | None
    run_p95_s: float | None
    run_p99_s: float | None
    run_max_s: float | None
