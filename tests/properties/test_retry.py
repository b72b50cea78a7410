"""Backoff for any policy: within its bounds, never less than half a step, and the same after storing."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pgqueue.core.durations import DURATION_S_MAX, parse_duration
from pgqueue.core.retry import MAX_RETRIES_MAX, STRATEGIES, Retry, backoff_s
from pgqueue.errors import InvalidRetry

DELAYS_S = st.floats(0, DURATION_S_MAX) | st.floats(0, 600) | st.integers(0, 3_600)
FAILURES = st.integers(1, 20) | st.integers(1, 10_000)
UNITS = st.floats(0, 1, exclude_max=True)


@st.composite
def policies(draw, strategies: tuple[str, ...] = STRATEGIES) -> Retry:
    first, cap = sorted((draw(DELAYS_S), draw(DELAYS_S)))
    return Retry(
        max_retries=draw(st.integers(0, MAX_RETRIES_MAX)),
        backoff_strategy=draw(st.sampled_from(strategies)),
        initial_delay=first,
        max_delay=cap,
        retry_on=draw(st.sampled_from([(), (OSError,), ("OSError", "x.Y")])),
        give_up_on=draw(st.sampled_from([(), (ValueError,), ("Declined",)])),
    )


@settings(deadline=None, max_examples=300)
@given(policies(), FAILURES, UNITS)
def test_a_delay_is_finite_and_within_its_bounds(policy, failures, random_unit):
    backoff = backoff_s(policy, failures, random_unit)
    assert backoff.warning is None
    assert math.isfinite(backoff.delay_s)
    least = (
        policy.initial_delay_s / 2
        if policy.backoff_strategy == "exponential_jitter"
        else policy.initial_delay_s
    )
    assert least <= backoff.delay_s <= policy.max_delay_s


@settings(deadline=None, max_examples=300)
@given(policies(("exponential_jitter",)), FAILURES, UNITS)
def test_jitter_stays_in_the_upper_half_of_the_exponential_step(policy, failures, random_unit):
    plain = Retry(
        backoff_strategy="exponential", initial_delay=policy.initial_delay_s, max_delay=policy.max_delay_s
    )
    step_s = backoff_s(plain, failures, 0).delay_s
    delay_s = backoff_s(policy, failures, random_unit).delay_s
    assert step_s / 2 <= delay_s <= step_s
    assert delay_s == pytest.approx(step_s * (1 + random_unit) / 2)


@settings(deadline=None)
@given(policies(), FAILURES, UNITS)
def test_a_later_failure_never_waits_less(policy, failures, random_unit):
    assert (
        backoff_s(policy, failures, random_unit).delay_s
        <= backoff_s(policy, failures + 1, random_unit).delay_s
    )


@settings(deadline=None)
@given(policies(), UNITS, UNITS)
def test_a_larger_random_number_never_waits_less(policy, one, other):
    low, high = sorted((one, other))
    assert backoff_s(policy, 3, low).delay_s <= backoff_s(policy, 3, high).delay_s


@pytest.mark.proves("I42")
@settings(deadline=None, max_examples=200)
@given(
    st.floats() | st.integers() | st.none() | st.booleans() | st.text(max_size=8) | st.binary(max_size=3) | st.timedeltas(),
    FAILURES,
    UNITS,
)  # fmt: skip
def test_whatever_a_backoff_function_returns_the_delay_is_usable(answer, failures, random_unit):
    policy = Retry(backoff_strategy=lambda n: answer)
    backoff = backoff_s(policy, failures, random_unit)
    assert 0 <= backoff.delay_s <= policy.max_delay_s
    if backoff.warning is not None:
        assert backoff.delay_s == backoff_s(Retry(), failures, random_unit).delay_s


@settings(deadline=None)
@given(policies(), FAILURES, UNITS)
def test_a_stored_policy_decides_like_the_original(policy, failures, random_unit):
    again = Retry.from_json(json.loads(json.dumps(policy.to_json())))
    assert again.max_attempts == policy.max_attempts
    assert backoff_s(again, failures, random_unit) == backoff_s(policy, failures, random_unit)
    assert again.to_json() == policy.to_json()


NUMBERS = (
    st.sampled_from(["2s", "5m", "1h", "linear", "constant", 3])
    | st.floats()
    | st.integers()
    | st.booleans()
    | st.none()
    | st.text(max_size=6)
)


@pytest.mark.proves("I42")
@settings(deadline=None, max_examples=300)
@given(
    st.dictionaries(
        st.sampled_from(["max_retries", "backoff_strategy", "initial_delay", "max_delay", "zebra"]), NUMBERS
    )
)
def test_any_table_makes_a_policy_or_invalid_retry(table):
    refused = None
    try:
        policy = Retry.from_mapping(table, where="t")
    except InvalidRetry as error:
        refused = error
    if refused is not None:
        assert refused.field.startswith("t.")
    else:
        assert "zebra" not in table
        assert 0 <= policy.initial_delay_s <= policy.max_delay_s


@settings(deadline=None)
@given(st.lists(st.integers(0, 200), min_size=6, max_size=6))
def test_a_duration_is_the_sum_of_its_parts(counts):
    parts = [(n, unit, s) for n, (unit, s) in zip(counts, (("w", 604_800), ("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1), ("ms", 0.001)), strict=True) if n]  # fmt: skip
    assume(parts)
    assert parse_duration("".join(f"{n}{unit}" for n, unit, _ in parts), field="x") == pytest.approx(
        sum(n * s for n, _, s in parts)
    )
