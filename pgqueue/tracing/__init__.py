"""OpenTelemetry, where its API is installed and the application has set a provider; without either, next to nothing.

A leaf that every room may import; this file re-exports what they use.
"""

from __future__ import annotations

from pgqueue.tracing.api import Carrier, TraceMode, is_tracing
from pgqueue.tracing.jobs import (
    Message,
    Processing,
    current_trace_id,
    processing,
    producing,
    statement_span,
    with_trace,
)
from pgqueue.tracing.messages import Fire, emitting, firing, origin_of, publishing
from pgqueue.tracing.spans import Producing

__all__ = [
    "Carrier",
    "Fire",
    "Message",
    "Processing",
    "Producing",
    "TraceMode",
    "current_trace_id",
    "emitting",
    "firing",
    "is_tracing",
    "origin_of",
    "processing",
    "producing",
    "publishing",
    "statement_span",
    "with_trace",
]
