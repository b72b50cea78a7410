"""OpenTelemetry, where its API is installed and the application has set a provider; without either, next to nothing.

A leaf that producer, worker and observe may import. All names of the messaging conventions stand here and nowhere
else: they are still in development there, so they may change here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Final, Literal, Self

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
LINKS_MAX: Final = 128
"""Links of a batch's span; the SDK keeps no more by default."""
SOON_S: Final = 60.0
"""`auto`: an attempt that starts within so long of its enqueue belongs to the same trace."""

Carrier = Mapping[str, str]


class Producing:
    """A block in which jobs are enqueued; used as `with producing(…) as span: …; span.made(ids)`."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was begun."""

    def made(self, job_id: int, *, queue: str | None) -> None:
        """Note the job's id and the queue that it went to."""


class Processing:
    """The span of one attempt, or of a call for many jobs. `ids` are trace id and span id as log lines spell them."""

    __slots__ = ("_ended", "_span", "_token", "ids")

    def __init__(self, span: Any) -> None:
        api = _api()
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
        api = _api()
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
                self._span.set_attribute(ERROR_TYPE, kind)
                self._span.set_status(api.trace.Status(api.trace.StatusCode.ERROR, kind))

    def close(self) -> None:
        """End the span, in the thread or task that began it."""
        api = _api()
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


def is_tracing() -> bool:
    """Whether the application has set a tracer provider; asked per job, so it must cost well under a microsecond."""
    api = _api()
    return api is not None and not isinstance(api.trace.get_tracer_provider(), api.proxy)


def producing(queue: str | None, task: str, *, count: int = 1, operation: str = "enqueue") -> Producing:
    """A span around an enqueue; its context is what `with_trace` writes into the jobs' headers meanwhile.

    count: of jobs; 0: many, and nobody knows how many.
    """
    if not is_tracing():
        return _NOT_PRODUCING
    return _Producing(queue, task, count, operation)


def processing(
    messages: Sequence[Message], mode: TraceMode, *, ignored: Callable[[Message], None], many: bool = False
) -> Processing | None:
    """Begin the span of an attempt, or (`many`) of one call for several jobs; None where nobody traces.

    `ignored` hears of jobs whose trace context cannot be read.
    """
    api = _api()
    if api is None or not is_tracing():
        return None
    first = messages[0]
    links: list[Any] = []
    parent: Any = None
    for message in messages:
        context = _remote(api, message, ignored)
        if context is None:
            continue
        if not many and _belongs(mode, message):
            parent = api.trace.set_span_in_context(api.trace.NonRecordingSpan(context), api.empty())
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
    api = _api()
    if api is None or not api.context.get_current():  # nothing to take along, found out at once
        return headers
    carrier: dict[str, str] = {}
    api.w3c.inject(carrier)
    return {**carrier, **(headers or {})} if carrier else headers


def current_trace_id() -> str | None:
    """The trace id of the span that is open here, as log lines spell it; None without one."""
    api = _api()
    if api is None:
        return None
    context = api.trace.get_current_span().get_span_context()
    return api.trace.format_trace_id(context.trace_id) if context.is_valid else None


def statement_span(name: str, kind: str, seconds: float, jobs: int, now_ns: int) -> None:
    """A span of a claim or a settlement that has just ended, made from its event."""
    api = _api()
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


class _Producing(Producing):
    __slots__ = ("_span", "_token")

    def __init__(self, queue: str | None, task: str, count: int, operation: str) -> None:
        api = _api()
        assert api is not None  # noqa: S101 - asked before
        attributes: dict[str, Any] = {
            SYSTEM: PGQUEUE,
            OPERATION_NAME: operation,
            OPERATION_TYPE: "send",
            f"{OWN}task": task,
        }
        if queue is not None:
            attributes[DESTINATION] = queue
        if count > 1:
            attributes[BATCH_COUNT] = count
        self._span = api.tracer().start_span(
            f"{operation} {queue or task}",
            kind=api.trace.SpanKind.PRODUCER if count == 1 else api.trace.SpanKind.CLIENT,
            attributes=attributes,
        )
        self._token = api.context.attach(api.trace.set_span_in_context(self._span))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        api = _api()
        assert api is not None  # noqa: S101 - asked before
        if kind is not None:  # the error's text may hold values: its name must do
            self._span.set_attribute(ERROR_TYPE, kind.__name__)
            self._span.set_status(api.trace.Status(api.trace.StatusCode.ERROR, kind.__name__))
        api.context.detach(self._token)
        self._span.end()

    def made(self, job_id: int, *, queue: str | None) -> None:
        self._span.set_attribute(MESSAGE_ID, str(job_id))
        if queue is not None:
            self._span.set_attribute(DESTINATION, queue)


@dataclass(frozen=True, slots=True)
class _Api:
    """The parts of OpenTelemetry's API that are used."""

    trace: Any
    context: Any
    w3c: Any
    proxy: type
    empty: Callable[[], Any]

    def tracer(self) -> Any:
        """The tracer of the provider that is set now."""
        return self.trace.get_tracer(PGQUEUE)


@cache
def _api() -> _Api | None:
    try:
        trace = importlib.import_module("opentelemetry.trace")
        context = importlib.import_module("opentelemetry.context")
        # W3C trace context alone: baggage may hold anything, and a job's row is read by many.
        w3c = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
    except ModuleNotFoundError:
        return None
    return _Api(
        trace, context, w3c.TraceContextTextMapPropagator(), trace.ProxyTracerProvider, context.Context
    )


_NOT_PRODUCING: Final = Producing()


def _remote(api: _Api, message: Message, ignored: Callable[[Message], None]) -> Any:
    headers = message.headers
    if not isinstance(headers, Mapping) or "traceparent" not in headers:
        return None
    carrier = {name: str(headers[name]) for name in ("traceparent", "tracestate") if name in headers}
    context = api.trace.get_current_span(api.w3c.extract(carrier, api.empty())).get_span_context()
    if context.is_valid:
        return context
    ignored(message)
    return None


def _belongs(mode: TraceMode, message: Message) -> bool:
    if mode == "auto":
        return message.attempt == 1 and message.age_s is not None and message.age_s < SOON_S
    return mode == "parent"


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
