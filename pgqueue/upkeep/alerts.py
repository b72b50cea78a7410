"""Alerts are evaluated and told: by the scheduler that leads, else by whoever notices that nobody does.

The verdicts are the database's (evaluate_alerts); this duty only calls for them and carries them out of the house.
A sink that fails is tried again and hinders neither another sink nor another duty: requests go out in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson
import psycopg
from psycopg.rows import class_row

from pgqueue.core.events import AlertChanged, AlertUndelivered, Events
from pgqueue.settings import Settings
from pgqueue.storage.known import head
from pgqueue.storage.statements import statement
from pgqueue.upkeep.alert_webhook import Webhook
from pgqueue.upkeep.duties import Done, Duty

TRIES_MAX: Final = 6
BACKOFF_S: Final = (5.0, 15.0, 60.0, 180.0, 600.0)
"""Pauses between the tries of one delivery: together about a quarter of an hour."""
LEASE_S: Final = 30.0
"""A sender that has not reported back by then is taken for dead; longer than a request may take."""
SOON_S: Final = 1.0
LOG, NOTIFY, WEBHOOK = "log", "notify", "webhook"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """That one sink is to be told of one incident."""

    event_id: int
    transition: str
    sink: str
    tries: int
    rule: str
    kind: str
    key: str
    severity: str
    value: float
    threshold: float
    pending_since: datetime
    fired_at: datetime
    resolved_at: datetime | None
    runbook_url: str | None
    silenced: bool | None


def alerts_duty(
    settings: Settings,
    events: Events,
    evaluator: Callable[[], str],
    *,
    leads: Callable[[], bool] = lambda: False,
) -> Duty:
    """The duty of one process. `leads`: whether it evaluates by right; others only once nobody has for long."""
    room = _Alerts(settings, events, evaluator, leads)
    return Duty("alerts", settings.alert_interval_s, room.run)


class _Alerts:
    def __init__(
        self,
        settings: Settings,
        events: Events,
        evaluator: Callable[[], str],
        leads: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._events = events
        self._evaluator = evaluator
        self._leads = leads
        self._webhook = Webhook.of(settings)
        self._sinks = [LOG, NOTIFY] + ([WEBHOOK] if self._webhook is not None else [])
        self._outcomes: list[tuple[Sequence[Delivery], str | None]] = []
        self._sending: threading.Thread | None = None

    def run(self, conn: psycopg.Connection[Any]) -> Done:
        self._record_sent(conn)
        leads = self._leads()
        changed = conn.execute(
            statement("evaluate_alerts"),
            {
                "evaluator": self._evaluator(),
                "mode": "leader" if leads else "standin",
                "revision": head(),
                "sinks": self._sinks,
                # A leader that follows another one does not evaluate twice in one interval.
                "pause_s": self._settings.alert_interval_s / 2 if leads else self._settings.alert_takeover_s,
            },
        ).fetchall()
        told = self._tell(conn, self._claim(conn, [LOG, NOTIFY]))
        if self._webhook is not None and not self._is_sending():
            self._send(self._webhook, self._claim(conn, [WEBHOOK]))
        busy = self._is_sending() or bool(self._outcomes)
        return Done(len(changed) + told, again_in_s=SOON_S if busy else None)

    def _claim(self, conn: psycopg.Connection[Any], sinks: Sequence[str]) -> list[Delivery]:
        with conn.cursor(row_factory=class_row(Delivery)) as cursor:
            parameters = {"sinks": list(sinks), "lease_s": LEASE_S}
            return cursor.execute(statement("claim_alert_deliveries"), parameters).fetchall()

    def _tell(self, conn: psycopg.Connection[Any], due: Sequence[Delivery]) -> int:
        for one in due:
            if one.sink == LOG:
                self._events.emit(_told(one))
        texts = [orjson.dumps(numbers_of(one)).decode() for one in due if one.sink == NOTIFY]
        if texts:
            conn.execute(statement("notify_alerts"), {"texts": texts})
        self._record(conn, due, None)
        return len(due)

    def _send(self, webhook: Webhook, due: Sequence[Delivery]) -> None:
        if not due:
            return

        def send() -> None:
            self._outcomes.append((due, webhook.post([facts_of(one) for one in due])))

        self._sending = threading.Thread(target=send, name="pgqueue-alerts", daemon=True)
        self._sending.start()

    def _is_sending(self) -> bool:
        return self._sending is not None and self._sending.is_alive()

    def _record_sent(self, conn: psycopg.Connection[Any]) -> None:
        # Kept until it is written: a round that fails here is repeated.
        while self._outcomes:
            due, error = self._outcomes[0]
            self._record(conn, due, error)
            self._outcomes.pop(0)
            given_up = [one for one in due if error is not None and one.tries >= TRIES_MAX]
            if given_up:
                self._events.emit(AlertUndelivered(WEBHOOK, len(given_up), error or ""))

    def _record(self, conn: psycopg.Connection[Any], due: Sequence[Delivery], error: str | None) -> None:
        if not due:
            return
        outcomes = [
            {
                "event_id": one.event_id,
                "transition": one.transition,
                "sink": one.sink,
                "error": error,
                "again_in_s": None
                if error is None or one.tries >= TRIES_MAX
                else BACKOFF_S[min(one.tries, len(BACKOFF_S)) - 1],
            }
            for one in due
        ]
        conn.execute(statement("record_alert_deliveries"), {"outcomes": orjson.dumps(outcomes).decode()})


def numbers_of(one: Delivery) -> Mapping[str, Any]:
    """What a notification says: ids and numbers, and closed words; who listens asks the table for the rest."""
    return {
        "id": one.event_id,
        "state": one.transition,
        "severity": one.severity,
        "value": one.value,
        "threshold": one.threshold,
    }


def facts_of(one: Delivery) -> Mapping[str, Any]:
    """What a webhook is told of one incident; its keys are a surface that people rely on."""
    return {
        "id": one.event_id,
        "state": one.transition,
        "alert": one.rule,
        "kind": one.kind,
        "key": one.key,
        "severity": one.severity,
        "value": one.value,
        "threshold": one.threshold,
        "pending_since": one.pending_since,
        "fired_at": one.fired_at,
        "resolved_at": one.resolved_at,
        "runbook": one.runbook_url,
    }


def _told(one: Delivery) -> AlertChanged:
    lasted_s = 0.0 if one.resolved_at is None else (one.resolved_at - one.fired_at).total_seconds()
    return AlertChanged(
        event_id=one.event_id,
        alert=one.rule,
        kind=one.kind,
        key=one.key,
        state=one.transition,
        severity=one.severity,
        value=one.value,
        threshold=one.threshold,
        lasted_s=lasted_s,
        silenced=bool(one.silenced),
        runbook=one.runbook_url or "",
    )
