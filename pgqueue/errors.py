"""Every error pgqueue raises, as one tree. Imported by all rooms, imports none.

PgQueueError
├── InvalidInput                 refused before the first byte went to Postgres
│   ├── InvalidArguments         a job's arguments (not JSON, too big, wrong for the handler)
│   ├── InvalidName              queue, task, topic, key
│   ├── InvalidTime              delay, run_at, expires_at, durations
│   ├── InvalidOption            priority, limits, headers, tags
│   ├── InvalidRetry             a retry policy
│   ├── InvalidSchedule          a cron expression or an interval
│   ├── InvalidTimezone
│   └── InvalidFilter            a filter that cannot be read; the message points at the place
├── ConfigurationError           settings, registration, application import (exit 78)
│   ├── UnknownTask
│   └── DuplicateTask
├── DatabaseError
│   ├── DatabaseUnreachable      exit 5
│   ├── SchemaMismatch           exit 6
│   ├── ClaimLost                the fence refused: another claim of the job is newer
│   └── UnknownOutcome           the answer to COMMIT was lost and could not be read back
├── ConflictError                exit 4: the object's state does not allow the action
│   └── DuplicateKey             an idempotency key has a job already, and the call asked to be told
├── NotFoundError                exit 3
├── SinkUnavailable              a sink of the outbox cannot be reached at all: no fault of the message
├── TransactionMisuse            a handler ended its job's transaction itself, or hid a database error in it
└── JobFailed                    what `jobs.wait` raises for a job that ended badly
    └── JobCancelled

Outcomes that a handler raises (they are signals, not failures): Reject, Snooze, RetryAfter.
A recorded step whose result cannot be stored raises StepRefused, which is a Reject.
"""

from __future__ import annotations

from datetime import timedelta


class PgQueueError(Exception):
    """Base of every error of this package."""

    exit_code: int = 1


class InvalidInput(PgQueueError, ValueError):
    """A value was refused before any statement was sent.

    `field` is the option or argument's name, `path` the place inside it (`$.items[3].price`),
    `reason` what is wrong, `limit` the bound that was crossed, if there is one. The offending
    value itself is never part of the message.
    """

    exit_code = 2

    def __init__(self, field: str, reason: str, *, path: str | None = None, limit: str | None = None) -> None:
        self.field = field
        self.path = path
        self.reason = reason
        self.limit = limit
        where = field if path is None else f"{field} at {path}"
        super().__init__(f"{where}: {reason}" + (f" (limit: {limit})" if limit else ""))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_invalid, (type(self), self.field, self.reason, self.path, self.limit))


def _rebuild_invalid(
    kind: type[InvalidInput], field: str, reason: str, path: str | None, limit: str | None
) -> InvalidInput:
    return kind(field, reason, path=path, limit=limit)


class InvalidArguments(InvalidInput):
    """A job's arguments are not JSON, too large, or do not fit the handler's signature."""


class InvalidName(InvalidInput):
    """A queue, task, topic or key breaks the grammar of names."""


class InvalidTime(InvalidInput):
    """A delay, a moment or a duration is naive, negative, infinite or out of range."""


class InvalidOption(InvalidInput):
    """Another option of a job has the wrong type or lies out of range."""


class InvalidRetry(InvalidInput):
    """A retry policy contradicts itself or names an unknown strategy."""


class InvalidSchedule(InvalidInput):
    """A cron expression or interval is malformed, unsupported, or never fires."""


class InvalidTimezone(InvalidInput):
    """A time zone is not one of the IANA names this Python knows."""


class InvalidFilter(InvalidInput):
    """A filter cannot be read. `text` is the filter, `position` where the fault begins; the message shows both."""

    def __init__(self, text: str, position: int, reason: str, *, limit: str | None = None) -> None:
        self.text = text
        self.position = position
        super().__init__("filter", reason, limit=limit)
        shown = "".join(
            character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
        )
        self.args = (f"{self.args[0]}\n  {shown}\n  {' ' * position}^",)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_filter, (self.text, self.position, self.reason, self.limit))


def _rebuild_filter(text: str, position: int, reason: str, limit: str | None) -> InvalidFilter:
    return InvalidFilter(text, position, reason, limit=limit)


class ConfigurationError(PgQueueError):
    """Settings, registration or the application's import are wrong; the message lists every problem."""

    exit_code = 78


class UnknownTask(ConfigurationError):
    """No task of that name is registered with this App."""


class DuplicateTask(ConfigurationError):
    """Two functions were registered under one task name."""


class DatabaseError(PgQueueError):
    """Postgres answered in a way this package cannot go on from."""


class DatabaseUnreachable(DatabaseError):
    """No connection could be opened; the message names the host and the cause, never the password."""

    exit_code = 5


class SchemaMismatch(DatabaseError):
    """The database's schema is not the revision this code expects."""

    exit_code = 6


class ClaimLost(DatabaseError):
    """The job is no longer claimed by this run: nothing of it was committed."""


class UnknownOutcome(DatabaseError):
    """The connection was lost during COMMIT and the truth could not be read back in time."""


class ConflictError(PgQueueError):
    """The object's current state does not allow the action."""

    exit_code = 4


class DuplicateKey(ConflictError):
    """An idempotency key has a job already; `job_id` says which. Raised only where `on_conflict="raise"` asks for it."""

    def __init__(self, task: str, job_id: int) -> None:
        self.task = task
        self.job_id = job_id
        super().__init__(
            f"task {task}: job {job_id} has this idempotency key already, nothing was enqueued; "
            "use that job, or another key"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (DuplicateKey, (self.task, self.job_id))


class NotFoundError(PgQueueError):
    """No object of that name or id."""

    exit_code = 3


class SinkUnavailable(PgQueueError):
    """A sink of the outbox cannot be reached: the message waits and loses no try.

    A sink may raise it. `retry_after_s`: when the receiver said to come back; None = as the policy says.
    """

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(reason)


class TransactionMisuse(PgQueueError):
    """A handler committed or rolled back its job's transaction, or hid a database error in it."""


class JobFailed(PgQueueError):
    """The awaited job ended in the dead letters; `job_id` and `reason` say which and why."""

    def __init__(self, job_id: int, reason: str) -> None:
        self.job_id = job_id
        self.reason = reason
        super().__init__(f"job {job_id} ended badly: {reason}")


class JobCancelled(JobFailed):
    """The awaited job was cancelled."""


class Outcome(Exception):
    """Base of what a handler raises to choose its job's fate."""


class Reject(Outcome):
    """Dead-letter the job at once, with `reason` as the explanation; no further attempt is made."""

    def __init__(self, reason: str = "rejected by the handler") -> None:
        self.reason = reason
        super().__init__(reason)


class Snooze(Outcome):
    """Run the job again after `delay` ("10m", seconds or timedelta); costs no attempt."""

    def __init__(self, delay: str | float | timedelta) -> None:
        self.delay = delay
        super().__init__(f"snoozed for {delay}")


class RetryAfter(Outcome):
    """Count this attempt as failed and retry after `delay`, whatever the policy's backoff says."""

    def __init__(
        self, delay: str | float | timedelta, reason: str = "retry requested by the handler"
    ) -> None:
        self.delay = delay
        self.reason = reason
        super().__init__(reason)


class StepRefused(Reject):
    """A step's call was made, but its result is no JSON that can be stored: the job is dead-lettered, not run again.

    That this happened is recorded, so that the call is not repeated. A redrive forgets it and calls anew.
    """

    def __init__(self, step: str, why: str) -> None:
        self.step = step
        self.why = why
        super().__init__(
            f"step {step}: its call was made, but its result cannot be recorded: {why}; return plain JSON"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (StepRefused, (self.step, self.why))
