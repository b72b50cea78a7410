"""From a run's end to the record the settler writes; and the attempt's line for logs and metrics.

Between the executors (what happened) and the settler (how to write it down); decides nothing itself.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from pgqueue.core.decide import Kind, Settlement, decide
from pgqueue.core.events import AttemptEnded
from pgqueue.core.failure import describe
from pgqueue.core.payload import decode_args
from pgqueue.core.retry import Retry
from pgqueue.core.signature import check_call
from pgqueue.errors import InvalidArguments, InvalidRetry
from pgqueue.worker.claimed import ClaimedJob
from pgqueue.worker.state import WorkerState


@dataclass(slots=True)
class Prepared:
    """A job whose arguments fit its handler."""

    args: dict[str, Any]
    extras: dict[str, Any]
    policy: Retry
    max_attempts: int
    timeout_s: float | None
    span_ids: tuple[str, str] | None = None  # trace and span of this attempt, where it is traced


@dataclass(slots=True)
class Ended:
    """A finished run, ready for the settler."""

    job: ClaimedJob
    settlement: Settlement
    buffered_s: float
    run_s: float
    max_attempts: int
    headers: dict[str, str] | None = None
    idempotency_key: str | None = None
    total_s: float | None = None  # from the moment its first attempt was due; None: it did not start
    span_ids: tuple[str, str] | None = None

    def as_record(self) -> dict[str, Any]:
        """The row that `settle_otherwise` reads."""
        settlement, failure = self.settlement, self.settlement.failure
        return {
            "id": self.job.id,
            "claim_id": self.job.claim.id,
            "kind": settlement.kind.value,
            "reason": settlement.reason,
            "delay_s": settlement.delay_s,
            "max_attempts": self.max_attempts,
            "buffered_s": self.buffered_s,
            "run_s": self.run_s,
            "error_type": failure.error_type if failure else None,
            "error_message": failure.message if failure else None,
            "error_fingerprint": failure.fingerprint if failure else None,
            "traceback": failure.traceback if failure else None,
            "note": settlement.warning,
        }

    def as_event(self, settle_s: float) -> AttemptEnded:
        """The attempt's canonical line; its settlement took `settle_s`."""
        job, settlement, failure = self.job, self.settlement, self.settlement.failure
        return AttemptEnded(
            job_id=job.id,
            task=job.task_name,
            queue=job.queue,
            attempt=job.attempt,
            max_attempts=self.max_attempts,
            outcome=settlement.kind.value,
            reason=settlement.reason,
            wait_s=max(0.0, job.wait_s + self.buffered_s),
            run_s=self.run_s,
            worker_id=job.claim.worker_id,
            claim_id=job.claim.id,
            error_type=failure.error_type if failure else None,
            error_message=failure.message if failure else None,
            error_fingerprint=failure.fingerprint if failure else None,
            sqlstate=failure.sqlstate if failure else None,
            next_delay_s=settlement.delay_s if settlement.kind in {Kind.RETRY, Kind.SNOOZED} else None,
            warning=settlement.warning,
            headers=self.headers,
            idempotency_key=self.idempotency_key,
            total_s=None
            if self.total_s is None or settlement.kind in {Kind.RETRY, Kind.SNOOZED, Kind.RELEASED}
            else self.total_s + settle_s,
            settle_s=settle_s,
            span_ids=self.span_ids,
        )


def prepare(state: WorkerState, job: ClaimedJob, *, batch: bool = False) -> Prepared:
    """Decode a job's arguments and find the policy that applies; raises InvalidArguments if they do not fit."""
    task = job.task
    assert task is not None  # noqa: S101 - unknown tasks were put aside by the claimer
    extras = job.extras()
    policy, max_attempts = policy_of(state, job, extras)
    args = decode_args(job.args_text)
    # A batch handler takes a list of jobs; what is in their arguments is for it to say.
    misfit = None if batch else check_call(task.signature, args)
    if misfit is not None:
        raise InvalidArguments("args", misfit)
    timeout_s = extras.get("timeout_s")
    return Prepared(
        args, extras, policy, max_attempts, task.timeout_s if timeout_s is None else float(timeout_s)
    )


def policy_of(state: WorkerState, job: ClaimedJob, extras: dict[str, Any]) -> tuple[Retry, int]:
    """The retry policy of a job and the starts it allows: the job's own, else the task's as configured now."""
    stored = extras.get("retry")
    if stored is not None:
        try:
            return Retry.from_json(stored), job.max_attempts
        except InvalidRetry:
            pass  # written by hand in SQL, say; the task's own policy is the sane reading
    policy = state.registry.policy(job.task_name, job.queue)
    return policy, policy.max_attempts


def ended_badly(
    state: WorkerState,
    job: ClaimedJob,
    error: BaseException,
    prepared: Prepared | None,
    started: float,
    *,
    cancel_reason: str | None = None,
) -> Ended:
    """Decide what becomes of a run that raised."""
    run_s = time.monotonic() - started
    extras = prepared.extras if prepared is not None else {}
    policy, max_attempts = (
        (prepared.policy, prepared.max_attempts)
        if prepared is not None
        else policy_of(state, job, _safe_extras(job))
    )
    failure = describe(error, task=job.task_name, redact=state.redactor)
    settlement = decide(
        error,
        policy=policy,
        attempt=job.attempt,
        max_attempts=max_attempts,
        random_unit=random.random(),  # noqa: S311 - jitter
        failure=failure,
        cancelled=cancel_reason == "cancelled",
        draining=cancel_reason == "shutdown",
        handler_started=prepared is not None,
    )
    return Ended(
        job,
        settlement,
        started - job.claim.received,
        run_s,
        max_attempts,
        extras.get("headers"),
        extras.get("idempotency_key"),
        total_s(job, extras, started - job.claim.received, run_s),
        None if prepared is None else prepared.span_ids,
    )


def total_s(job: ClaimedJob, extras: dict[str, Any], buffered_s: float, run_s: float) -> float:
    """Seconds from the moment the job's first attempt was due to the end of this one: what the customer felt.

    A snooze, a release or a rescue before the first failure is told by no row: then it counts from the new moment.
    """
    first_due, claimed = extras.get("first_due_epoch"), extras.get("claimed_epoch")
    waited_s: float = job.wait_s
    if isinstance(first_due, int | float) and isinstance(claimed, int | float):
        waited_s = claimed - first_due
    return max(0.0, waited_s + buffered_s + run_s)


def not_to_start(state: WorkerState, job: ClaimedJob) -> Ended | None:
    """How a claimed job ends that must not start now; None if it may."""
    if job.queue in state.paused or not state.may_start():
        # Given back, not dropped: a lease that ran out unseen is renewed by the next beat, and then nobody would
        # rescue what this process forgot. If the claim was lost in truth, the fence refuses.
        return put_aside(job, Kind.RELEASED, "released")
    return put_aside(job, Kind.DEAD, "expired") if job.expired else None


def put_aside(job: ClaimedJob, kind: Kind, reason: str) -> Ended:
    """A claimed job that did not start: released, held or expired."""
    return Ended(
        job, Settlement(kind, reason=reason), time.monotonic() - job.claim.received, 0.0, job.max_attempts
    )


def _safe_extras(job: ClaimedJob) -> dict[str, Any]:
    try:
        return job.extras()
    except ValueError:
        return {}
