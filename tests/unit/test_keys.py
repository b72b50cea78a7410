"""Keys from arguments, and the short options of a key: what they stand for, and which of them contradict each other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue.core.keys import KeyOfArguments
from pgqueue.core.names import check_key
from pgqueue.errors import InvalidName, InvalidOption, InvalidTime
from pgqueue.producer.options import JobOptions

TEXT = st.characters(exclude_categories=["Cs"])  # lone surrogates are refused before a key is made
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(TEXT, max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(TEXT, max_size=5), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.proves("DD4")
@given(VALUES, VALUES)
def test_equal_values_make_equal_keys_and_any_key_may_stand_in_a_column(a: Any, b: Any) -> None:
    key = KeyOfArguments.of(("a",))
    first, second = key({"a": a, "other": 1}), key({"other": 2, "a": b})
    assert check_key(first, field="key") == first
    assert (first == second) == (json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True))


def test_a_key_is_readable_while_it_is_short_and_a_digest_when_it_is_not() -> None:
    key = KeyOfArguments.of(("ride_id", "kind"))
    assert key({"kind": "fee", "ride_id": 7, "note": "x"}) == 'unique:{"kind":"fee","ride_id":7}'
    assert key({"kind": "fee", "ride_id": True}) != key({"kind": "fee", "ride_id": 1})
    long, longer = ({"ride_id": 1, "kind": "x" * n} for n in (200, 201))
    assert key(long).startswith("unique:sha256:")
    assert key(long) != key(longer)
    assert KeyOfArguments.of(True)({"b": 1, "a": [2]}) == 'unique:{"a":[2],"b":1}'
    assert KeyOfArguments.of(())({"a": 1}) == KeyOfArguments.of(())({"a": 2}) == "unique:{}"
    assert KeyOfArguments.of("a") == KeyOfArguments.of(["a"]) == KeyOfArguments.of(("a", "a"))


def test_a_name_that_a_job_does_not_have_is_told() -> None:
    with pytest.raises(
        InvalidName, match=r"^unique: names the argument 'ride_id', which this job does not have"
    ):
        KeyOfArguments.of("ride_id")({"ride": 1})


@pytest.mark.parametrize("unique", [False, 7, b"ride", ("a", 1), ("not a name",), {"a"}, [None]])
def test_what_names_no_arguments_is_refused(unique: Any) -> None:
    with pytest.raises(InvalidOption, match=r"^unique: must be True, or names of arguments"):
        JobOptions.checked(unique=unique)


@pytest.mark.proves("DD4", "DD5")
@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"unique": "a"}, {"key_scope": "live"}),
        ({"unique": "a", "key_ttl": "1h"}, {"key_ttl_s": 3600.0}),
        ({"unique": "a", "key_scope": "forever"}, {"key_scope": "forever"}),
        ({"unique": "a", "unique_for": "10s"}, {"key_ttl_s": 10.0}),
        ({"unique": "a", "on_conflict": "raise"}, {"key_scope": "live", "on_conflict": "raise"}),
        (
            {"unique": "a", "debounce": "10s"},
            {"delay_s": 10.0, "key_scope": "waiting", "on_conflict": "replace"},
        ),
    ],
)
def test_what_the_short_options_stand_for(short: dict[str, Any], long: dict[str, Any]) -> None:
    assert JobOptions.checked(**short) == JobOptions(idempotency_key=KeyOfArguments(("a",)), **long)


def test_unique_for_alone_means_all_arguments_and_a_key_of_ones_own_stays() -> None:
    assert JobOptions.checked(unique_for="10s").idempotency_key == KeyOfArguments(None)
    assert JobOptions.checked(unique_for="10s", idempotency_key="k").idempotency_key == "k"
    assert JobOptions.checked(debounce="1s", idempotency_key="k").delay_s == 1.0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"debounce": "1s"}, "^debounce: needs to know which calls belong together"),
        ({"unique": "a", "debounce": "1s", "unique_for": "1s"}, "^unique_for: is given together with debounce"),
        ({"unique": "a", "debounce": "1s", "delay": "1s"}, "^delay: is given together with debounce"),
        ({"unique": "a", "debounce": "1s", "on_conflict": "raise"}, "^on_conflict: is given together with debounce"),
        ({"unique": "a", "idempotency_key": "k"}, "^idempotency_key: is given together with unique"),
        ({"unique_for": "1s", "key_ttl": "1s"}, "^key_ttl: is given together with unique_for"),
        ({"unique_for": "1s", "key_scope": "live"}, "^key_ttl: is given together with a key_scope that ends otherwise"),
        ({"idempotency_key": "k", "key_ttl": "1s", "key_scope": "forever"}, "^key_ttl: is given together with a key_scope"),
        ({"idempotency_key": "k", "key_scope": "always"}, "^key_scope: unknown; there are time, forever, live, waiting"),
        ({"idempotency_key": "k", "on_conflict": "ignore"}, "^on_conflict: unknown; there are return_existing, raise"),
        ({"uniqe": "a"}, "^uniqe: is no option of a job; did you mean 'unique'"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidOption, match=complaint):
        JobOptions.checked(**options)


def test_times_are_checked_under_the_name_they_were_given() -> None:
    with pytest.raises(InvalidTime, match=r"^debounce: is too short"):
        JobOptions.checked(unique="a", debounce=0)
    with pytest.raises(InvalidTime, match=r"^key_ttl: is too short"):
        JobOptions.checked(unique="a", unique_for=0)


def test_a_key_given_later_brings_its_own_life() -> None:
    task = JobOptions.checked(unique="a", on_conflict="raise")
    later = task.merged(JobOptions.checked(idempotency_key="k"))
    assert (later.idempotency_key, later.key_scope, later.key_ttl_s, later.on_conflict) == (
        "k",
        None,
        None,
        "raise",
    )
    assert task.merged(JobOptions.checked(priority=1)).key_scope == "live"
    other = task.merged(JobOptions.checked(key_ttl="1m"))
    assert (other.idempotency_key, other.key_scope, other.key_ttl_s) == (KeyOfArguments(("a",)), None, 60.0)
