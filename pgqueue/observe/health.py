"""What health probes are answered: the process's own checks, and whether it can use the database.

Used by observe/serve. `/healthz` never touches the database: else an outage would restart every process. Outsiders
see the names of failing checks and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import orjson

from pgqueue.core.vitals import Check, Vitals
from pgqueue.storage.connect import HEALTH
from pgqueue.storage.link import Link
from pgqueue.storage.revisions import state_of

FRESH_S: Final = 2.0
"""However many probes come, the database is asked once in so long."""
ANSWER_S: Final = 2.0


class DatabaseProbe:
    """Asks the database whether it answers and whether its schema fits; over one connection, opened when first asked."""

    def __init__(self, dsn: str, *, label: str = "") -> None:
        self._link = Link(dsn, HEALTH, label=label, connect_timeout_s=ANSWER_S, deadline_s=ANSWER_S)
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._answer: Sequence[Check] = ()

    def checks(self) -> Sequence[Check]:
        """`database` and `schema`; at most `FRESH_S` old. Those who ask at once wait for one answer."""
        with self._lock:
            if time.monotonic() - self._asked_at >= FRESH_S:
                self._answer = self._ask()
                self._asked_at = time.monotonic()
            return self._answer

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._link.close()

    def _ask(self) -> Sequence[Check]:
        try:
            usable = self._link.try_once(lambda conn: state_of(conn).usable)
        except Exception:  # noqa: BLE001 - whatever it is, the process cannot use the database, and a probe must answer
            self._link.close()
            usable = None
        if usable is None:
            return [Check("database", ok=False)]
        return [Check("database", ok=True), Check("schema", usable)]


class Health:
    """The three questions of a probe, each answered with a status code and a JSON body."""

    def __init__(self, vitals: Vitals, probe: DatabaseProbe) -> None:
        self._vitals = vitals
        self._probe = probe

    def answer(self, path: str) -> tuple[int, bytes] | None:
        """Status and body of `/healthz`, `/readyz`, `/startupz`; None for any other path."""
        match path:
            case "/healthz":
                return _told(self._vitals.live())
            case "/readyz":
                return _told([*self._vitals.ready(), *self._probe.checks()])
            case "/startupz":
                return _told(self._vitals.started())
        return None

    def close(self) -> None:
        """Close what the probe holds."""
        self._probe.close()


def _told(checks: Sequence[Check]) -> tuple[int, bytes]:
    failing = [check.name for check in checks if not check.ok]
    body: dict[str, Any] = {"status": "failing" if failing else "ok", "failing": failing}
    return 503 if failing else 200, orjson.dumps(body)
