"""Who acts, through which door, on which database: what every part of the control room shares.

The one place of this room that opens connections and turns the database's errors into ours.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import psycopg
from psycopg import Connection
from psycopg.rows import class_row

from pgqueue.errors import (
    ConfigurationError,
    DatabaseError,
    DatabaseUnreachable,
    InvalidOption,
    SchemaMismatch,
)
from pgqueue.storage.connect import CLI, Role, connect, place_of
from pgqueue.storage.faults import Fault, classify, sqlstate_of, summary_of, surfaced
from pgqueue.storage.revisions import state_of
from pgqueue.storage.statements import statement

T = TypeVar("T")
Ids = list[int]

BATCH: Final = 500  # deeds per transaction
ACTOR_CHARS_MAX: Final = 200
RATE_MAX_PER_S: Final = 10_000.0
PRODUCTION: Final = "production"

_MISSING: Final = frozenset({"42P01", "3F000", "42883", "42703"})
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Matched:
    """The objects that a filter means, and how many of them each queue and each task has."""

    ids: Ids = field(default_factory=list)
    queues: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)

    def add(self, other: Matched) -> None:
        """Take the objects of another table along."""
        self.ids.extend(other.ids)
        self.queues.update(other.queues)
        self.tasks.update(other.tasks)


class Desk:
    """An operator's access.

    `via` is the door (cli, python). The actor is `PGQUEUE_ACTOR`, or the person and the machine. In an
    environment called production each deed needs a reason.
    """

    def __init__(
        self,
        dsn: str,
        *,
        via: str,
        connect_timeout_s: float = 5,
        environment: str = "development",
        role: Role = CLI,
    ) -> None:
        self._dsn = dsn
        self._role = role
        self._timeout_s = connect_timeout_s
        self._rate_per_s = 0.0
        self.via = via
        self.environment = environment
        self.actor = _actor()

    @property
    def place(self) -> str:
        """The database acted on, without its password."""
        return place_of(self._dsn)

    @contextlib.contextmanager
    def connection(self, doing: str = "connection") -> Iterator[Connection[Any]]:
        """A connection for one question or deed; what the database refuses leaves as an error of ours.

        Raises DatabaseUnreachable, SchemaMismatch, DatabaseError.
        """
        with self.explained(doing):
            conn = self._opened()
            try:
                yield conn
            finally:
                conn.close()

    @contextlib.contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turn an error of the database into one of ours that says what to do next."""
        try:
            yield
        except psycopg.Error as error:
            raise self._explained(error, doing) from error

    def _opened(self) -> Connection[Any]:
        return connect(self._dsn, self._role, connect_timeout_s=self._timeout_s, prepare=False)

    def rows(self, kind: Callable[..., T], name: str, parameters: Mapping[str, Any] | None = None) -> list[T]:
        """A statement's rows, each made by `kind` from its columns' names."""
        with self.connection(name) as conn:
            return read(conn, kind, name, parameters)

    def value(self, name: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """The first value of a statement's first row; None without one."""
        with self.connection(name) as conn:
            row = conn.execute(statement(name), parameters or {}).fetchone()
        return None if row is None else row[0]

    def throttle(self, rate_per_s: float) -> None:
        """Do at most so many deeds a second from now on; 0: as fast as the database goes along."""
        if not 0 <= rate_per_s <= RATE_MAX_PER_S:
            raise InvalidOption(
                "rate", "out of range", limit=f"0–{RATE_MAX_PER_S:g} a second, 0 = all at once"
            )
        self._rate_per_s = rate_per_s

    def deeds(
        self,
        name: str,
        ids: Sequence[int],
        reason: str | None,
        more: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Do a deed to each id, `BATCH` to a transaction at most, and yield the statement's rows as each is committed.

        `more(n)`: further parameters of the batch that begins with the n-th id.
        """
        rate = self._rate_per_s
        size = max(1, min(BATCH, round(rate))) if rate else BATCH
        began = time.monotonic()
        with self.connection(name) as conn:
            for at in range(0, len(ids), size):
                if rate:
                    time.sleep(max(0.0, began + at / rate - time.monotonic()))
                parameters = {
                    "ids": list(ids[at : at + size]),
                    "reason": reason,
                    "actor": self.actor,
                    "via": self.via,
                    **(more(at) if more else {}),
                }
                yield from conn.execute(statement(name), parameters).fetchall()

    def matched(self, name: str, upper: str, parameters: Mapping[str, Any]) -> Matched:
        """What a filter means, read window by window; what is added meanwhile is left alone."""
        found = Matched()
        with self.connection(name) as conn:
            row = conn.execute(statement(upper)).fetchone()
            upto, after = (row[0] if row else 0), 0
            while True:
                window = conn.execute(
                    statement(name), {**parameters, "after": after, "upto": upto}
                ).fetchone()
                if window is None or window[0] is None:
                    return found
                after = window[0]
                found.ids.extend(window[1])
                found.tasks.update(window[2])
                found.queues.update(window[3])

    def note(
        self, action: str, target: str, reason: str | None, *, matched: int = 1, changed: int = 0
    ) -> None:
        """Write an audit row for what has none of its own: a look at hidden values, the sum of a bulk deed."""
        parameters = {
            "actor": self.actor,
            "via": self.via,
            "action": action,
            "target": target,
            "reason": reason,
            "matched": matched,
            "changed": changed,
            "detail": None,
        }
        self.value("note_operation", parameters)

    def need_reason(self, reason: str | None) -> None:
        """Raise InvalidOption if this environment wants a reason and there is none."""
        if self.environment == PRODUCTION and not (reason or "").strip():
            raise InvalidOption("reason", f"needed for each change in environment {PRODUCTION}; say why")

    def _explained(self, error: psycopg.Error, doing: str) -> Exception:
        state = sqlstate_of(error)
        if state in _MISSING:
            with contextlib.suppress(psycopg.Error), contextlib.closing(connect(self._dsn, CLI)) as conn:
                found = state_of(conn)
                if not found.usable:
                    return SchemaMismatch(found.sentence)
        if state == "22023":
            # Raised by our own functions, in the words that Python uses: `queue: must start with …`.
            field, colon, words = (error.diag.message_primary or "").partition(": ")
            return InvalidOption(field, words) if colon else InvalidOption(doing, field)
        if state == "42501":
            return DatabaseError(
                f"{doing}: {error.diag.message_primary}; connect as a role that is granted pgqueue_operator"
            )
        if state == "57014":
            return DatabaseError(
                f"{doing}: took longer than {self._role.statement_timeout_ms // 1000} s; narrow the filter"
            )
        if classify(error) is Fault.RECONNECT:
            return DatabaseUnreachable(
                f"{self.place}: lost while asking ({summary_of(error)}); look before you repeat a deed"
            )
        return surfaced(error, statement=doing)


def read(
    conn: Connection[Any], kind: Callable[..., T], name: str, parameters: Mapping[str, Any] | None = None
) -> list[T]:
    """A statement's rows on a connection that is open already."""
    with conn.cursor(row_factory=class_row(kind)) as cursor:  # type: ignore[arg-type]
        return cursor.execute(statement(name), parameters or {}).fetchall()


def task_filter(task: str | None) -> dict[str, str | None]:
    """`capture*` means a prefix, anything else the whole name."""
    if task is not None and task.endswith("*"):
        return {"task": None, "task_prefix": task[:-1]}
    return {"task": task, "task_prefix": None}


def decoded(text: str | None) -> Any:
    """A stored JSON text as Python values, big integers whole. What cannot be read says so in its place."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return {"(unreadable)": type(error).__name__}


def _actor() -> str:
    actor = os.environ.get("PGQUEUE_ACTOR") or f"{_user()}@{platform.node()}"
    if len(actor) > ACTOR_CHARS_MAX or _UNPRINTABLE.search(actor):
        raise ConfigurationError(
            f"PGQUEUE_ACTOR: must be printable and at most {ACTOR_CHARS_MAX} characters; it names who acts in the audit"
        )
    return actor


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in containers
        return f"uid{os.getuid()}"
