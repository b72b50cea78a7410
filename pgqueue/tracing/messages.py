"""The spans of messages and schedules: around an emit, a delivery to a sink, the fire of a schedule.

For `app.outbox`, handlers, relays and schedulers. Without a provider all of it does next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pgqueue.tracing.api import (
    CONVERSATION_ID,
    DESTINATION,
    MESSAGE_ID,
    OPERATION_NAME,
    OPERATION_TYPE,
    OWN,
    PGQUEUE,
    SYSTEM,
    Carrier,
    TraceMode,
    belongs,
    is_tracing,
    otel,
)
from pgqueue.tracing.spans import Opened, Producing

ORIGIN_HEADER: Final = "pgqueue.trace_id"
"""In a message's headers: the trace of the job whose handler emitted it, where the attempt had one of its own."""


def emitting(topic: str) -> Producing:
    """A span around an emit; its context goes into the message's headers."""
    api = otel()
    if api is None or not is_tracing():
        return Producing()
    return Opened(api, f"emit {topic}", api.trace.SpanKind.PRODUCER, _sent("emit", topic))


def publishing(
    topic: str,
    sink: str,
    *,
    message_id: int,
    attempt: int,
    age_s: float,
    headers: Callable[[], Carrier],
    mode: TraceMode,
) -> Producing:
    """A span around a delivery to a sink; it belongs to the emit's trace or links to it, as attempts of jobs do.

    `headers` is called only where somebody traces; a context that cannot be read is left out.
    """
    api = otel()
    if api is None or not is_tracing():
        return Producing()
    carried = headers()
    origin = api.remote(carried)
    joins = origin is not None and belongs(mode, attempt, age_s)
    attributes = {
        **_sent("publish", topic),
        MESSAGE_ID: str(message_id),
        f"{OWN}sink": sink,
        f"{OWN}attempt": attempt,
    }
    if "correlation_id" in carried:
        attributes[CONVERSATION_ID] = carried["correlation_id"]
    return Opened(
        api,
        f"publish {topic}",
        api.trace.SpanKind.PRODUCER,
        attributes,
        context=api.child_of(origin) if joins else api.empty(),
        links=[] if joins or origin is None else [api.trace.Link(origin)],
    )


class Fire:
    """The span of one fire of a schedule. `headers` carry its context to the job; None where nobody traces."""

    __slots__ = ("_span", "headers")

    def __init__(self, span: Any = None, headers: Mapping[str, str] | None = None) -> None:
        self._span = span
        self.headers = headers

    def decided(self, outcome: str, job_id: int | None) -> None:
        """End it: the fire was decided."""
        if self._span is not None:
            self._span.set_attribute(f"{OWN}outcome", outcome)
            if job_id is not None:
                self._span.set_attribute(MESSAGE_ID, str(job_id))
            self._span.end()

    def undecided(self, cause: str) -> None:
        """End it: another scheduler was faster, or the database refused. `cause` is an error's name, or a word."""
        api = otel()
        if self._span is not None and api is not None:
            api.erred(self._span, cause)
            self._span.end()


def firing(schedule: str, run_key: str) -> Fire:
    """Begin the span of a fire, `run_key` being its run key; the job that it enqueues links to it."""
    api = otel()
    if api is None or not is_tracing():
        return Fire()
    span = api.tracer().start_span(
        f"fire {schedule}",
        context=api.empty(),
        kind=api.trace.SpanKind.INTERNAL,
        attributes={SYSTEM: PGQUEUE, f"{OWN}schedule": schedule, f"{OWN}run_key": run_key},
    )
    headers: dict[str, str] = {}
    api.w3c.inject(headers, api.trace.set_span_in_context(span, api.empty()))
    return Fire(span, headers)


def origin_of(job_headers: Carrier) -> Carrier:
    """What else a message says of the job that emits it: its trace, where the attempt is in another one."""
    api = otel()
    if api is None:
        return {}
    origin = api.remote(job_headers)
    here = api.trace.get_current_span().get_span_context()
    if origin is None or not here.is_valid or origin.trace_id == here.trace_id:
        return {}
    return {ORIGIN_HEADER: api.trace.format_trace_id(origin.trace_id)}


def _sent(operation: str, topic: str) -> dict[str, Any]:
    return {SYSTEM: PGQUEUE, DESTINATION: topic, OPERATION_NAME: operation, OPERATION_TYPE: "send"}
