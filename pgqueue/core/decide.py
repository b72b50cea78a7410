"""From the way a run ended to what becomes of its job: the one place where that is decided.

Called by the executor with everything it needs to know; pure, so each case is a row of a table in tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from pgqueue.core.durations import parse_duration
from pgqueue.core.failure import Failure
from pgqueue.core.retry import Retry, backoff_s, wants_retry
from pgqueue.errors import InvalidArguments, InvalidTime, JobCancelled, Reject, RetryAfter, Snooze

# asyncio may not be imported here; both classes of the standard library are known by this name.
_CANCEL_SIGNALS = frozenset({"asyncio.exceptions.CancelledError", "concurrent.futures._base.CancelledError"})


class Kind(StrEnum):
    """The ways to end a claim."""

    SUCCEEDED = "succeeded"
    RETRY = "retry"
    DEAD = "dead"
    CANCELLED = "cancelled"
    SNOOZED = "snoozed"
    RELEASED = "released"
    HELD = "held"


class JobTimeout(TimeoutError):  # noqa: N818 - named as users see it in `give_up_on` and in the dead letters
    """A run was ended because it outlived its task's timeout."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to write for one claim: how it ends, and with which words."""

    kind: Kind
    delay_s: float = 0
    reason: str = ""
    failure: Failure | None = None
    result: str | None = None
    warning: str | None = None


def decide(
    error: BaseException,
    *,
    policy: Retry,
    attempt: int,
    max_attempts: int,
    random_unit: float,
    failure: Failure,
    cancelled: bool = False,
    draining: bool = False,
    handler_started: bool = False,
) -> Settlement:
    """Return the settlement of a run that ended with `error` in its `attempt`-th counted start.

    `cancelled`: somebody asked for the job's cancellation. `draining`: the worker is shutting down and
    took the run back. `random_unit` in [0, 1) drives the jitter. `handler_started` tells an InvalidArguments that
    the handler met in its own work (an ordinary failure) from one met while its arguments were decoded or
    bound (dead letter at once: another attempt would read the same arguments).

    First match wins: rejected · cancelled · released · snoozed · retry after · bad arguments · gave up ·
    attempts used up · retry with the policy's backoff.
    """
    error = _unwrapped(error)
    if isinstance(error, Reject):
        return Settlement(Kind.DEAD, reason="rejected", failure=failure)
    if cancelled:
        # Whatever the handler raised on its way out: a job asked to stop is not started again.
        kept = None if _is_cancel(error) else failure
        return Settlement(Kind.CANCELLED, reason="cancel_requested", failure=kept)
    if draining and _is_cancel(error):
        return Settlement(Kind.RELEASED, reason="released")
    chosen_s, warning = _chosen_delay(error)
    if isinstance(error, Snooze) and chosen_s is not None:
        return Settlement(Kind.SNOOZED, delay_s=chosen_s, reason="snoozed")
    end = _end_reason(error, policy, attempts_left=attempt < max_attempts, bad_args=not handler_started)
    if end is not None:
        return Settlement(Kind.DEAD, reason=end, failure=failure, warning=warning)
    if chosen_s is None:
        backoff = backoff_s(policy, attempt, random_unit)
        chosen_s, warning = backoff.delay_s, warning or backoff.warning
    return Settlement(Kind.RETRY, delay_s=chosen_s, reason="retry", failure=failure, warning=warning)


def _end_reason(error: BaseException, policy: Retry, *, attempts_left: bool, bad_args: bool) -> str | None:
    """Return why a failed run is the job's last, or None if it may run again."""
    if bad_args and isinstance(error, InvalidArguments):
        return "bad_args"
    # A handler that names its own delay has asked for the retry that the policy might refuse.
    if not isinstance(error, RetryAfter | Snooze) and not wants_retry(policy, error):
        return "gave_up"
    return None if attempts_left else "max_retries"


def _unwrapped(error: BaseException) -> BaseException:
    """Return what a handler's task group raised, if that is one exception alone: its Reject stays one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _chosen_delay(error: BaseException) -> tuple[float | None, str | None]:
    """Read the delay of a Snooze or RetryAfter; an unusable one makes the run an ordinary failed attempt."""
    if not isinstance(error, Snooze | RetryAfter):
        return None, None
    delay: str | float | timedelta = error.delay
    try:
        return parse_duration(delay, field="delay"), None
    except InvalidTime as refusal:
        return None, f"{type(error).__name__}: its delay {refusal.reason}; counted as a failed attempt"


def _is_cancel(error: BaseException) -> bool:
    if isinstance(error, JobCancelled):
        return True
    return any(f"{kind.__module__}.{kind.__qualname__}" in _CANCEL_SIGNALS for kind in type(error).__mro__)
