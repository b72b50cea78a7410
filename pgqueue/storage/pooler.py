"""What stands between: a transaction pooler's own words about itself. Called by `pgqueue doctor`.

PgBouncer answers questions in a database of its own, to those whom it lists as administrators or readers of statistics.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

VERSION_MIN: Final = (1, 22)
"""From here on prepared statements survive transaction mode, if max_prepared_statements is set."""

_VERSION: Final = re.compile(r"PgBouncer (\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class PoolerFacts:
    """Its version, and how many prepared statements it keeps per client; None: it would not say."""

    version: tuple[int, int] | None
    prepared_max: int | None

    @property
    def prepares(self) -> bool:
        """Whether prepared statements work through it for sure."""
        return (self.version or (0, 0)) >= VERSION_MIN and bool(self.prepared_max)


def ask_pooler(dsn: str, *, timeout_s: float = 2) -> PoolerFacts:
    """Ask PgBouncer's own database; what it refuses to tell is None."""
    version, prepared = None, None
    with contextlib.suppress(psycopg.Error):
        address = make_conninfo(dsn, dbname="pgbouncer", connect_timeout=str(max(2, round(timeout_s))))
        with contextlib.closing(psycopg.connect(address, autocommit=True, prepare_threshold=None)) as conn:
            version = read_version(_first(conn.execute(b"SHOW VERSION").fetchone()))
            for row in conn.execute(b"SHOW CONFIG").fetchall():
                if row[0] == "max_prepared_statements":
                    prepared = int(row[1])
    return PoolerFacts(version, prepared)


def read_version(text: str) -> tuple[int, int] | None:
    """Read `PgBouncer 1.22.1`."""
    found = _VERSION.search(text)
    return None if found is None else (int(found[1]), int(found[2]))


def _first(row: tuple[Any, ...] | None) -> str:
    return "" if row is None else str(row[0])
