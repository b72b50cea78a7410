"""Says what the schema in a database is, from its catalogs, and how two such descriptions differ.

Called by `pgqueue doctor` (a live database against what this release ships) and by tests. It only reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row

from pgqueue.storage.statements import alembic_dir, statement

EXPECTED_FILE: Final = "expected.json"
_PARTS: Final = (
    "catalog_schema",
    "catalog_relations",
    "catalog_columns",
    "catalog_constraints",
    "catalog_indexes",
    "catalog_functions",
    "catalog_others",
)
_THERE: Final = "there"
_MISSING: Final = "missing"
_NOTHING: Final[tuple[object, ...]] = (None, "", [], False)


@dataclass(frozen=True, slots=True)
class Difference:
    """One subject (an object of the schema), one fact about it, and its two values; `fact` is `existence` if one side lacks the subject."""

    subject: str
    fact: str
    expected: object
    found: object

    def __str__(self) -> str:
        if self.fact == "existence":
            return (
                f"{self.subject}: {self.found}" if self.found == _MISSING else f"{self.subject}: not expected"
            )
        return f"{self.subject}: {self.fact} is {_shown(self.found)}, expected {_shown(self.expected)}"


def describe_schema(conn: psycopg.Connection[Any]) -> dict[str, object]:
    """Every object of schema pgqueue by its name (`column pgqueue.jobs.state`), each with its facts.

    The same for the same schema on every supported server, whoever owns it and on whatever day.
    """
    found: dict[str, object] = {}
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        # Postgres leaves a schema's name out of a definition when the session's search_path holds it.
        cursor.execute(statement("catalog_session"))
        for part in _PARTS:
            for name, facts in cursor.execute(statement(part)).fetchall():
                # Most facts of most objects are "none": left out, so that a description can be read.
                found[name] = {fact: value for fact, value in facts.items() if value not in _NOTHING}
    return dict(sorted(found.items()))


def expected_schema() -> dict[str, object]:
    """The description of the schema at this code's newest revision, as shipped."""
    expected: dict[str, object] = json.loads((alembic_dir() / EXPECTED_FILE).read_text(encoding="utf-8"))
    return expected


def diff(expected: Mapping[str, object], found: Mapping[str, object]) -> list[Difference]:
    """What is different in `found`, in the order of the objects' names; empty if nothing is."""
    differences = []
    for name in sorted({*expected, *found}):
        if name not in found:
            differences.append(Difference(name, "existence", _THERE, _MISSING))
        elif name not in expected:
            differences.append(Difference(name, "existence", _MISSING, _THERE))
        else:
            differences.extend(_facts(name, expected[name], found[name]))
    return differences


def _facts(name: str, expected: object, found: object) -> list[Difference]:
    if not isinstance(expected, Mapping) or not isinstance(found, Mapping):
        return [] if expected == found else [Difference(name, "value", expected, found)]
    facts = sorted({*expected, *found})
    return [
        Difference(name, fact, expected.get(fact), found.get(fact))
        for fact in facts
        if expected.get(fact) != found.get(fact)
    ]


def _shown(value: object) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
