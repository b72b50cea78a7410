"""The filter grammar: what is read, what is refused and where the caret points, and that nothing written leaves a variable."""

from __future__ import annotations

import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue.core.filter import ALTERNATIVES_MAX, CHARS_MAX, FIELDS, TERMS_MAX, Check, parse_filter
from pgqueue.core.filter_compile import compile_filter
from pgqueue.errors import InvalidFilter

pytestmark = pytest.mark.proves("I39")

# Everything a path may be made of: the menu's names, signs, and variables by number.
PATH = re.compile(
    r"""(?:exists\(|\$\.[a-z_]+|\$v[0-9]+|@|\.keyvalue\(\)|\.type\(\)|\.value|\.key|"object"|starts\ with|null
        |==|!=|>=|<=|[<>?()!]|\|\||&&|\s)+""",
    re.VERBOSE,
)


@pytest.mark.parametrize(
    ("text", "field", "tests"),
    [
        ("queue:mail", "queue", [Check("=", "mail")]),
        ("queue:mail,pay", "queue", [Check("=", "mail"), Check("=", "pay")]),
        ("task:capture*", "task", [Check("prefix", "capture")]),
        ("key:ride:7:capture", "key", [Check("=", "ride:7:capture")]),
        ('key:"a, \\"b\\" c*"', "key", [Check("=", 'a, "b" c*')]),
        ("key:*", "key", [Check("any", "")]),
        ("attempts:>3", "attempts", [Check(">", 3)]),
        ("attempts:1..3", "attempts", [Check(">=", 1, and_at_most=3)]),
        ("age:>=1h30m", "age", [Check(">=", 5400.0)]),
        ("since:-24h", "since", [Check(">=", -86_400.0)]),
        ("until:2026-11-01T00:00Z", "until", [Check("<", 1_793_491_200.0)]),
        ("args.ride_id:12", "args.ride_id", [Check("=", "12")]),
        ("args.ride.price:>1.5", "args.ride.price", [Check(">", 1.5)]),
        ('error:"declined by"', "error", [Check("=", "declined by")]),
        ("77", "id", [Check("=", 77)]),
    ],
)
def test_what_is_written_is_read(text: str, field: str, tests: list[Check]) -> None:
    (term,) = parse_filter(text, "jobs").terms
    assert (term.field, list(term.tests), term.negated) == (field, tests, False)
    (term,) = parse_filter(f"-{text}", "jobs").terms if text != "77" else parse_filter("-id:77", "jobs").terms
    assert term.negated


def test_the_example_of_the_help_is_read() -> None:
    text = (
        'state:dead queue:payments task:capture* attempts:>3 age:>5m args.ride_id:12 error:"declined" -tag:x'
    )
    found = parse_filter(f"  {text} ", "jobs")
    assert len(found.terms) == 8
    assert str(found) == text
    assert found.states() == {"dead"}


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("queue:x", None),
        ("state:ready,dead", {"ready", "dead"}),
        ("state:s*", {"scheduled", "succeeded"}),
        ("-state:dead state:d*,held", {"held"}),
        ("state:dead state:held", set()),
    ],
)
def test_states_choose_the_tables(text: str, states: set[str] | None) -> None:
    assert parse_filter(text, "jobs").states() == states


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("queue", 0, "expected field:value"),
        ("queue:", 6, "expected a value"),
        ("queue:a sate:dead", 8, "unknown field of jobs; did you mean state?"),
        ("nonsense:1", 0, "unknown field of jobs; there are"),
        ("state:deaf", 6, "unknown state; there are cancelled, dead"),
        ('error:"open', 6, "this quote is not closed"),
        ('error:"a"b', 9, "expected a space or a comma"),
        ("attempts:many", 9, "expected a number"),
        ("attempts:>x", 10, "expected a number"),
        ("attempts:1..x", 12, "expected a number"),
        ("age:5", 4, "expected a time"),
        ("age:>-5m", 5, "expected a time"),
        ("since:2026-11-01T00:00", 6, "expected -24h, or a moment"),
        ("queue:a,", 8, "expected a value"),
        ("args.:1", 0, "expected field:value"),
        ("args.a.b.c.d.e.f:1", 0, "leads too deep"),
        ("'; DROP TABLE jobs; --", 0, "expected field:value"),
        ("queue:a\x00b", 6, "holds a character that no text in the database can"),
    ],
)
def test_a_fault_is_pointed_at(text: str, position: int, said: str) -> None:
    with pytest.raises(InvalidFilter) as refused:
        parse_filter(text, "jobs")
    assert refused.value.position == position
    first, shown, caret = str(refused.value).split("\n")
    assert first.startswith(f"filter: {said}")
    assert caret.index("^") - 2 == position
    assert shown.isprintable()
    assert refused.value.exit_code == 2
    again = pickle.loads(pickle.dumps(refused.value))
    assert (str(again), again.position) == (str(refused.value), position)


def test_limits_hold_at_the_limit_and_not_above() -> None:
    parse_filter("x" * 0 + "queue:" + "a" * (CHARS_MAX - 6), "jobs")
    parse_filter(" ".join(["queue:a"] * TERMS_MAX), "jobs")
    parse_filter("queue:" + ",".join(["a"] * ALTERNATIVES_MAX), "jobs")
    for text, said in (
        ("queue:" + "a" * (CHARS_MAX - 5), "is too long"),
        (" ".join(["queue:a"] * (TERMS_MAX + 1)), "too many terms"),
        ("queue:" + ",".join(["a"] * (ALTERNATIVES_MAX + 1)), "too many alternatives"),
        ("queue:a " * 10_000, "is too long"),
    ):
        with pytest.raises(InvalidFilter, match=said):
            parse_filter(text, "jobs")


def test_the_audit_has_fields_of_its_own() -> None:
    assert len(parse_filter("actor:olga* action:redrive reason:bank since:-24h", "audit").terms) == 4
    for text in ("args.a:1", "queue:a"):
        with pytest.raises(InvalidFilter):
            parse_filter(text, "audit")


WORDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters='\x00"\\'), min_size=1, max_size=20
)
NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True)


@given(
    st.sampled_from([f for f, kind in FIELDS["jobs"].items() if kind == "text"]), WORDS, WORDS, st.booleans()
)
def test_whatever_is_written_stays_in_a_variable(field: str, one: str, two: str, negated: bool) -> None:
    text = f'{"-" if negated else ""}{field}:"{one}","{two}"'
    compiled = compile_filter(parse_filter(text, "jobs"))
    assert compiled.path is not None
    assert PATH.fullmatch(compiled.path), compiled.path
    assert set(json.loads(compiled.variables).values()) == {one, two}


@given(st.lists(NAMES, min_size=1, max_size=5), WORDS)
def test_names_of_arguments_stay_in_variables_too(path: list[str], word: str) -> None:
    compiled = compile_filter(parse_filter(f'args.{".".join(path)}:"{word}"', "jobs"))
    assert compiled.path is not None
    assert PATH.fullmatch(compiled.path), compiled.path
    assert {*path, word} <= {str(value) for value in json.loads(compiled.variables).values()}


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    refused: InvalidFilter | None = None
    try:
        found = parse_filter(text, "jobs")
    except InvalidFilter as error:
        refused = error
    if refused is not None:
        assert 0 <= refused.position <= len(text)
    else:
        compiled = compile_filter(found)
        assert compiled.path is None or PATH.fullmatch(compiled.path)
