"""For applications that run pgqueue's revisions in their own Alembic, and for their autogenerate.

Called from an application's `env.py` and configuration. It opens no connection. Without an Alembic of one's
own, `pgqueue db upgrade` does the same; the two agree with each other about what has been done.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from pgqueue.storage.drift import expected_schema
from pgqueue.storage.statements import alembic_dir

__all__ = ["include_name", "include_object", "version_locations"]

_SCHEMA = "pgqueue"
_PARTITION_SUFFIX = re.compile(r"_(?:[0-9]{8}|default)$")


def version_locations() -> str:
    """The folder of pgqueue's revisions, for Alembic's `version_locations` beside the application's own.

    They are a branch of their own, labelled `pgqueue`: `alembic upgrade heads` runs both, `alembic upgrade
    pgqueue@head` only these, `--sql` writes them as text. A revision of the application that uses pgqueue's
    tables says `depends_on = "pgqueue_0001"`.
    """
    return str(alembic_dir() / "versions")


def include_name(name: str | None, type_: str, parent_names: dict[str, Any]) -> bool:
    """Alembic's `include_name` hook: leaves schema pgqueue out before it is even looked at."""
    return not (type_ == "schema" and name == _SCHEMA) and parent_names.get("schema_name") != _SCHEMA


def include_object(item: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Alembic's `include_object` hook: leaves everything in schema pgqueue out of autogenerate.

    Also where the role's search_path holds pgqueue, so that Alembic takes our tables for ones without a
    schema: such a table is ours if its name is and its columns are those of ours.
    """
    del compare_to
    table = item if type_ == "table" else getattr(item, "table", None)
    if table is None:
        return True
    if table.schema == _SCHEMA:
        return False
    if type_ != "table" or not reflected or table.schema is not None:
        return True
    ours = _columns().get(_PARTITION_SUFFIX.sub("", str(name)))
    found = {column.name for column in table.columns}
    return ours is None or not (ours <= found or found <= ours)


@cache
def _columns() -> dict[str, frozenset[str]]:
    columns: dict[str, set[str]] = {}
    for key in expected_schema():
        kind, _, place = key.partition(" ")
        if kind == "column":
            _, table, column = place.split(".")
            columns.setdefault(table, set()).add(column)
    return {table: frozenset(names) for table, names in columns.items()}
