"""What becomes of a message that a sink did not take: tried again, or a dead letter that blocks its key or not. Pure.

Called by relays, which hand in the clock and the random number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pgqueue.core.durations import parse_duration
from pgqueue.core.retry import Retry, backoff_s, wants_retry
from pgqueue.errors import InvalidTime, Reject, RetryAfter, SinkUnavailable, Snooze

POISON: Final = ("block", "skip")
SINK_RETRY: Final = Retry(max_retries=12, initial_delay="1s", max_delay="5m")
"""About half an hour of tries."""

FAILURES_TO_OPEN: Final = 5
OPEN_FIRST_S: Final = 1.0
OPEN_MAX_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`fate`: retry, block or skip. `counts`: whether the try is one of those that the policy allows."""

    fate: str
    delay_s: float = 0.0
    counts: bool = True
    reason: str | None = None


def judge(error: BaseException, *, retry: Retry, on_poison: str, tries: int, random_unit: float) -> Verdict:
    """What becomes of a message after `error`; `tries` counts its failed tries that count, this one not included."""
    if isinstance(error, SinkUnavailable):
        after_s = error.retry_after_s
        delay_s = retry.initial_delay_s if after_s is None else min(max(after_s, 0), retry.max_delay_s)
        return Verdict("retry", delay_s, counts=False)
    chosen_s = _chosen_delay_s(error)
    if isinstance(error, Snooze) and chosen_s is not None:
        return Verdict("retry", chosen_s, counts=False)
    reason = _end_reason(error, retry, tries)
    if reason is not None:
        return Verdict(on_poison, reason=reason)
    if chosen_s is None:
        chosen_s = backoff_s(retry, tries + 1, random_unit).delay_s
    return Verdict("retry", chosen_s)


def _end_reason(error: BaseException, retry: Retry, tries: int) -> str | None:
    if isinstance(error, Reject):
        return "rejected"
    if not wants_retry(retry, error):
        return "gave_up"
    return "max_retries" if tries + 1 >= retry.max_attempts else None


def _chosen_delay_s(error: BaseException) -> float | None:
    if not isinstance(error, Snooze | RetryAfter):
        return None
    try:
        return parse_duration(error.delay, field="delay")
    except InvalidTime:  # what a sink raised makes no sense: the policy's own delay is the sane reading
        return None


class Breaker:
    """Keeps relays from a sink that is down: opens after failures in a row, then lets one line try.

    Failures of one line alone do not open it unless the sink could not be reached: a poison message is no outage.
    Not thread-safe; moments are seconds of any steady clock.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._last_lane = ""
        self._open_s = 0.0
        self._open_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it is open, or tries with one line whether it may close."""
        return self._open_s > 0

    def lines(self, most: int, busy: int, now: float) -> int:
        """How many more lines may be taken now, of at most `most`, while `busy` are at work."""
        if not self.is_open:
            return max(most - busy, 0)
        return 1 if now >= self._open_until and not busy else 0

    def took(self) -> bool:
        """The sink took a message; True if that closed the breaker."""
        was_open = self.is_open
        self._failures, self._last_lane, self._open_s = 0, "", 0.0
        return was_open

    def refused(self, lane: str, *, unreachable: bool, now: float) -> float | None:
        """A line failed; for how many seconds that opened the breaker, or None."""
        if not unreachable and lane == self._last_lane and not self.is_open:
            return None
        self._last_lane = lane
        self._failures += 1
        if self._failures < FAILURES_TO_OPEN and not self.is_open:
            return None
        self._open_s = min(max(self._open_s * 2, OPEN_FIRST_S), OPEN_MAX_S)
        self._open_until = now + self._open_s
        return self._open_s
