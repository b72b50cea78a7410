"""Takes the producer's trace context along in a job's headers, when OpenTelemetry is installed and a span is open."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any


@cache
def _inject() -> Any:
    try:
        return importlib.import_module("opentelemetry.propagate").inject
    except ModuleNotFoundError:
        return None


def with_trace(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return the headers with `traceparent` and its kin added by the configured propagator; the caller's own win."""
    inject = _inject()
    if inject is None:
        return headers
    carrier: dict[str, str] = {}
    inject(carrier)
    if not carrier:
        return headers
    return {**carrier, **(headers or {})}
