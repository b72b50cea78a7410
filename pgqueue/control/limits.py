"""How many rows an answer may have: every list of this room is checked here before it asks the database. Pure."""

from __future__ import annotations

from typing import Final

from pgqueue.errors import InvalidOption

LIMIT_MAX: Final = 10_000


def checked_limit(limit: int) -> int:
    """Return `limit` if it is 1 to LIMIT_MAX; else InvalidOption."""
    if not 1 <= limit <= LIMIT_MAX:
        raise InvalidOption("limit", "out of range", limit=f"1–{LIMIT_MAX}")
    return limit
