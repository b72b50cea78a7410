"""Loads the named SQL of `sql/queries` once, at import. All other rooms of storage execute what is found here.

A statement starts at `-- name: NAME`; the comment lines after it are its header (purpose, called by,
guard, locks, index, returns) and its parameters are psycopg's `%(name)s`. Nothing is ever put into the
text: data travels as parameters.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Final

from pgqueue.errors import ConfigurationError

_NAME = re.compile(r"^-- name: (?P<name>[a-z][a-z0-9_]*)\s*$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*$\n?", re.MULTILINE)


def sql_dir() -> Path:
    """The folder `sql/`: inside an installed wheel, or at the top of a checkout."""
    return _shipped("_sql", "sql")


def alembic_dir() -> Path:
    """The folder `alembic/`: inside an installed wheel, or at the top of a checkout."""
    return _shipped("_alembic", "alembic")


def statement(name: str) -> bytes:
    """The text of the statement `name`, comments removed, as psycopg takes it.

    Raises ConfigurationError for an unknown name.
    """
    try:
        return STATEMENTS[name]
    except KeyError:
        raise ConfigurationError(
            f"statement {name}: not found in sql/queries; the installation is incomplete"
        ) from None


def _shipped(inside: str, beside: str) -> Path:
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / inside, package.parent / beside):
        if candidate.is_dir():
            return candidate
    raise ConfigurationError(
        f"folder {beside}/: not found; the installation is incomplete, install pgqueue again"
    )


@cache
def _load() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted((sql_dir() / "queries").glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        heads = list(_NAME.finditer(text))
        for head, following in zip(heads, [*heads[1:], None], strict=True):
            name = head["name"]
            if name in found:
                raise ConfigurationError(f"statement {name}: defined twice in sql/queries; remove one")
            body = text[head.end() : following.start() if following else len(text)]
            found[name] = _COMMENT.sub("", body).strip().rstrip(";").encode()
    return found


STATEMENTS: Final[dict[str, bytes]] = _load()
