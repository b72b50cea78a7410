"""Arguments for any input: what is accepted survives the round trip, what is not is refused and nothing else."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgqueue.core.payload import DEPTH_MAX, decode_args, encode_args, encode_result
from pgqueue.errors import InvalidArguments

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=30,
)
ARGS = st.dictionaries(TEXT, JSON, max_size=6)

FOREIGN = (
    st.binary(max_size=5)
    | st.sets(st.integers(), max_size=3)
    | st.decimals()
    | st.datetimes()
    | st.timedeltas()
    | st.uuids()
    | st.complex_numbers()
    | st.integers()
    | st.integers(min_value=2**63)
    | st.floats()
    | st.text(max_size=10)
    | st.text(st.characters(categories=["Cs", "Cc"]), max_size=3)
)
KEYS = st.text(max_size=5) | st.integers() | st.none() | st.booleans() | st.text("\0\ud800", max_size=1)
ANYTHING = st.recursive(
    SCALARS | FOREIGN,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.frozensets(st.integers(), max_size=2)
    ),
    max_leaves=15,
)


def outcome(call, argument) -> tuple[Any, InvalidArguments | None]:
    """Return (answer, None) or (None, refusal); any other exception fails the test."""
    try:
        return call(argument), None
    except InvalidArguments as refusal:
        return None, refusal


def same(one: Any, other: Any) -> bool:
    """Compare as JSON does: 1, 1.0 and True are three things, and so are 0.0 and -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return one == other


@pytest.mark.proves("I11")
@settings(deadline=None, max_examples=300)
@given(ARGS)
@example({"zero": -0.0, "one": 1.0, "int": 1, "true": True})
@example({"big": 2**63 - 1, "small": -(2**63), "tiny": 5e-324, "huge": 1.7976931348623157e308})
def test_encode_decode_encode_is_stable_and_loses_nothing(args):
    text = encode_args(args)
    again = decode_args(text)
    assert same(again, args)
    assert encode_args(again) == text
    assert json.loads(text) == args


@pytest.mark.proves("I1", "I3", "I4", "I10", "I12")
@settings(deadline=None, max_examples=400)
@given(st.dictionaries(KEYS, ANYTHING, max_size=4))
def test_any_input_is_encoded_faithfully_or_refused_as_invalid_arguments(args):
    text, error = outcome(encode_args, args)
    if error is not None:
        assert error.path is None or error.path.startswith("$")
        assert str(error).isprintable()
        return
    # json is the second opinion: it may neither find NaN nor change a key into text.
    assert json.loads(text) == json.loads(json.dumps(args, allow_nan=False))
    assert all(type(key) is str for key in args)
    text.encode("utf-8")
    assert "\0" not in json.dumps(json.loads(text), ensure_ascii=False)


STEPS = st.lists(st.integers(0, 3) | st.text("abcxyz_", min_size=1, max_size=5), max_size=8)


@pytest.mark.proves("I12")
@settings(deadline=None)
@given(steps=STEPS, name=st.text("abcxyz_", min_size=1, max_size=5), filler=JSON)
def test_a_planted_fault_is_reported_where_it_stands(steps, name, filler):
    value: Any = {1, 2}
    path = ""
    for step in reversed(steps):
        if isinstance(step, int):
            value, path = [*([filler] * step), value], f"[{step}]{path}"
        else:
            value, path = {"A": filler, step: value}, f".{step}{path}"
    with pytest.raises(InvalidArguments, match="is a set") as refused:
        encode_args({"A": filler, name: value})
    assert refused.value.path == f"$.{name}{path}"


@pytest.mark.proves("I8")
@settings(deadline=None)
@given(ARGS)
def test_the_limit_is_the_size_of_the_encoded_text_to_the_byte(args):
    size = len(encode_args(args).encode())
    assert len(encode_args(args, bytes_max=size).encode()) == size
    with pytest.raises(InvalidArguments, match="too large"):
        encode_args(args, bytes_max=size - 1)


@pytest.mark.proves("I9")
@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=DEPTH_MAX - 5, max_size=DEPTH_MAX + 5))
def test_depth_is_counted_alike_in_both_directions(shape):
    value: Any = 0
    for is_list in shape:
        value = [value] if is_list else {"k": value}
    args = {"a": value}
    if len(shape) + 1 <= DEPTH_MAX:
        assert decode_args(encode_args(args)) == args
    else:
        with pytest.raises(InvalidArguments, match="too deep"):
            encode_args(args)
        with pytest.raises(InvalidArguments, match="too deep"):
            decode_args(orjson.dumps(args).decode())


@pytest.mark.proves("I14", "P21")
@settings(deadline=None, max_examples=300)
@given(st.text() | st.text('{}[]",:0123456789eE+-.\\u nulltrefas', max_size=60) | JSON.map(json.dumps))
def test_decoding_any_text_gives_an_object_or_invalid_arguments(text):
    args, error = outcome(decode_args, text)
    assert type(args) is dict if error is None else error.field == "args"


@pytest.mark.proves("I5")
@settings(deadline=None, max_examples=300)
@given(ANYTHING)
def test_any_result_is_stored_or_marked_and_never_raises(value):
    text, warning = encode_result(value)
    if value is None:
        assert (text, warning) == (None, None)
        return
    stored = json.loads(text)
    assert (warning is not None) == (type(stored) is dict and list(stored) == ["pgqueue_unstorable"])
    text.encode("utf-8")
    assert "\0" not in json.dumps(stored, ensure_ascii=False)


@settings(deadline=None)
@given(JSON)
def test_a_json_result_is_stored_unchanged(value):
    text, warning = encode_result(value)
    assert warning is None
    assert value is None or same(orjson.loads(text), value)
