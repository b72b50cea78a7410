"""OpenTelemetry's API where it is installed, the names of its messaging conventions, and whether anybody traces.

For the other files of this room. The names stand here and nowhere else: they are still in development there, so
they may change here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

TraceMode = Literal["link", "parent", "auto"]

SYSTEM: Final = "messaging.system"
DESTINATION: Final = "messaging.destination.name"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGE_ID: Final = "messaging.message.id"
CONVERSATION_ID: Final = "messaging.message.conversation_id"
CLIENT_ID: Final = "messaging.client.id"
BATCH_COUNT: Final = "messaging.batch.message_count"
ERROR_TYPE: Final = "error.type"
EXCEPTION: Final = "exception"
OWN: Final = "messaging.pgqueue."

PGQUEUE: Final = "pgqueue"
SOON_S: Final = 60.0
"""`auto`: an attempt that starts within so long of its enqueue belongs to the same trace."""

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

Carrier = Mapping[str, str]

_PROVIDER: Final = "_TRACER_PROVIDER"
_PROVIDER_VARIABLE: Final = "OTEL_PYTHON_TRACER_PROVIDER"


def is_tracing() -> bool:
    """Whether the application has set a tracer provider; asked per job, so it must cost a small part of a microsecond."""
    api = otel()
    if api is None:
        return False
    # The public question reads the environment each time. What it guards is looked at instead, where it is.
    if api.set_by_code and getattr(api.trace, _PROVIDER, api) is None:
        return False
    return not isinstance(api.trace.get_tracer_provider(), api.proxy)


@dataclass(frozen=True, slots=True)
class Api:
    """The parts of OpenTelemetry's API that are used. `set_by_code`: the environment names no provider."""

    trace: Any
    context: Any
    w3c: Any
    proxy: type
    empty: Callable[[], Any]
    set_by_code: bool

    def tracer(self) -> Any:
        """The tracer of the provider that is set now."""
        return self.trace.get_tracer(PGQUEUE)

    def remote(self, headers: Carrier | None) -> Any:
        """The span context that headers carry; None without one, or where it cannot be read."""
        if not isinstance(headers, Mapping) or TRACEPARENT not in headers:
            return None
        carrier = {name: str(headers[name]) for name in (TRACEPARENT, TRACESTATE) if name in headers}
        context = self.trace.get_current_span(self.w3c.extract(carrier, self.empty())).get_span_context()
        return context if context.is_valid else None

    def child_of(self, context: Any) -> Any:
        """The context in which a span becomes the child of a remote one."""
        return self.trace.set_span_in_context(self.trace.NonRecordingSpan(context), self.empty())

    def erred(self, span: Any, kind: str) -> None:
        """Mark a span as failed, by the error's name alone: its text may hold values."""
        span.set_attribute(ERROR_TYPE, kind)
        span.set_status(self.trace.Status(self.trace.StatusCode.ERROR, kind))


@cache
def otel() -> Api | None:
    """The API; None where the package is not installed."""
    try:
        trace = importlib.import_module("opentelemetry.trace")
        context = importlib.import_module("opentelemetry.context")
        # W3C trace context alone: baggage may hold anything, and a job's row is read by many.
        w3c = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
    except ModuleNotFoundError:
        return None
    return Api(
        trace,
        context,
        w3c.TraceContextTextMapPropagator(),
        trace.ProxyTracerProvider,
        context.Context,
        _PROVIDER_VARIABLE not in os.environ,
    )


def belongs(mode: TraceMode, attempt: int, age_s: float | None) -> bool:
    """Whether an attempt of this age joins the trace of what caused it; otherwise it links to it."""
    if mode == "auto":
        return attempt == 1 and age_s is not None and age_s < SOON_S
    return mode == "parent"
