"""Waiting for a condition with a deadline, never for time. Used by every test that watches another process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_START_S = 0.002
POLL_MAX_S = 0.05


def wait_for(predicate: Callable[[], T], timeout_s: float = 10.0, what: str = "the condition") -> T:
    """Call `predicate` until it returns something true and return that; fail the test at the deadline.

    An exception in the predicate is the test's failure: it is not retried.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = POLL_START_S
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {timeout_s:g} s; last seen: {value!r}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, POLL_MAX_S)


async def wait_for_async(
    predicate: Callable[[], Awaitable[T]], timeout_s: float = 10.0, what: str = "the condition"
) -> T:
    """The same for a coroutine function, leaving the event loop free between two looks."""
    deadline = time.monotonic() + timeout_s
    pause_s = POLL_START_S
    while True:
        value = await predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {timeout_s:g} s; last seen: {value!r}")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, POLL_MAX_S)
