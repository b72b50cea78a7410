"""From a run's end to its job's fate: one row for each case, and the order in which cases win."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
from datetime import timedelta

import pytest

from pgqueue.core.decide import JobTimeout, Kind, Settlement, decide
from pgqueue.core.failure import Failure
from pgqueue.core.retry import Retry
from pgqueue.errors import InvalidArguments, InvalidTime, JobCancelled, Reject, RetryAfter, Snooze

FAILURE = Failure("ValueError", "boom", "0123456789abcdef", None, None)
POLICY = Retry(max_retries=2, initial_delay="2s", max_delay="5m")
PICKY = Retry(max_retries=2, retry_on=(OSError,), give_up_on=(ConnectionError,))


def settle(error: BaseException, *, policy: Retry = POLICY, attempt: int = 1, **options) -> Settlement:
    options = {"max_attempts": 3, "random_unit": 0.5, "failure": FAILURE} | options
    return decide(error, policy=policy, attempt=attempt, **options)


def retry(delay_s: float, **rest) -> Settlement:
    return Settlement(Kind.RETRY, delay_s=delay_s, reason="retry", failure=FAILURE, **rest)


def dead(reason: str, **rest) -> Settlement:
    return Settlement(Kind.DEAD, reason=reason, failure=FAILURE, **rest)


SNOOZED = Settlement(Kind.SNOOZED, delay_s=600, reason="snoozed")
RELEASED = Settlement(Kind.RELEASED, reason="released")
CANCELLED = Settlement(Kind.CANCELLED, reason="cancel_requested")


@pytest.mark.parametrize(
    ("error", "options", "settlement"),
    [
        # ordinary failures: backoff grows with the attempt, until the attempts are used up
        (ValueError(), {}, retry(1.5)),
        (ValueError(), {"attempt": 2}, retry(3)),
        (ValueError(), {"attempt": 3}, dead("max_retries")),
        (ValueError(), {"attempt": 4}, dead("max_retries")),
        (ValueError(), {"max_attempts": 1}, dead("max_retries")),
        (ValueError(), {"attempt": 3, "max_attempts": 9}, retry(6)),
        # exceptions that are no Exceptions are failures like others
        (KeyboardInterrupt(), {}, retry(1.5)),
        (SystemExit(), {}, retry(1.5)),
        (asyncio.CancelledError(), {}, retry(1.5)),
        (JobCancelled(7, "cancelled"), {}, retry(1.5)),
        (ExceptionGroup("g", [ValueError(), KeyError()]), {}, retry(1.5)),
        # the policy's filters
        (ValueError(), {"policy": PICKY}, dead("gave_up")),
        (OSError(), {"policy": PICKY}, retry(1.5)),
        (ConnectionError(), {"policy": PICKY}, dead("gave_up")),
        (ConnectionError(), {"policy": PICKY, "attempt": 3}, dead("gave_up")),
        # timeouts
        (JobTimeout(), {}, retry(1.5)),
        (JobTimeout(), {"attempt": 3}, dead("max_retries")),
        (JobTimeout(), {"policy": Retry(give_up_on=("JobTimeout",))}, dead("gave_up")),
        (JobTimeout(), {"policy": Retry(give_up_on=(TimeoutError,))}, dead("gave_up")),
        (JobTimeout(), {"policy": Retry(retry_on=(ValueError,))}, dead("gave_up")),
        # what a handler asks for
        (Reject("no such ride"), {}, dead("rejected")),
        (Reject(), {"cancelled": True, "draining": True}, dead("rejected")),
        (Snooze("10m"), {}, SNOOZED),
        (Snooze(600), {"attempt": 3}, SNOOZED),
        (Snooze(timedelta(minutes=10)), {"policy": PICKY}, SNOOZED),
        (RetryAfter("30s"), {}, retry(30)),
        (RetryAfter(0), {"attempt": 2}, retry(0)),
        (RetryAfter("30s"), {"attempt": 3}, dead("max_retries")),
        (RetryAfter("30s"), {"policy": PICKY}, retry(30)),
        (RetryAfter("1h"), {}, retry(3_600)),
        # a task group hides none of it when it holds one exception alone
        (ExceptionGroup("g", [Reject()]), {}, dead("rejected")),
        (ExceptionGroup("g", [ExceptionGroup("h", [Snooze("10m")])]), {}, SNOOZED),
        (ExceptionGroup("g", [Reject(), ValueError()]), {}, retry(1.5)),
        # arguments
        (InvalidArguments("args", "x"), {}, dead("bad_args")),
        (InvalidArguments("args", "x"), {"policy": PICKY}, dead("bad_args")),
        (InvalidArguments("args", "x"), {"handler_started": True}, retry(1.5)),
        (InvalidTime("delay", "x"), {}, retry(1.5)),
        # cancellation: whatever was raised, the job does not start again
        (asyncio.CancelledError(), {"cancelled": True}, CANCELLED),
        (concurrent.futures.CancelledError(), {"cancelled": True}, CANCELLED),
        (JobCancelled(7, "cancelled"), {"cancelled": True}, CANCELLED),
        (asyncio.CancelledError(), {"cancelled": True, "draining": True}, CANCELLED),
        (BaseExceptionGroup("g", [asyncio.CancelledError()]), {"cancelled": True}, CANCELLED),
        (Snooze("10m"), {"cancelled": True}, Settlement(Kind.CANCELLED, reason="cancel_requested", failure=FAILURE)),
        (ValueError(), {"cancelled": True}, Settlement(Kind.CANCELLED, reason="cancel_requested", failure=FAILURE)),
        # a worker that goes takes back only what it interrupted itself
        (asyncio.CancelledError(), {"draining": True}, RELEASED),
        (JobCancelled(7, "draining"), {"draining": True, "attempt": 3}, RELEASED),
        (ValueError(), {"draining": True}, retry(1.5)),
        (JobTimeout(), {"draining": True}, retry(1.5)),
        (Snooze("10m"), {"draining": True}, SNOOZED),
    ],
)  # fmt: skip
@pytest.mark.proves("P6", "P18", "P19", "I13")
def test_the_fate_of_a_job_whose_run_raised(error, options, settlement):
    assert settle(error, **options) == settlement


class CancelledError(Exception):
    """A stranger's class of the same short name."""


def test_only_the_standard_librarys_cancellation_is_one():
    assert settle(CancelledError(), draining=True).kind is Kind.RETRY


class Derived(asyncio.CancelledError):
    pass


def test_a_class_derived_from_the_cancellation_is_one():
    assert settle(Derived(), draining=True) == RELEASED


@pytest.mark.proves("I17")
@pytest.mark.parametrize("outcome", [Snooze, RetryAfter])
@pytest.mark.parametrize("delay", [-1, math.nan, "10", "soon", None, True, 1e15, timedelta.max])
def test_an_unusable_delay_counts_as_a_failed_attempt_and_is_reported(outcome, delay):
    settlement = settle(outcome(delay))
    assert (settlement.kind, settlement.delay_s) == (Kind.RETRY, 1.5)
    assert settlement.warning.startswith(f"{outcome.__name__}: its delay ")
    last = settle(outcome(delay), attempt=3)
    assert (last.kind, last.reason) == (Kind.DEAD, "max_retries")
    assert last.warning == settlement.warning


@pytest.mark.proves("I42")
def test_a_backoff_function_that_fails_is_reported_with_the_settlement():
    settlement = settle(ValueError(), policy=Retry(backoff_strategy=lambda n: math.nan))
    assert (settlement.kind, settlement.delay_s) == (Kind.RETRY, 1.5)
    assert "backoff function" in settlement.warning


def test_the_number_of_failures_and_the_random_number_reach_the_policy():
    seen = []
    settle(ValueError(), attempt=2, policy=Retry(backoff_strategy=lambda n: seen.append(n) or 1))
    assert seen == [2]
    assert settle(ValueError(), random_unit=0.0).delay_s == 1
    assert settle(ValueError(), random_unit=0.999).delay_s == pytest.approx(2, abs=0.01)


def test_a_timeout_is_a_timeout_error():
    assert issubclass(JobTimeout, TimeoutError)


def test_the_defaults_of_a_settlement_are_those_of_success():
    settlement = Settlement(Kind.SUCCEEDED, result='{"a":1}')
    assert (settlement.delay_s, settlement.reason, settlement.failure, settlement.warning) == (
        0,
        "",
        None,
        None,
    )
