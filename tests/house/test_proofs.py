"""Every promise and fault has a test that names it, or stands in `not_proven_yet.txt`, and never both.

A new proof therefore shortens that list in the same change, and a lost one cannot go unnoticed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LIST = Path(__file__).with_name("not_proven_yet.txt")
KNOWN = {
    f"{kind}{number}"
    for kind, last in {"P": 23, "F": 61, "I": 42, "S": 26}.items()
    for number in range(1, last + 1)
}
# A fault may be proven in parts (F15a is one of F15); F26s, the server's clock, is a fault beside F26, the client's.
PART = re.compile(r"^(F\d+)[a-e]$")
BESIDE = {"F26s"}
# Families whose ids are counted nowhere: operators' verbs, migrations and the like.
UNCOUNTED = re.compile(r"^(OP|CT|ST|SA|PB|NT|EQ|DD)\d+$")
LINE = re.compile(r"^(?P<id>[PFIS]\d+s?) {2,}(?P<what>\S.*)$")


def proofs_in(source: str) -> list[str]:
    """The ids of every `proves(…)` mark of a module; an argument that is no literal would hide from this list."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "proves":
            for argument in node.args:
                assert isinstance(argument, ast.Constant), ast.unparse(node)
                found.append(str(argument.value))
    return found


def listed_in(text: str) -> dict[str, str]:
    """Id → what it is, of each line that is no comment."""
    listed: dict[str, str] = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            match = LINE.match(line)
            assert match, f"not `ID  what it is`: {line!r}"
            assert match["id"] not in listed, f"listed twice: {match['id']}"
            listed[match["id"]] = match["what"]
    return listed


def faults(proven: Iterable[str], listed: Mapping[str, str]) -> list[str]:
    """What is wrong between the marks and the list, one line each."""
    marks = {PART.sub(r"\1", mark) for mark in proven if not UNCOUNTED.match(mark)}
    known = KNOWN | BESIDE
    return [
        *(f"a mark names {mark}, which does not exist" for mark in sorted(marks - known)),
        *(f"the list names {mark}, which does not exist" for mark in sorted(listed.keys() - known)),
        *(f"{mark} is proven: take it off the list" for mark in sorted(listed.keys() & marks)),
        *(
            f"{mark} has neither a test nor a line in the list"
            for mark in sorted(known - marks - listed.keys())
        ),
    ]


def test_every_id_is_proven_or_listed() -> None:
    marks = [mark for path in sorted(TESTS.rglob("test_*.py")) for mark in proofs_in(path.read_text())]
    assert len(marks) > 100, "the marks were not found"
    assert faults(marks, listed_in(LIST.read_text())) == []


ALL_LISTED = dict.fromkeys(KNOWN | BESIDE, "x")


@pytest.mark.parametrize(
    ("proven", "unlisted", "complaint"),
    [
        (["P24"], [], "a mark names P24, which does not exist"),
        (["F15f"], [], "a mark names F15f, which does not exist"),
        (["P1"], [], "P1 is proven: take it off the list"),
        (["F15a"], [], "F15 is proven: take it off the list"),
        ([], ["S26"], "S26 has neither a test nor a line in the list"),
        (["F26"], ["F26", "F26s"], "F26s has neither a test nor a line in the list"),
    ],
)
def test_what_is_planted_is_found(proven: list[str], unlisted: list[str], complaint: str) -> None:
    listed = {mark: what for mark, what in ALL_LISTED.items() if mark not in unlisted}
    assert faults(proven, listed) == [complaint]


def test_what_is_in_order_is_not_complained_about() -> None:
    listed = {mark: what for mark, what in ALL_LISTED.items() if mark not in {"P1", "F15"}}
    assert faults(["P1", "F15a", "F15b", "OP1"], listed) == []
    assert faults([], {**ALL_LISTED, "P0": "x"}) == ["the list names P0, which does not exist"]


@pytest.mark.parametrize("text", ["P1", "P1 too near", "P1  once\nP1  twice", "p1  small"])
def test_a_line_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(AssertionError):
        listed_in(text)


def test_marks_are_found_wherever_they_stand() -> None:
    source = """
pytestmark = pytest.mark.proves("P1")
@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.proves("P2", "F3"))])
def test() -> None: ...
"""
    assert sorted(proofs_in(source)) == ["F3", "P1", "P2"]
    with pytest.raises(AssertionError):
        proofs_in("pytest.mark.proves(*NAMES)")
