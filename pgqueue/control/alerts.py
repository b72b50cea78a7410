"""Alerts as people ask about them and act on them: `app.alerts` and `pgqueue alerts …`.

The verdicts are the database's; the deeds go through SQL functions, which write their audit rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from pgqueue.control.desk import Desk
from pgqueue.control.limits import checked_limit
from pgqueue.core.durations import DURATION_S_MAX
from pgqueue.errors import InvalidOption, NotFoundError
from pgqueue.storage.known import head
from pgqueue.storage.revisions import require_head

SINKS: Final = ("log", "notify", "webhook")
SEVERITIES: Final = ("page", "warn", "info", "tier")
FOR_S_MAX: Final = 7 * 86_400.0
LIMIT: Final = 50
OPEN_MAX: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One incident. `state`: pending, firing or resolved; `key`: what it is about, empty = the whole database.

    `value` was measured last while it exceeded `threshold`. `deliveries`: by transition and sink, how telling went.
    """

    id: int
    rule: str
    kind: str
    key: str
    state: str
    severity: str
    value: float
    threshold: float
    pending_since: datetime
    fired_at: datetime | None
    resolved_at: datetime | None
    acked_at: datetime | None
    acked_by: str | None
    note: str | None
    silenced: bool
    runbook_url: str | None
    deliveries: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """One rule. `last_error`: why it could not be evaluated; None = it could."""

    name: str
    kind: str
    scope: Mapping[str, str]
    threshold: float
    for_s: float
    resolve_s: float
    severity: str
    sinks: Sequence[str]
    enabled: bool
    silenced_until: datetime | None
    silenced_by: str | None
    reason: str | None
    runbook_url: str | None
    last_error: str | None
    updated_by: str | None
    updated_at: datetime
    firing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The last evaluation: when, by whom, in which mode (leader, standin, check). All None before the first."""

    evaluated_at: datetime | None
    evaluator: str | None
    mode: str | None
    seconds: float | None
    age_s: float | None


class Alerts:
    """Questions and deeds about alerts.

    All methods raise DatabaseUnreachable; deeds raise InvalidOption where the environment wants a reason, and
    silencing and acknowledging want one everywhere.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def list(self, *, history: bool = False, limit: int = LIMIT) -> Sequence[Alert]:
        """Open incidents, the firing ones first; `history`: then those that are resolved, the newest first."""
        return self._desk.rows(Alert, "list_alerts", {"history": history, "limit": checked_limit(limit)})

    def rules(self) -> Sequence[AlertRule]:
        """Every rule, by name."""
        return self._desk.rows(AlertRule, "list_alert_rules", {"name": None})

    def rule(self, name: str) -> AlertRule:
        """One rule. Raises NotFoundError."""
        rows = self._desk.rows(AlertRule, "list_alert_rules", {"name": name})
        if not rows:
            raise _unknown(name)
        return rows[0]

    def evaluation(self) -> Evaluation:
        """The last evaluation."""
        return self._desk.rows(Evaluation, "alert_evaluation")[0]

    def check(self) -> Sequence[Alert]:
        """Evaluate all rules now and return what fires. Raises SchemaMismatch where there is nothing to evaluate.

        What is to be told is told by the next worker or scheduler; with none alive, the caller has the answer.
        """
        with self._desk.connection("alerts check") as conn:
            require_head(conn)
        parameters = {
            "evaluator": f"check:{self._desk.actor}",
            "mode": "check",
            "revision": head(),
            "sinks": list(SINKS),
            "pause_s": 0,
        }
        self._desk.value("evaluate_alerts", parameters)
        return [alert for alert in self.list(limit=OPEN_MAX) if alert.state == "firing"]

    def ack(self, alert_id: int, *, reason: str) -> None:
        """Say that somebody sees to an open incident. Raises NotFoundError."""
        _need(reason)
        if not self._desk.value("ack_alert", {"id": alert_id, **self._who(reason)}):
            raise NotFoundError(
                f"alert {alert_id}: no open incident; `pgqueue alerts list` shows the open ones"
            )

    def silence(self, rule: str, *, for_s: float | None, reason: str) -> None:
        """Tell nobody but the log of a rule's incidents for so many seconds; None ends that. Raises NotFoundError."""
        _need(reason)
        if for_s is not None and not 0 < for_s <= DURATION_S_MAX:
            raise InvalidOption("for", "must be a duration such as 1h")
        self._change(rule, {"silenced_until": None} if for_s is None else {}, reason, silence_s=for_s)

    def set(
        self,
        rule: str,
        *,
        threshold: float | None = None,
        for_s: float | None = None,
        resolve_s: float | None = None,
        severity: str | None = None,
        sinks: Sequence[str] | None = None,
        enabled: bool | None = None,
        reason: str | None = None,
    ) -> str:
        """Change a rule; what is not given stays. Returns `changed` or `same`. Raises NotFoundError, InvalidOption."""
        self._desk.need_reason(reason)
        if severity is not None and severity not in SEVERITIES:
            raise InvalidOption("severity", f"must be one of {', '.join(SEVERITIES)}")
        if sinks is not None and not set(sinks) <= set(SINKS):
            raise InvalidOption("sinks", f"must be some of {', '.join(SINKS)}")
        if threshold is not None and not 0 <= threshold < float("inf"):
            raise InvalidOption("threshold", "must be a number from 0 on")
        for field, value in (("for", for_s), ("resolve", resolve_s)):
            if value is not None and not 0 <= value <= FOR_S_MAX:
                raise InvalidOption(field, "is out of range", limit="0s–7d")
        given = {
            "threshold": threshold,
            "for_s": for_s,
            "resolve_s": resolve_s,
            "severity": severity,
            "sinks": None if sinks is None else [*sinks],
            "enabled": enabled,
        }
        attributes = {name: value for name, value in given.items() if value is not None}
        if not attributes:
            raise InvalidOption("attributes", "none given; give one or more, such as --threshold 2")
        return self._change(rule, attributes, reason)

    def _change(
        self, rule: str, attributes: Mapping[str, Any], reason: str | None, silence_s: float | None = None
    ) -> str:
        text = orjson.dumps(attributes).decode()
        deed = {"rule": rule, "attributes": text, "silence_s": silence_s}
        change = self._desk.value("set_alert_rule", {**deed, **self._who(reason)})
        if change is None:
            raise _unknown(rule)
        return str(change)

    def _who(self, reason: str | None) -> Mapping[str, Any]:
        return {"reason": reason, "actor": self._desk.actor, "via": self._desk.via}


def _need(reason: str) -> None:
    if not reason.strip():
        raise InvalidOption("reason", "needed; say why")


def _unknown(rule: str) -> NotFoundError:
    return NotFoundError(f"alert rule {rule}: not known; `pgqueue alerts rules` shows the known ones")
