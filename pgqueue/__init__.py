"""pgqueue: a job queue that lives in your Postgres. Jobs and their effects commit together.

The front door: names only, each from the room that makes it.
"""

from __future__ import annotations

from pgqueue.app import App
from pgqueue.core.job import Job
from pgqueue.core.retry import Retry
from pgqueue.errors import (
    ClaimLost,
    ConfigurationError,
    ConflictError,
    DatabaseError,
    DatabaseUnreachable,
    DuplicateTask,
    InvalidArguments,
    InvalidInput,
    InvalidName,
    InvalidOption,
    InvalidRetry,
    InvalidSchedule,
    InvalidTime,
    InvalidTimezone,
    JobCancelled,
    JobFailed,
    NotFoundError,
    PgQueueError,
    Reject,
    RetryAfter,
    SchemaMismatch,
    Snooze,
    TransactionMisuse,
    UnknownOutcome,
    UnknownTask,
)
from pgqueue.producer.enqueue import Enqueued
from pgqueue.task import BoundTask, Task
from pgqueue.version import VERSION as __version__
from pgqueue.worker.context import AsyncJobContext, JobContext
from pgqueue.worker.runtime import Worker

__all__ = [
    "App",
    "AsyncJobContext",
    "BoundTask",
    "ClaimLost",
    "ConfigurationError",
    "ConflictError",
    "DatabaseError",
    "DatabaseUnreachable",
    "DuplicateTask",
    "Enqueued",
    "InvalidArguments",
    "InvalidInput",
    "InvalidName",
    "InvalidOption",
    "InvalidRetry",
    "InvalidSchedule",
    "InvalidTime",
    "InvalidTimezone",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "NotFoundError",
    "PgQueueError",
    "Reject",
    "Retry",
    "RetryAfter",
    "SchemaMismatch",
    "Snooze",
    "Task",
    "TransactionMisuse",
    "UnknownOutcome",
    "UnknownTask",
    "Worker",
    "__version__",
]
