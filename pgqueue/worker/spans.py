"""The span around an attempt, where the application traces. Called by the executors, in the thread or task of the handler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from pgqueue import tracing
from pgqueue.core.decide import Kind
from pgqueue.core.events import TraceIgnored
from pgqueue.errors import JobCancelled, Snooze
from pgqueue.tracing import Message, Processing
from pgqueue.worker.claimed import ClaimedJob
from pgqueue.worker.outcome import Ended, Prepared
from pgqueue.worker.state import WorkerState


def begin_span(
    state: WorkerState, jobs: Sequence[tuple[ClaimedJob, Prepared]], *, many: bool = False
) -> Processing | None:
    """Begin the span of a job's attempt, or (`many`) of one call for several; None where nobody traces.

    What runs until its `close()` is inside it.
    """
    if not tracing.is_tracing():
        return None
    messages = [_message(state, job, prepared) for job, prepared in jobs]
    span = tracing.processing(
        messages,
        state.settings.trace_mode,
        ignored=lambda message: state.events.emit(TraceIgnored(message.job_id)),
        many=many,
    )
    if span is not None:
        for _, prepared in jobs:
            prepared.span_ids = span.ids
    return span


@contextlib.contextmanager
def spanning(
    state: WorkerState, jobs: Sequence[tuple[ClaimedJob, Prepared]], *, many: bool = False
) -> Iterator[None]:
    """A span around the handler of jobs that share a transaction: what becomes of each is decided later, together."""
    span = begin_span(state, jobs, many=many)
    if span is None:
        yield
        return
    try:
        yield
        span.outcome("returned")
    except BaseException as error:
        # Its text may quote a row; the redacted one is on the attempt's log line.
        name = type(error).__name__
        span.outcome("raised", (name, "", None), failed=not isinstance(error, Snooze | JobCancelled))
        raise
    finally:
        span.close()


def end_span(span: Processing | None, ended: Ended | None) -> None:
    """Tell a span how its attempt ended badly; None: its claim was lost, or ended by somebody else."""
    if span is None:
        return
    if ended is None:
        span.outcome("taken_away")
        return
    failure, kind = ended.settlement.failure, ended.settlement.kind
    error = None if failure is None else (failure.error_type, failure.message, failure.traceback)
    span.outcome(kind.value, error, failed=kind in {Kind.RETRY, Kind.DEAD})


def _message(state: WorkerState, job: ClaimedJob, prepared: Prepared) -> Message:
    claimed = prepared.extras.get("claimed_epoch")
    return Message(
        job_id=job.id,
        task=job.task_name,
        queue=job.queue,
        attempt=job.attempt,
        max_attempts=prepared.max_attempts,
        priority=job.priority,
        claim_id=job.claim.id,
        worker_id=state.worker_id,
        headers=prepared.extras.get("headers"),
        age_s=claimed - job.created_epoch if isinstance(claimed, int | float) else None,
    )
