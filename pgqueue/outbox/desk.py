"""The relay's statements: routing, taking lines, saying what became of them. One connection, a transaction a statement.

Called by the runtime. Each statement may be repeated after a lost answer; what that means is said where it matters.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from pgqueue.core.delivery import Verdict
from pgqueue.core.failure import Failure
from pgqueue.outbox.lines import Line, lines_from
from pgqueue.storage.faults import Fault, classify
from pgqueue.storage.link import Link
from pgqueue.storage.statements import statement

ROUTE_BATCH: Final = 500
RUN_MESSAGES: Final = 20
"""Messages taken from one line at a time: 20 of the largest payloads for each of 8 lines are 40 MB."""
PRUNE_BATCH: Final = 1_000


@dataclass(frozen=True, slots=True)
class Routed:
    """What one round made of the messages of a topic."""

    topic: str
    messages: int
    jobs: int
    deliveries: int
    parked: int
    unroutable: int
    oldest_s: float


class RelayDesk:
    """What one relay asks of the database, and says to it."""

    def __init__(self, link: Link, relay_id: str, *, lease_s: float) -> None:
        self._link = link
        self._relay_id = relay_id
        self._lease_s = lease_s
        self._careful = False
        self._generation = 0

    def route(self) -> list[Routed]:
        """Route the next new messages. Repeated after a lost answer it routes those after them: nothing is lost or doubled."""

        def work(conn: psycopg.Connection[Any]) -> list[Any]:
            parameters = {"batch": ROUTE_BATCH, "careful": self._careful}
            return conn.execute(statement("route_messages"), parameters).fetchall()

        try:
            rows = self._link.run(work)
        except psycopg.Error as error:
            if self._careful or classify(error) is not Fault.BAD_DATA:
                raise
            # A row that no rule of ours lets in, written by hand: it alone shall not pass.
            self._careful = True
            rows = self._link.run(work)
        self._careful = False
        return [Routed(*row) for row in rows]

    def claim(self, wants: Iterable[tuple[str, int]], busy: Sequence[Line]) -> list[Line]:
        """Take lines: up to so many of each sink. `busy`: the lines this relay holds."""
        named = [(sink, want) for sink, want in wants if want > 0]
        if not named:
            return []
        claim_id = str(uuid.uuid4())

        def work(conn: psycopg.Connection[Any]) -> list[Any]:
            if self._link.generation != self._generation:
                # The answer to a claim may have been lost with the last connection: nobody knows of its lines.
                conn.execute(
                    statement("release_lanes"),
                    {"relay_id": self._relay_id, "known": [line.claim_id for line in busy]},
                )
                self._generation = self._link.generation
            return conn.execute(
                statement("claim_lanes"),
                {
                    "sinks": [sink for sink, _ in named],
                    "wants": [want for _, want in named],
                    "run": RUN_MESSAGES,
                    "lease_s": self._lease_s,
                    "claim_id": claim_id,
                    "relay_id": self._relay_id,
                },
            ).fetchall()

        asked_at = time.monotonic()
        return lines_from(self._link.run(work), claim_id, asked_at + self._lease_s)

    def settle(
        self,
        line: Line,
        delivered: Sequence[int],
        *,
        failed: int | None = None,
        verdict: Verdict | None = None,
        failure: Failure | None = None,
        keep: bool = False,
    ) -> bool:
        """Say what became of messages of a line; False if it is this relay's no more (or the answer was lost once)."""
        asked_at = time.monotonic()
        parameters = {
            "sink": line.sink,
            "lane": line.lane,
            "claim_id": line.claim_id,
            "delivered": list(delivered),
            "failed": failed,
            "fate": None if verdict is None else verdict.fate,
            "counts": verdict is None or verdict.counts,
            "reason": None if verdict is None else verdict.reason,
            "delay_s": 0.0 if verdict is None else verdict.delay_s,
            "error_type": None if failure is None else failure.error_type,
            "error_message": None if failure is None else failure.message,
            "keep_s": self._lease_s if keep else None,
        }
        row = self._link.run(lambda conn: conn.execute(statement("settle_lane"), parameters).fetchone())
        settled = row is not None and bool(row[0])
        if keep:
            line.lease.until = asked_at + self._lease_s if settled else 0
        return settled

    def renew(self, lines: Sequence[Line]) -> None:
        """Keep these lines for another lease."""
        if not lines:
            return
        asked_at = time.monotonic()
        parameters = {
            "sinks": [line.sink for line in lines],
            "lanes": [line.lane for line in lines],
            "claims": [line.claim_id for line in lines],
            "lease_s": self._lease_s,
        }
        rows = self._link.run(lambda conn: conn.execute(statement("renew_lanes"), parameters).fetchall())
        kept = {(sink, lane) for sink, lane in rows}
        for line in lines:
            line.lease.until = asked_at + self._lease_s if (line.sink, line.lane) in kept else 0

    def drained(self, sinks: Sequence[str]) -> bool:
        """Whether nothing is left that would be delivered by itself."""
        row = self._link.run(
            lambda conn: conn.execute(statement("outbox_drained"), {"sinks": list(sinks)}).fetchone()
        )
        return row is not None and bool(row[0])

    def prune(self, keep_days: int) -> int:
        """Drop parked messages that are too old; how many."""
        parameters = {"keep_days": keep_days, "batch": PRUNE_BATCH}
        row = self._link.run(lambda conn: conn.execute(statement("prune_parked"), parameters).fetchone())
        return 0 if row is None else int(row[0])
