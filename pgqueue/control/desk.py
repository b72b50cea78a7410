"""Who acts, through which door, on which database: what every part of the control room shares."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
from collections.abc import Iterator, Mapping
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import dict_row

from pgqueue.storage.connect import CLI, connect
from pgqueue.storage.statements import statement

Row = dict[str, Any]
Rows = list[Row]
Ids = list[int]
BATCH: Final = 500  # deeds per transaction


class Desk:
    """An operator's access. `via` is the door (cli, python); the actor is a person and a machine, or PGQUEUE_ACTOR."""

    def __init__(self, dsn: str, *, via: str, connect_timeout_s: float = 5) -> None:
        self._dsn = dsn
        self.via = via
        self._timeout_s = connect_timeout_s
        self.actor = os.environ.get("PGQUEUE_ACTOR") or f"{_user()}@{platform.node()}"

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        """A connection for one question or deed. Raises DatabaseUnreachable."""
        conn = connect(self._dsn, CLI, connect_timeout_s=self._timeout_s)
        try:
            yield conn
        finally:
            conn.close()

    def rows(self, name: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """A statement's rows as mappings."""
        with self.connection() as conn, conn.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement(name), parameters or {}).fetchall()

    def value(self, name: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """The first value of a statement's first row; None without one."""
        with self.connection() as conn:
            row = conn.execute(statement(name), parameters or {}).fetchone()
        return None if row is None else row[0]

    def deeds(self, name: str, ids: list[int], reason: str | None, **more: Any) -> list[tuple[Any, ...]]:
        """Do a deed to each id, `BATCH` to a transaction; returns the statement's rows."""
        done: list[tuple[Any, ...]] = []
        with self.connection() as conn:
            for at in range(0, len(ids), BATCH):
                parameters = {
                    "ids": ids[at : at + BATCH],
                    "reason": reason,
                    "actor": self.actor,
                    "via": self.via,
                    **more,
                }
                done.extend(conn.execute(statement(name), parameters).fetchall())
        return done

    def matching(self, name: str, upper: str, parameters: Mapping[str, Any]) -> list[int]:
        """Ids that a filter means, read window by window; what is added meanwhile is left alone."""
        found: list[int] = []
        with self.connection() as conn:
            row = conn.execute(statement(upper)).fetchone()
            upto, after = (row[0] if row else 0), 0
            while True:
                window = conn.execute(
                    statement(name), {**parameters, "after": after, "upto": upto}
                ).fetchone()
                if window is None or window[0] is None:
                    return found
                after = window[0]
                found.extend(window[1])


def task_filter(task: str | None) -> dict[str, str | None]:
    """`capture*` means a prefix, anything else the whole name."""
    if task is not None and task.endswith("*"):
        return {"task": None, "task_prefix": task[:-1]}
    return {"task": task, "task_prefix": None}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
