"""pgqueue: a job queue that lives in your Postgres. Jobs and their effects commit together.

The front door: names only, each from the room that makes it, which is entered when the name is first used: a
command line that lists jobs need not load what runs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pgqueue.errors import (
    ClaimLost,
    ConfigurationError,
    ConflictError,
    DatabaseError,
    DatabaseUnreachable,
    DuplicateKey,
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
    SinkUnavailable,
    Snooze,
    StepRefused,
    TransactionMisuse,
    UnknownOutcome,
    UnknownTask,
)

if TYPE_CHECKING:
    from pgqueue.app import App
    from pgqueue.core.job import Job
    from pgqueue.core.message import Message
    from pgqueue.core.retry import Retry
    from pgqueue.producer.enqueue import Enqueued, EnqueuedMany
    from pgqueue.task import BoundTask, Task
    from pgqueue.version import VERSION as __version__
    from pgqueue.worker.context import AsyncBatchContext, AsyncJobContext, BatchContext, JobContext
    from pgqueue.worker.runtime import Worker

__all__ = [
    "App",
    "AsyncBatchContext",
    "AsyncJobContext",
    "BatchContext",
    "BoundTask",
    "ClaimLost",
    "ConfigurationError",
    "ConflictError",
    "DatabaseError",
    "DatabaseUnreachable",
    "DuplicateKey",
    "DuplicateTask",
    "Enqueued",
    "EnqueuedMany",
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
    "Message",
    "NotFoundError",
    "PgQueueError",
    "Reject",
    "Retry",
    "RetryAfter",
    "SchemaMismatch",
    "SinkUnavailable",
    "Snooze",
    "StepRefused",
    "Task",
    "TransactionMisuse",
    "UnknownOutcome",
    "UnknownTask",
    "Worker",
    "__version__",
]

_ROOMS = {
    "App": ("pgqueue.app", "App"),
    "AsyncBatchContext": ("pgqueue.worker.context", "AsyncBatchContext"),
    "AsyncJobContext": ("pgqueue.worker.context", "AsyncJobContext"),
    "BatchContext": ("pgqueue.worker.context", "BatchContext"),
    "BoundTask": ("pgqueue.task", "BoundTask"),
    "Enqueued": ("pgqueue.producer.enqueue", "Enqueued"),
    "EnqueuedMany": ("pgqueue.producer.enqueue", "EnqueuedMany"),
    "Job": ("pgqueue.core.job", "Job"),
    "Message": ("pgqueue.core.message", "Message"),
    "JobContext": ("pgqueue.worker.context", "JobContext"),
    "Retry": ("pgqueue.core.retry", "Retry"),
    "Task": ("pgqueue.task", "Task"),
    "Worker": ("pgqueue.worker.runtime", "Worker"),
    "__version__": ("pgqueue.version", "VERSION"),
}


def __getattr__(name: str) -> Any:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(room[0]), room[1])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
