"""Which revision a database's schema is at, and whether this code may run on it.

Called by storage/migrate, and by workers, schedulers and probes at their start (`require_head`); so it imports
neither SQLAlchemy nor Alembic. It reads on the connection it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg.rows import tuple_row

from pgqueue.errors import SchemaMismatch
from pgqueue.storage.deadline import SETUP_S, deadline
from pgqueue.storage.known import revisions
from pgqueue.storage.migrate_faults import explained
from pgqueue.storage.statements import statement

StateKind = Literal["at_head", "older", "newer", "newer_unknown", "missing", "half_done"]


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What revision a database is at, seen from this code.

    `kind`: `at_head`; `older` (needs `pgqueue db upgrade`); `newer` (a later release's, and this code still
    runs on it); `newer_unknown` (a later release's that this code must not touch); `missing` (no schema);
    `half_done` (`detail` says what is wrong). `found` and `expected` are revisions, `code_from` the oldest
    revision whose code may run on the database.
    """

    kind: StateKind
    found: str | None
    expected: str
    code_from: str | None = None
    detail: str = ""

    @property
    def usable(self) -> bool:
        """Whether workers and producers of this code may run on the database."""
        return self.kind in {"at_head", "newer"}

    @property
    def sentence(self) -> str:
        """One line: what was found, and what to do next."""
        match self.kind:
            case "at_head":
                return f"database schema: at revision {self.found}, as expected"
            case "newer":
                return f"database schema: at revision {self.found}, newer than this code's {self.expected}, which still runs on it"
            case "older":
                return f"database schema: at revision {self.found}, this code expects {self.expected}; run `pgqueue db upgrade`"
            case "missing":
                return f"database schema: not there, this code expects revision {self.expected}; run `pgqueue db upgrade`"
            case "newer_unknown":
                wanted = f"one that knows {self.code_from}" if self.code_from else "a newer release"
                return (
                    f"database schema: at revision {self.found}, this code knows {self.expected} and is older than the"
                    f" database allows; install pgqueue ≥ {wanted}"
                )
            case "half_done":
                return f"database schema: half done ({self.detail}), this code expects revision {self.expected}; see docs/guides/migrations.md"


def state_of(conn: psycopg.Connection[Any]) -> SchemaState:
    """The same on a connection that is open already; reads only, in the connection's own transaction."""
    known = revisions()
    expected = known[-1]
    with conn.cursor(row_factory=tuple_row) as cursor:
        recorded, relations, broken = cursor.execute(statement("migrate_state")).fetchone() or (False, 0, [])
        rows = cursor.execute(statement("migrate_recorded")).fetchall() if recorded else []
    found, code_from = rows[0] if rows else (None, None)
    detail = _half_done(len(rows), relations, broken)
    if detail:
        return SchemaState("half_done", found if len(rows) == 1 else None, expected, code_from, detail)
    return SchemaState(_kind(found, code_from, known), found, expected, code_from)


def _half_done(rows: int, relations: int, broken: list[str]) -> str:
    if rows > 1:
        return f"{rows} revisions in pgqueue.alembic_version"
    if relations and not rows:
        return f"{relations} of its tables there, and no revision recorded"
    if rows and not relations:
        return "a revision is recorded, and its tables are not there"
    return f"invalid index {', '.join(broken)}" if broken else ""


def _kind(found: str | None, code_from: str | None, known: list[str]) -> StateKind:
    if found is None:
        return "missing"
    if found == known[-1]:
        return "at_head"
    if found in known:
        return "older"
    return "newer" if code_from is not None and code_from <= known[-1] else "newer_unknown"


def require_head(conn: psycopg.Connection[Any]) -> None:
    """Raise SchemaMismatch, in one line that says what to do, unless this code may run on the database."""
    with explained("reading pgqueue.alembic_version"), deadline(conn, SETUP_S):
        state = state_of(conn)
    if not state.usable:
        raise SchemaMismatch(state.sentence)
