"""Spans of claims and settlements, made from their events: `app.events.listen(StatementSpans())`.

Off by default (`trace_statements`): a worker sends many of them, and no request is waiting for any.
"""

from __future__ import annotations

import time

from pgqueue.core.events import ClaimTaken, SettlementWritten
from pgqueue.tracing import statement_span


class StatementSpans:
    """A listener; without a tracer provider it does nothing."""

    def __call__(self, event: object) -> None:
        """Make a span of a claim that brought jobs, or of a settlement."""
        if isinstance(event, ClaimTaken) and event.jobs:
            statement_span("claim", "receive", event.seconds, event.jobs, time.time_ns())
        elif isinstance(event, SettlementWritten):
            statement_span("ack", "settle", event.seconds, event.jobs, time.time_ns())
