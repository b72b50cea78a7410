"""The fields of log lines that have many: an attempt's canonical line, a process's, an alert's.

Called by observe/logs. What is None is left out; keys and their order are a surface that people rely on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from pgqueue.core.events import AlertChanged, AttemptEnded, ProcessChanged

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def attempt_facts(event: AttemptEnded) -> dict[str, Any]:
    """The canonical line's fields, in the order in which they are read; what is None is left out."""
    headers = event.headers or {}
    facts: Mapping[str, Any] = {
        "job_id": event.job_id,
        "task": event.task,
        "queue": event.queue,
        "attempt": event.attempt,
        "max_attempts": event.max_attempts,
        "outcome": event.outcome,
        "reason": event.reason,
        "wait_s": round(event.wait_s, 6),
        "run_s": round(event.run_s, 6),
        "total_s": _rounded(event.total_s),
        "settle_s": _rounded(event.settle_s),
        "worker_id": event.worker_id,
        "claim_id": event.claim_id,
        "idempotency_key_hash": _hashed(event.idempotency_key),
        "schedule": headers.get("pgqueue.schedule"),
        "correlation_id": headers.get("correlation_id"),
        **_trace(headers.get("traceparent")),
        **_attempt_span(event.span_ids),
        "error_type": event.error_type,
        "error_message": event.error_message,
        "error_fingerprint": event.error_fingerprint,
        "next_delay_s": None if event.next_delay_s is None else round(event.next_delay_s, 3),
        "sqlstate": event.sqlstate,
        "warning": event.warning,
    }
    return {name: value for name, value in facts.items() if value is not None}


def process_facts(event: ProcessChanged) -> dict[str, Any]:
    """A child process of a worker: which, and how it ended."""
    facts: dict[str, Any] = {"role": event.role, "number": event.number, "pid": event.pid}
    if event.database is not None:
        facts["database"] = event.database
    if event.exit_code is not None:
        facts["exit_code"] = event.exit_code
    if event.lived_s is not None:
        facts["lived_s"] = round(event.lived_s, 3)
    if event.again_in_s is not None:
        facts["again_in_s"] = round(event.again_in_s, 3)
    if event.deaths:
        facts["deaths_count"] = event.deaths
    return facts


def alert_facts(event: AlertChanged) -> dict[str, Any]:
    """An alert that fires or was resolved."""
    facts: dict[str, Any] = {
        "alert": event.alert,
        "kind": event.kind,
        "key": event.key,
        "severity": event.severity,
        "value": round(event.value, 3),
        "threshold": round(event.threshold, 3),
        "alert_id": event.event_id,
        "runbook": event.runbook,
    }
    if event.state == "resolved":
        facts["lasted_s"] = round(event.lasted_s, 3)
    if event.silenced:
        facts["silenced"] = True
    return facts


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _hashed(key: str | None) -> str | None:
    return None if key is None else hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _attempt_span(ids: tuple[str, str] | None) -> dict[str, str]:
    return {} if ids is None else {"attempt_trace_id": ids[0], "attempt_span_id": ids[1]}


def _trace(traceparent: str | None) -> dict[str, str]:
    match = _TRACEPARENT.fullmatch(traceparent or "")
    return {} if match is None else {"trace_id": match[1], "span_id": match[2]}
