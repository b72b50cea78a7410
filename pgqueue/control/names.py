"""Names for a shell's completion: of queues, tasks, schedules, rules, topics. Quick, or nothing at all. Reads only."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Final, Literal

from pgqueue.storage.connect import COMPLETE, connect
from pgqueue.storage.statements import statement

Kind = Literal["queue", "task", "schedule", "rule", "topic", "worker"]

LIMIT_S: Final = 0.3
NAMES_MAX: Final = 100


def known_names(dsn: str, kind: Kind, prefix: str, *, limit_s: float = LIMIT_S) -> Sequence[str]:
    """Names that begin with `prefix`, 100 at most; none where the database is slow, away, or lacks the schema.

    The limit is held by a thread that nobody waits for: opening a connection may hang longer than libpq lets one say.
    """
    found: list[str] = []

    def ask() -> None:
        with contextlib.closing(connect(dsn, COMPLETE, connect_timeout_s=2, prepare=False)) as conn:
            asked = {"kind": kind, "prefix": prefix, "limit": NAMES_MAX}
            found.extend(name for (name,) in conn.execute(statement("complete_names"), asked).fetchall())

    def ask_silently() -> None:
        # Whatever it is, somebody is in the middle of typing: no word of it helps.
        with contextlib.suppress(Exception):
            ask()

    thread = threading.Thread(target=ask_silently, name="pgqueue-complete", daemon=True)
    thread.start()
    thread.join(limit_s)
    return [] if thread.is_alive() else [name for name in found if name.isprintable()]
