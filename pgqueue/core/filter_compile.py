"""A filter's terms as parameters of fixed SQL statements: a JSON path with variables, and words to look for.

Called by control; pure. The path is put together from a fixed menu of pieces; everything that a person wrote is the
value of a variable, so no filter can become part of a statement or of a path.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final, Protocol

from pgqueue.core.filter import ARGS, Check, Filter, Term

# What the statements call a field in the document that they make of a row.
_MOMENTS: Final = {"since": "created", "until": "created"}
_AGE: Final = "age"
_SIGNS: Final = {"=": "==", ">": ">", ">=": ">=", "<": "<", "<=": "<="}
# Older than is a larger age: a moment given as an age turns the comparison around.
_TURNED: Final = {">=": "<=", "<": ">"}


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the statements take. `words`: [[negated, [alternative, …]], …] to be found in the row's words."""

    path: str | None
    variables: str
    words: str | None

    def parameters(self) -> dict[str, object]:
        """As the statements take it."""
        return {"path": self.path, "variables": self.variables, "words": self.words}


class _Bound(Protocol):
    def __call__(self, value: str | float | bool | None, /) -> str: ...


def compile_filter(where: Filter) -> Compiled:
    """Compile every term but those about states, which choose the tables: see Filter.states."""
    variables: dict[str, str | float | bool | None] = {}

    def bound(value: str | float | bool | None) -> str:
        name = f"v{len(variables)}"
        variables[name] = value
        return f"${name}"

    conditions: list[str] = []
    words: list[list[object]] = []
    for term in where.terms:
        if term.kind == "words":
            words.append([term.negated, [str(test.value) for test in term.tests]])
        elif term.kind != "state":
            met = " || ".join(_met(term, test, bound) for test in term.tests)
            conditions.append(f"!({met})" if term.negated else f"({met})")
    return Compiled(
        " && ".join(conditions) or None, json.dumps(variables), json.dumps(words) if words else None
    )


def _met(term: Term, test: Check, bound: _Bound) -> str:
    """`exists(place ? (test))`: never unknown, so that its negation holds where there is nothing."""
    if term.kind == "value":
        return f"exists({_argument(term.field.removeprefix(ARGS), bound)} ? ({_value(test, bound)}))"
    if term.kind == "moment":
        if isinstance(test.value, float | int) and test.value <= 0:
            return f"exists($.{_AGE} ? (@ {_TURNED[test.operator]} {bound(-test.value)}))"
        return f"exists($.{_MOMENTS[term.field]} ? (@ {_SIGNS[test.operator]} {bound(test.value)}))"
    return f"exists($.{term.field} ? ({_text_or_number(test, bound)}))"


def _text_or_number(test: Check, bound: _Bound) -> str:
    match test.operator:
        case "any":
            return "@ != null"
        case "prefix":
            return f"@ starts with {bound(test.value)}"
        case sign:
            first = f"@ {_SIGNS[sign]} {bound(test.value)}"
            return first if test.and_at_most is None else f"{first} && @ <= {bound(test.and_at_most)}"


def _argument(path: str, bound: _Bound) -> str:
    """The members of the arguments by name, level by level; names are values like all else."""
    place = "$.args"
    for name in path.split("."):
        place += f' ? (@.type() == "object").keyvalue() ? (@.key == {bound(name)}).value'
    return place


def _value(test: Check, bound: _Bound) -> str:
    """An argument equals a word as text, and as the number or constant that it may also be."""
    if test.operator != "=" or not isinstance(test.value, str):
        return _text_or_number(test, bound)
    alike: list[str | float | bool | None] = [test.value]
    if test.value in _CONSTANTS:
        alike.append(_CONSTANTS[test.value])
    elif _NUMBER.fullmatch(test.value):
        alike.append(float(test.value) if "." in test.value else int(test.value))
    return " || ".join(f"@ == {bound(value)}" for value in alike)


_NUMBER: Final = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,9})?")
_CONSTANTS: Final[dict[str, bool | None]] = {"true": True, "false": False, "null": None}
