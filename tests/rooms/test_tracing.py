"""Traces with OpenTelemetry's own SDK: enqueue, attempt, retry, dead letter, redrive, batch; and silence without it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import messaging_attributes as names
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import SpanKind, StatusCode

from pgqueue import Reject, Retry, Snooze, tracing
from pgqueue.core.events import AttemptEnded, AttemptsSucceeded, JobsEnqueued, TraceIgnored
from pgqueue.observe.log_sink import LogSink
from pgqueue.observe.logs import LogListener
from pgqueue.observe.statement_spans import StatementSpans
from pgqueue.settings import Settings
from pgqueue.tracing import api

CANARY = "hunter2-in-the-row"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The application's provider; the API lets it be set once per process, so the test puts it where that would."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


def trace_of(span: ReadableSpan) -> str:
    return trace.format_trace_id(span.context.trace_id)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_one_trace_id_is_found_everywhere(site: Any, spans: InMemorySpanExporter) -> None:
    class Kept(LogSink):
        lines: list[str] = []

        def write(self, line: str) -> None:
            self.lines.append(line)

    site.app.events.listen(LogListener(Settings(log_format="json", log_level="debug"), Kept(None)))

    @site.app.task(name="pay", queue="critical")
    def pay(ctx: Any, n: int) -> None:
        ctx.conn.execute("SELECT 1")
        inside.append(trace.get_current_span().get_span_context().span_id)

    inside: list[int] = []
    job = pay.using(headers={"correlation_id": "c-1"}).enqueue(site.conn, n=1)
    site.drain()
    (sent,), (ran,) = named(spans, "enqueue critical"), named(spans, "process critical")
    job_trace = trace_of(sent)
    assert (sent.kind, ran.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert attributes(sent)[names.MESSAGING_MESSAGE_ID] == str(job.id)
    said = attributes(ran)
    assert said[names.MESSAGING_SYSTEM] == "pgqueue"
    assert said[names.MESSAGING_DESTINATION_NAME] == "critical"
    assert said[names.MESSAGING_MESSAGE_CONVERSATION_ID] == "c-1"
    assert said[names.MESSAGING_OPERATION_TYPE] == "process"
    assert said["messaging.pgqueue.outcome"] == "succeeded"
    assert (said["messaging.pgqueue.attempt"], said["messaging.pgqueue.task"]) == (1, "pay")
    assert inside == [ran.context.span_id], "the handler runs inside its span"
    # Linked, not joined: each attempt begins a trace.
    (link,) = ran.links
    assert trace.format_trace_id(link.context.trace_id) == job_trace != trace_of(ran)
    assert link.context.span_id == sent.context.span_id
    assert ran.parent is None
    headers = site.one("SELECT headers FROM pgqueue.job_history WHERE job_id = %s", job.id)
    assert job_trace in headers["traceparent"]
    lines = [json.loads(line) for line in Kept.lines]
    (enqueued,) = [line for line in lines if line["event"] == "job.enqueued"]
    (settled,) = [line for line in lines if line["event"] == "job.settled"]
    assert enqueued["trace_id"] == settled["trace_id"] == job_trace
    assert enqueued["job_id"] == settled["job_id"] == job.id
    assert settled["attempt_trace_id"] == trace_of(ran)


@pytest.mark.parametrize("mode", ["parent", "auto"])
def test_attempts_may_belong_to_the_trace_of_their_enqueue(
    make_site: Any, spans: InMemorySpanExporter, mode: str
) -> None:
    site = make_site(trace_mode=mode)

    @site.app.task(name="flaky", retry=Retry(max_retries=1, initial_delay="10ms"))
    async def flaky(ctx: Any) -> None:
        if ctx.job.attempt == 1:
            raise RuntimeError("not yet")

    flaky.enqueue(site.conn)
    site.drain()
    (sent,), (first, second) = named(spans, "enqueue default"), named(spans, "process default")
    assert trace_of(first) == trace_of(sent)
    assert first.parent is not None
    assert first.parent.span_id == sent.context.span_id
    if mode == "parent":
        assert trace_of(second) == trace_of(sent)
    else:
        assert trace_of(second) != trace_of(sent)
        assert second.links[0].context.trace_id == sent.context.trace_id


def test_the_context_survives_retry_death_and_redrive(site: Any, spans: InMemorySpanExporter) -> None:
    broken = [True]

    @site.app.task(name="doomed", retry=Retry(max_retries=1, initial_delay="10ms"))
    def doomed() -> None:
        if broken:
            raise ValueError("no")

    dead = doomed.enqueue(site.conn)
    site.drain()
    broken.clear()
    (again,) = site.app.dead_letters.redrive(dead.id, reason="mended").values()
    site.drain()
    (sent,) = named(spans, "enqueue default")
    attempts = named(spans, "process default")
    assert [attributes(span)["messaging.pgqueue.outcome"] for span in attempts] == [
        "retry",
        "dead",
        "succeeded",
    ]
    assert [attributes(span)[names.MESSAGING_MESSAGE_ID] for span in attempts] == [
        str(dead.id),
        str(dead.id),
        str(again),
    ]
    assert {span.links[0].context.trace_id for span in attempts} == {sent.context.trace_id}
    assert len({trace_of(span) for span in attempts}) == 3
    assert [span.status.status_code for span in attempts] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]


@pytest.mark.proves("S8")
def test_an_error_is_told_by_its_type_and_redacted_text(site: Any, spans: InMemorySpanExporter) -> None:
    @site.app.task(name="leaks")
    def leaks(ctx: Any) -> None:
        ctx.conn.execute("CREATE TEMP TABLE t (v text CHECK (v = 'x'))")
        ctx.conn.execute("INSERT INTO t VALUES (%s)", (CANARY,))

    @site.app.task(name="waits", retry=Retry(max_retries=0))
    def waits(ctx: Any) -> None:
        raise Snooze("1h")

    @site.app.task(name="rejects")
    def rejects() -> None:
        raise Reject("because")

    for task in (leaks.using(retry=Retry(max_retries=0)), waits, rejects):
        task.enqueue(site.conn)
    site.drain()
    told = {attributes(span)["messaging.pgqueue.task"]: span for span in named(spans, "process default")}
    bad = told["leaks"]
    assert "CheckViolation" in attributes(bad)[error_attributes.ERROR_TYPE]
    (event,) = bad.events
    assert event.name == "exception"
    assert bad.status.status_code is StatusCode.ERROR
    assert CANARY not in bad.to_json()
    assert told["waits"].status.status_code is StatusCode.UNSET, "a snooze is no error"
    assert attributes(told["waits"])["messaging.pgqueue.outcome"] == "snoozed"
    assert attributes(told["rejects"])["messaging.pgqueue.outcome"] == "dead"


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_batch_has_one_span_with_a_link_per_job(site: Any, spans: InMemorySpanExporter, how: str) -> None:
    if how == "sync":

        @site.app.task(name="cells", batch=10)
        def cells(ctx: Any, jobs: list[Any]) -> None:
            ctx.conn.execute("SELECT 1")
    else:

        @site.app.task(name="cells", batch=10)
        async def cells(ctx: Any, jobs: list[Any]) -> None:
            await ctx.conn.execute("SELECT 1")

    for _ in range(3):
        cells.enqueue(site.conn)
    site.drain(concurrency=1)
    sent = named(spans, "enqueue default")
    ran = named(spans, "process default")
    links = [link.context.span_id for span in ran for link in span.links]
    assert sorted(links) == sorted(span.context.span_id for span in sent)
    assert sum(attributes(span)[names.MESSAGING_BATCH_MESSAGE_COUNT] for span in ran) == 3
    assert {attributes(span)["messaging.pgqueue.outcome"] for span in ran} == {"returned"}


def test_a_group_has_a_span_per_member(site: Any, spans: InMemorySpanExporter) -> None:
    @site.app.task(name="member", group_commit=8, retry=Retry(max_retries=0))
    def member(ctx: Any, n: int) -> None:
        ctx.conn.execute("SELECT 1")
        if n == 1:
            raise ValueError("no")

    jobs = member.enqueue_many(site.conn, [{"n": n} for n in range(3)])
    site.drain(concurrency=1)
    (sent,) = named(spans, "enqueue default")
    assert sent.kind is SpanKind.CLIENT
    assert attributes(sent)[names.MESSAGING_BATCH_MESSAGE_COUNT] == 3
    ran = named(spans, "process default")
    assert {attributes(span)[names.MESSAGING_MESSAGE_ID] for span in ran} == {str(job.id) for job in jobs}
    assert {span.links[0].context.span_id for span in ran} == {sent.context.span_id}
    assert "ValueError" in {attributes(span).get(error_attributes.ERROR_TYPE) for span in ran}


@pytest.mark.proves("I22")
def test_a_malformed_context_is_ignored_and_counted(site: Any, spans: InMemorySpanExporter) -> None:
    @site.app.task(name="t")
    def t() -> None: ...

    job = t.enqueue(site.conn)
    site.conn.execute(
        "UPDATE pgqueue.jobs SET headers = jsonb_build_object('traceparent', '00-nonsense', 'tracestate', 7) WHERE id = %s",
        (job.id,),
    )
    site.drain()
    (ran,) = named(spans, "process default")
    assert not ran.links
    assert [event for event in site.events if isinstance(event, TraceIgnored)] == [TraceIgnored(job.id)]
    assert site.state(job.id) == "succeeded"


def test_an_enqueue_that_fails_is_an_error_without_values(site: Any, spans: InMemorySpanExporter) -> None:
    @site.app.task(name="t")
    def t(n: int) -> None: ...

    with pytest.raises(Exception, match="args"):
        t.enqueue(site.conn, m=CANARY)
    (sent,) = named(spans, "enqueue default")
    assert sent.status.status_code is StatusCode.ERROR
    assert CANARY not in sent.to_json()


def test_statements_have_spans_when_they_are_asked_for(site: Any, spans: InMemorySpanExporter) -> None:
    @site.app.task(name="t")
    def t() -> None: ...

    site.app.events.listen(StatementSpans())
    t.enqueue(site.conn)
    site.drain()
    claim, ack = named(spans, "claim pgqueue")[0], named(spans, "ack pgqueue")[0]
    assert claim.kind is SpanKind.CLIENT
    assert attributes(claim)[names.MESSAGING_BATCH_MESSAGE_COUNT] == 1
    assert ack.end_time >= ack.start_time > claim.start_time


def test_the_conventions_names_are_the_packages() -> None:
    ours = {
        api.SYSTEM: names.MESSAGING_SYSTEM,
        api.DESTINATION: names.MESSAGING_DESTINATION_NAME,
        api.OPERATION_NAME: names.MESSAGING_OPERATION_NAME,
        api.OPERATION_TYPE: names.MESSAGING_OPERATION_TYPE,
        api.MESSAGE_ID: names.MESSAGING_MESSAGE_ID,
        api.CONVERSATION_ID: names.MESSAGING_MESSAGE_CONVERSATION_ID,
        api.CLIENT_ID: names.MESSAGING_CLIENT_ID,
        api.BATCH_COUNT: names.MESSAGING_BATCH_MESSAGE_COUNT,
        api.ERROR_TYPE: error_attributes.ERROR_TYPE,
    }
    assert {ours_: theirs for ours_, theirs in ours.items() if ours_ != theirs} == {}


def test_without_a_provider_nothing_is_traced_and_next_to_nothing_is_spent(site: Any) -> None:
    @site.app.task(name="t")
    def t() -> None: ...

    assert not tracing.is_tracing()
    t.enqueue(site.conn)
    site.drain()
    assert site.one("SELECT headers FROM pgqueue.job_history") is None
    (made,) = [event for event in site.events if isinstance(event, JobsEnqueued)]
    assert made.trace_id is None
    (done,) = [event.line(0) for event in site.events if isinstance(event, AttemptsSucceeded)]
    assert isinstance(done, AttemptEnded)
    assert done.span_ids is None


def test_without_the_package_nothing_is_traced() -> None:
    script = """
import sys
sys.modules["opentelemetry"] = None
from pgqueue import tracing
assert not tracing.is_tracing()
assert tracing.with_trace({"a": "b"}) == {"a": "b"}
assert tracing.current_trace_id() is None
with tracing.producing("q", "t") as span:
    span.made(1, queue="q")
tracing.statement_span("claim", "receive", 0.1, 1, 1)
print("FINE")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "FINE\n", done.stderr


def test_asking_whether_anybody_traces_is_cheaper_than_a_span(spans: InMemorySpanExporter) -> None:
    """No absolute figure: what a job pays without a provider is a small part of what it pays with one."""
    real, rounds = trace.get_tracer_provider(), 2_000

    def cost() -> float:
        began = time.perf_counter()
        for _ in range(rounds):
            with tracing.producing("q", "t"):
                pass
        return time.perf_counter() - began

    on = min(cost() for _ in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", None)
        off = min(cost() for _ in range(3))
    assert real is not None
    assert off * 5 < on
