"""What people did, as rows of `operator_audit`: `pgqueue audit list`. Reads only; the deeds write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pgqueue.control.desk import Desk, read
from pgqueue.control.limits import checked_limit
from pgqueue.core.filter import parse_filter
from pgqueue.core.filter_compile import compile_filter
from pgqueue.storage.statements import statement

NEWEST: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """One deed: `actor` as they said, `db_role` as the server knows, on `target`; how many matched and changed."""

    id: int
    at: datetime
    actor: str
    db_role: str
    via: str
    action: str
    target: str
    reason: str | None
    matched: int
    changed: int
    detail: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class DeedPage:
    """Part of a listing; `before` continues it, None = that was all. A page may be short and yet not the last."""

    rows: list[Deed]
    before: int | None


class Audit:
    """Questions about what people did. All methods raise DatabaseUnreachable and, for a filter, InvalidFilter."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def list(self, where: str = "", *, limit: int = 50, before: int = NEWEST) -> list[Deed]:
        """Deeds, newest first, that a filter means: `action:redrive actor:olga* since:-24h`."""
        return self.page(where, limit=limit, before=before).rows

    def page(self, where: str = "", *, limit: int = 50, before: int = NEWEST) -> DeedPage:
        """As `list`, with the place to go on from. Looks at 100,000 rows at most."""
        checked_limit(limit)
        compiled = compile_filter(parse_filter(where, "audit"))
        parameters = {**compiled.parameters(), "before": before, "limit": limit}
        with self._desk.connection("audit list") as conn:
            rows = read(conn, Deed, "list_deeds", parameters)
            if len(rows) == limit:
                return DeedPage(rows, rows[-1].id)
            window = conn.execute(statement("deeds_window"), {"before": before}).fetchone()
        return DeedPage(rows, None if window is None else int(window[0]))
