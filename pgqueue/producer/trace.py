"""Takes the producer's trace context along in a job's headers, when OpenTelemetry is installed and a span is open.

Called by producer/plan.py. It needs the API alone; the context is written by the API's propagator, never by hand.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

_Carrier = dict[str, str]


def with_trace(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return the headers with `traceparent` and `tracestate` added; what the caller gave wins."""
    api = _api()
    if api is None:
        return headers
    current, inject = api
    if not current():  # no span, no baggage: nothing to take along, found out in a fraction of a microsecond
        return headers
    carrier: _Carrier = {}
    inject(carrier)
    return {**carrier, **(headers or {})} if carrier else headers


@cache
def _api() -> tuple[Callable[[], Any], Callable[[_Carrier], None]] | None:
    try:
        context = importlib.import_module("opentelemetry.context")
        # W3C trace context alone: baggage may hold anything, and a job's row is read by many.
        w3c = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
    except ModuleNotFoundError:
        return None
    return context.get_current, w3c.TraceContextTextMapPropagator().inject
