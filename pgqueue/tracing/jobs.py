"""The spans of jobs: around an enqueue, an attempt, a call for many jobs; and of pgqueue's own statements.

For producers, workers and the listener that tells of statements. Without a provider all of it does next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pgqueue.tracing.api import (
    BATCH_COUNT,
    CLIENT_ID,
    CONVERSATION_ID,
    DESTINATION,
    EXCEPTION,
    MESSAGE_ID,
    OPERATION_NAME,
    OPERATION_TYPE,
    OWN,
    PGQUEUE,
    SYSTEM,
    TRACEPARENT,
    Carrier,
    TraceMode,
    belongs,
    is_tracing,
    otel,
)
from pgqueue.tracing.spans import Opened, Producing

LINKS_MAX: Final = 128
"""Links of a batch's span; the SDK keeps no more by default."""


class Processing:
    """The span of one attempt, or of a call for many jobs. `ids` are trace id and span id as log lines spell them."""

    __slots__ = ("_ended", "_span", "_token", "ids")

    def __init__(self, span: Any) -> None:
        api = otel()
        assert api is not None  # noqa: S101 - a span was made
        self._span = span
        self._token = api.context.attach(api.trace.set_span_in_context(span))
        self._ended = False
        found = span.get_span_context()
        self.ids = (api.trace.format_trace_id(found.trace_id), api.trace.format_span_id(found.span_id))

    def outcome(
        self, outcome: str, error: tuple[str, str, str | None] | None = None, *, failed: bool = False
    ) -> None:
        """How it ended; `error` is type, redacted message and traceback. A snooze or a cancel has no error status."""
        api = otel()
        if api is None or self._ended:
            return
        self._ended = True
        self._span.set_attribute(f"{OWN}outcome", outcome)
        if error is not None:
            kind, message, frames = error
            self._span.add_event(
                EXCEPTION,
                {
                    f"{EXCEPTION}.type": kind,
                    f"{EXCEPTION}.message": message,
                    f"{EXCEPTION}.stacktrace": frames or "",
                },
            )
            if failed:
                api.erred(self._span, kind)

    def close(self) -> None:
        """End the span, in the thread or task that began it."""
        api = otel()
        if api is not None:
            api.context.detach(self._token)
        self._span.end()


@dataclass(frozen=True, slots=True)
class Message:
    """What a span says of a job."""

    job_id: int
    task: str
    queue: str
    attempt: int
    max_attempts: int
    priority: int
    claim_id: str
    worker_id: str
    headers: Carrier | None
    age_s: float | None = None  # since it was enqueued


def producing(queue: str | None, task: str, *, count: int = 1) -> Producing:
    """A span around an enqueue; its context is what `with_trace` writes into the jobs' headers meanwhile.

    count: of jobs; 0: many, and nobody knows how many.
    """
    api = otel()
    if api is None or not is_tracing():
        return Producing()
    attributes: dict[str, Any] = {
        SYSTEM: PGQUEUE,
        OPERATION_NAME: "enqueue",
        OPERATION_TYPE: "send",
        f"{OWN}task": task,
    }
    if queue is not None:
        attributes[DESTINATION] = queue
    if count > 1:
        attributes[BATCH_COUNT] = count
    kind = api.trace.SpanKind.PRODUCER if count == 1 else api.trace.SpanKind.CLIENT
    return Opened(api, f"enqueue {queue or task}", kind, attributes)


def processing(
    messages: Sequence[Message], mode: TraceMode, *, ignored: Callable[[Message], None], many: bool = False
) -> Processing | None:
    """Begin the span of an attempt, or (`many`) of one call for several jobs; None where nobody traces.

    `ignored` hears of jobs whose trace context cannot be read.
    """
    api = otel()
    if api is None or not is_tracing():
        return None
    first = messages[0]
    links: list[Any] = []
    parent: Any = None
    for message in messages:
        context = api.remote(message.headers)
        if context is None:
            if message.headers is not None and TRACEPARENT in message.headers:
                ignored(message)
            continue
        if not many and belongs(mode, message.attempt, message.age_s):
            parent = api.child_of(context)
        elif len(links) < LINKS_MAX:
            links.append(api.trace.Link(context))
    span = api.tracer().start_span(
        f"process {first.queue}",
        # Never the context that happens to be open in this thread: an attempt has no other parent than its enqueue.
        context=parent if parent is not None else api.empty(),
        kind=api.trace.SpanKind.CONSUMER,
        links=links,
        attributes=_of_batch(messages) if many else _of_job(first),
    )
    return Processing(span)


def with_trace(headers: Carrier | None) -> Carrier | None:
    """Return the headers with the current context's `traceparent` and `tracestate` added; what the caller gave wins."""
    api = otel()
    if api is None or not api.context.get_current():  # nothing to take along, found out at once
        return headers
    carrier: dict[str, str] = {}
    api.w3c.inject(carrier)
    return {**carrier, **(headers or {})} if carrier else headers


def current_trace_id() -> str | None:
    """The trace id of the span that is open here, as log lines spell it; None without one."""
    api = otel()
    if api is None:
        return None
    context = api.trace.get_current_span().get_span_context()
    return api.trace.format_trace_id(context.trace_id) if context.is_valid else None


def statement_span(name: str, kind: str, seconds: float, jobs: int, now_ns: int) -> None:
    """A span of a claim or a settlement that has just ended, made from its event."""
    api = otel()
    if api is None or not is_tracing():
        return
    span = api.tracer().start_span(
        f"{name} {PGQUEUE}",
        context=api.empty(),
        kind=api.trace.SpanKind.CLIENT,
        attributes={SYSTEM: PGQUEUE, OPERATION_NAME: name, OPERATION_TYPE: kind, BATCH_COUNT: jobs},
        start_time=now_ns - int(seconds * 1e9),
    )
    span.end(end_time=now_ns)


def _of_job(message: Message) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        SYSTEM: PGQUEUE,
        DESTINATION: message.queue,
        OPERATION_NAME: "process",
        OPERATION_TYPE: "process",
        MESSAGE_ID: str(message.job_id),
        CLIENT_ID: message.worker_id,
        f"{OWN}task": message.task,
        f"{OWN}attempt": message.attempt,
        f"{OWN}max_attempts": message.max_attempts,
        f"{OWN}priority": message.priority,
        f"{OWN}claim_id": message.claim_id,
    }
    headers = message.headers or {}
    if isinstance(headers.get("correlation_id"), str):
        attributes[CONVERSATION_ID] = headers["correlation_id"]
    if isinstance(headers.get("pgqueue.schedule"), str):
        attributes[f"{OWN}schedule"] = headers["pgqueue.schedule"]
    return attributes


def _of_batch(messages: Iterable[Message]) -> dict[str, Any]:
    jobs = list(messages)
    first = jobs[0]
    return {
        SYSTEM: PGQUEUE,
        DESTINATION: first.queue,
        OPERATION_NAME: "process",
        OPERATION_TYPE: "process",
        CLIENT_ID: first.worker_id,
        BATCH_COUNT: len(jobs),
        f"{OWN}task": first.task,
    }
