"""What becomes of a message that was not taken, when a sink is left alone, and how webhooks are signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime

import pytest

from pgqueue.core import signing
from pgqueue.core.delivery import FAILURES_TO_OPEN, OPEN_MAX_S, Breaker, judge
from pgqueue.core.message import Parcel, check_pattern, check_sink, inherited, message_of
from pgqueue.core.retry import Retry
from pgqueue.errors import ConfigurationError, InvalidName, Reject, RetryAfter, SinkUnavailable, Snooze

POLICY = Retry(
    max_retries=2, backoff_strategy="constant", initial_delay="3s", max_delay="1m", give_up_on=(KeyError,)
)


@pytest.mark.parametrize(
    ("error", "tries", "fate", "delay_s", "counts", "reason"),
    [
        (ValueError(), 0, "retry", 3, True, None),
        (ValueError(), 1, "retry", 3, True, None),
        (ValueError(), 2, "block", 0, True, "max_retries"),
        (KeyError(), 0, "block", 0, True, "gave_up"),
        (Reject("no"), 0, "block", 0, True, "rejected"),
        (RetryAfter("7s"), 0, "retry", 7, True, None),
        (RetryAfter("7s"), 2, "block", 0, True, "max_retries"),
        (RetryAfter("nonsense"), 0, "retry", 3, True, None),
        (Snooze("9s"), 99, "retry", 9, False, None),
        (SinkUnavailable("down"), 99, "retry", 3, False, None),
        (SinkUnavailable("busy", retry_after_s=20), 99, "retry", 20, False, None),
        (SinkUnavailable("busy", retry_after_s=1e9), 0, "retry", 60, False, None),
    ],
)
def test_a_failure_is_judged(
    error: BaseException, tries: int, fate: str, delay_s: float, counts: bool, reason: str | None
) -> None:
    verdict = judge(error, retry=POLICY, on_poison="block", tries=tries, random_unit=0.5)
    assert (verdict.fate, verdict.delay_s, verdict.counts, verdict.reason) == (fate, delay_s, counts, reason)


def test_a_breaker_opens_after_failures_of_different_lines_and_lets_one_try() -> None:
    breaker = Breaker()
    for number in range(FAILURES_TO_OPEN - 1):
        assert breaker.refused(f"={number}", unreachable=False, now=0) is None
    assert breaker.lines(8, 3, 0) == 5
    assert breaker.refused("=last", unreachable=False, now=0) == 1
    assert breaker.lines(8, 0, 0.9) == 0
    assert breaker.lines(8, 0, 1.0) == 1
    assert breaker.lines(8, 1, 1.0) == 0, "one line at a time"
    waits = [breaker.refused("=x", unreachable=False, now=1) for _ in range(8)]
    assert waits == [2, 4, 8, 16, 32, OPEN_MAX_S, OPEN_MAX_S, OPEN_MAX_S]
    assert breaker.took()
    assert breaker.lines(8, 0, 1) == 8
    assert not breaker.took()


def test_one_lines_failures_are_no_outage_unless_the_sink_is_out_of_reach() -> None:
    poison, down = Breaker(), Breaker()
    opened = [poison.refused("=k", unreachable=False, now=0) for _ in range(50)]
    assert opened == [None] * 50
    assert [down.refused("=k", unreachable=True, now=0) for _ in range(FAILURES_TO_OPEN)][-1] == 1


@pytest.mark.parametrize("pattern", ["a", "ride.completed", "ride.*", "*", "a.b.c.*"])
def test_patterns(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize(
    "pattern", ["", "a.*.b", "*.a", "a.", "ride*", "a b", "**", ".*", "x" * 201, 7, None]
)
def test_patterns_that_mean_nothing_are_refused(pattern: object) -> None:
    with pytest.raises(InvalidName):
        check_pattern(pattern)


@pytest.mark.parametrize("name", ["", "Kafka", "task:x", "1a", "x" * 64, None])
def test_names_of_sinks_are_refused(name: object) -> None:
    with pytest.raises(InvalidName):
        check_sink(name)


def test_a_job_that_was_no_message_has_none() -> None:
    assert message_of({}, {}) is None
    assert message_of({}, {"pgqueue.message_id": "x"}) is None
    assert inherited({"traceparent": "t", "other": "x"}) == {"traceparent": "t"}


def test_a_parcel_is_opened_with_numbers_whole() -> None:
    parcel = Parcel(
        1, "u", "t", None, '{"n": 9007199254740993}', '{"a": "b", "c": 1}', datetime.now(UTC), 0, 2
    )
    message = parcel.opened()
    assert message.payload == {"n": 9007199254740993}
    assert (message.headers, message.attempt) == ({"a": "b"}, 2)


SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()


def test_a_signature_is_the_one_of_the_published_scheme() -> None:
    headers = signing.signed("msg_1", b'{"a":1}', [signing.key_of(SECRET)], timestamp=1_700_000_000)
    digest = hmac.new(b"k" * 24, b'msg_1.1700000000.{"a":1}', hashlib.sha256).digest()
    assert headers == {
        "webhook-id": "msg_1",
        "webhook-timestamp": "1700000000",
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }
    assert signing.verify(headers, b'{"a":1}', SECRET, now=1_700_000_100) == "msg_1"


def test_a_secret_may_be_changed_without_a_gap() -> None:
    keys = [signing.key_of("n" * 16), signing.key_of(SECRET)]
    headers = signing.signed("m", b"x", keys, timestamp=10)
    for secret in ("n" * 16, SECRET):
        assert signing.verify(headers, b"x", secret, now=10) == "m"


@pytest.mark.parametrize(
    ("change", "body", "now", "says"),
    [
        ({}, b"y", 10, "does not fit"),
        ({"webhook-id": "other"}, b"x", 10, "does not fit"),
        ({"webhook-timestamp": "11"}, b"x", 10, "does not fit"),
        ({"webhook-signature": ""}, b"x", 10, "does not fit"),
        ({"webhook-timestamp": "-1"}, b"x", 10, "not signed"),
        ({"webhook-id": ""}, b"x", 10, "not signed"),
        ({}, b"x", 311, "too long ago"),
    ],
)
def test_what_was_changed_or_recorded_is_refused(
    change: dict[str, str], body: bytes, now: float, says: str
) -> None:
    headers = signing.signed("m", b"x", [signing.key_of(SECRET)], timestamp=10) | change
    with pytest.raises(ValueError, match=says):
        signing.verify(headers, body, SECRET, now=now)


@pytest.mark.parametrize("secret", ["short", "whsec_***", "whsec_" + base64.b64encode(b"short").decode()])
def test_a_secret_that_is_none_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="secret"):
        signing.key_of(secret)
