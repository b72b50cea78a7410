"""What the demo knows about itself, all of it from SQL: the score of the moment, and PROOF.

Called by the demo's loop with the demo's own connection; each function is one statement.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import psycopg

from pgqueue.demo.statements import PROOF, READY, SCORE, UNFINISHED


@dataclass(frozen=True, slots=True)
class Proof:
    """Counts that are zero as long as the promises hold."""

    captured_twice: int
    captured_without_ledger: int
    ledger_without_settlement: int
    rides_lost: int
    fires_not_once: int
    incentives_twice: int
    charged_twice: int
    events_lost: int
    events_out_of_order: int

    @property
    def ok(self) -> bool:
        """Whether all of them are zero."""
        return not any(astuple(self))

    def lines(self) -> list[tuple[str, int]]:
        """The counts with their names in words."""
        return [
            ("captured twice", self.captured_twice),
            ("captured without ledger row", self.captured_without_ledger),
            ("ledger row whose job is not settled", self.ledger_without_settlement),
            ("rides lost", self.rides_lost),
            ("scheduled fires not exactly once", self.fires_not_once),
            ("incentives paid twice for a week", self.incentives_twice),
            ("cards charged twice", self.charged_twice),
            ("events lost", self.events_lost),
            ("events out of order for a ride", self.events_out_of_order),
        ]


@dataclass(frozen=True, slots=True)
class Score:
    """The numbers of one moment, counted since the start; `lag_p95_s` is None while nothing has run."""

    rides: int
    captures: int
    receipts: int
    fees: int
    dead_letters: int
    retries: int
    rescued: int
    kills: int
    cuts: int
    fires: int
    incentives: int
    events: int
    alerts: int
    alerts_resolved: int
    lag_p95_s: float | None
    live_jobs: int


def prove(conn: psycopg.Connection[Any]) -> Proof:
    """Count the violations, in one snapshot."""
    return Proof(*_row(conn, PROOF, {}))


def score(conn: psycopg.Connection[Any], *, window_s: float) -> Score:
    """Read the numbers; the lag is that of the last `window_s` seconds."""
    return Score(*_row(conn, SCORE, {"window_s": window_s}))


def unfinished(conn: psycopg.Connection[Any], *, within_s: float) -> int:
    """How many jobs are not done, those left out that are due in more than `within_s` seconds."""
    return int(_row(conn, UNFINISHED, {"within_s": within_s})[0])


def is_ready(conn: psycopg.Connection[Any], *, workers: int, schedules: int, subscriptions: int) -> bool:
    """Whether so many workers live, so many schedules and subscriptions are known, and the API has booked its first ride."""
    return bool(
        _row(conn, READY, {"workers": workers, "schedules": schedules, "subscriptions": subscriptions})[0]
    )


def _row(conn: psycopg.Connection[Any], text: bytes, parameters: dict[str, Any]) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = conn.execute(text, parameters).fetchone()
    assert row is not None  # noqa: S101 - each of these statements answers with one row
    return row
