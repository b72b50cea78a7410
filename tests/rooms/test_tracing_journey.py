"""One trace along a whole way: producer, worker process, outbox, subscribed task, webhook, other database, schedule."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from rig.database import ROOT, Database
from rig.proc import pgqueue
from rig.receiver import Receiver

from pgqueue import Message, Reject, Retry
from pgqueue.core.events import Events
from pgqueue.observe.log_sink import LogSink
from pgqueue.observe.logs import LogListener
from pgqueue.scheduler.tick import Ticker
from pgqueue.settings import Settings
from pgqueue.storage.connect import LEADER
from pgqueue.storage.link import Link
from pgqueue.storage.migrate import upgrade
from pgqueue.tracing import api

from .conftest import Site

HERE = Path(__file__).parent
SECRET = "a secret of sixteen bytes or more"


class Kept(LogSink):
    """Log lines, kept."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)


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


def said(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


@pytest.mark.parametrize("mode", ["link", "parent"])
def test_one_jobs_trace_id_is_found_by_whoever_looks(
    site: Site, spans: InMemorySpanExporter, tmp_path: Path, mode: str
) -> None:
    """In the producer's log, the worker's log, its span, its history row and its outbox message."""
    log = Kept()
    site.app.events.listen(LogListener(Settings(log_format="json", log_level="debug"), log))

    @site.app.task(name="pay", queue="critical")
    def pay(ride_id: int) -> None: ...

    job = pay.enqueue(site.conn, ride_id=7)
    (sent,) = named(spans, "enqueue critical")
    looked_for = trace_of(sent)
    env = {
        "PGQUEUE_DATABASE_URL": site.database.dsn,
        "PYTHONPATH": f"{ROOT}:{HERE}",
        "SPANS_FILE": str(tmp_path / "spans"),
        "PGQUEUE_TRACE_MODE": mode,
    }
    with pgqueue("worker", "-A", "tracedapp:app", "--drain", env=env) as worker:
        assert worker.wait(60) == 0
        worker_log = [json.loads(line) for line in worker.stderr.splitlines() if line.startswith("{")]
    found = {
        "producer's log": [
            line["trace_id"] for line in map(json.loads, log.lines) if line["event"] == "job.enqueued"
        ],
        "worker's log": [
            line["trace_id"]
            for line in worker_log
            if line["event"] == "job.settled" and line["job_id"] == job.id
        ],
    }
    assert found == {"producer's log": [looked_for], "worker's log": [looked_for]}
    told = [json.loads(line) for line in (tmp_path / "spans").read_text().splitlines()]
    (ran,) = [span for span in told if span["name"] == "process critical"]
    assert ran["attributes"]["messaging.message.id"] == str(job.id)
    near = [ran["context"], *(link["context"] for link in ran["links"])]
    assert looked_for in {context["trace_id"].removeprefix("0x") for context in near}
    history = site.one("SELECT headers FROM pgqueue.job_history WHERE job_id = %s", job.id)
    assert looked_for in history["traceparent"]
    message = site.one("SELECT headers FROM pgqueue.outbox WHERE job_id = %s", job.id)
    assert looked_for in (message["traceparent"] if mode == "parent" else message["pgqueue.trace_id"])
    (emitted,) = [span for span in told if span["name"] == "emit ride.paid"]
    assert emitted["context"]["span_id"].removeprefix("0x") in message["traceparent"]
    assert emitted["parent_id"] == ran["context"]["span_id"]


def test_the_context_survives_retry_death_redrive_the_outbox_and_the_subscribed_task(
    make_site: Any, spans: InMemorySpanExporter
) -> None:
    site = make_site(trace_mode="parent")
    broken = [True]

    @site.app.task(name="doomed", retry=Retry(max_retries=1, initial_delay="10ms"))
    def doomed(ctx: Any) -> None:
        if broken:
            raise ValueError("no")
        ctx.emit("ride.completed", {"n": 1})

    @site.app.on("ride.completed")
    @site.app.task(name="receipt", queue="mail")
    async def receipt(ctx: Any, n: int) -> None:
        inside.append(trace.get_current_span().get_span_context().trace_id)

    inside: list[int] = []
    dead = doomed.enqueue(site.conn)
    site.drain()
    broken.clear()
    site.app.dead_letters.redrive(dead.id, reason="mended")
    site.drain()
    assert site.app.relay(drain=True).run() == 0
    site.drain("mail")
    (sent,), (emitted,), (got,) = (
        named(spans, name) for name in ("enqueue default", "emit ride.completed", "process mail")
    )
    attempts = named(spans, "process default")
    assert [said(span)["messaging.pgqueue.outcome"] for span in attempts] == ["retry", "dead", "succeeded"]
    assert {trace_of(span) for span in (sent, *attempts, emitted, got)} == {trace_of(sent)}
    assert inside == [sent.context.trace_id]
    assert emitted.parent is not None
    assert emitted.parent.span_id == attempts[-1].context.span_id
    assert got.parent is not None
    assert got.parent.span_id == emitted.context.span_id
    assert emitted.kind is SpanKind.PRODUCER


@pytest.mark.parametrize("mode", ["link", "parent"])
def test_a_message_takes_its_context_to_functions_webhooks_and_other_databases(
    make_site: Any, spans: InMemorySpanExporter, empty_database: Database, mode: str
) -> None:
    upgrade(empty_database.dsn)
    site = make_site(trace_mode=mode)
    seen: list[tuple[Message, int]] = []
    with Receiver() as receiver:
        site.app.webhook("shop", topics="ride.*", url=receiver.url, secret=SECRET)
        site.app.forward("books", empty_database.dsn, topics="ride.*")

        @site.app.sink("file", topics="ride.*")
        async def to_file(message: Message) -> None:
            seen.append((message, trace.get_current_span().get_span_context().span_id))

        number = site.app.outbox.emit(site.conn, "ride.done", {"n": 1}, headers={"correlation_id": "c-1"})
        assert site.app.relay(drain=True).run() == 0
        carried = receiver.got[0].headers["traceparent"]
    (emitted,) = named(spans, "emit ride.done")
    published = {said(span)["messaging.pgqueue.sink"]: span for span in named(spans, "publish ride.done")}
    assert set(published) == {"shop", "books", "file"}
    assert trace_of(emitted) in carried
    (message, inside) = seen[0]
    assert message.headers["traceparent"] == carried
    assert inside == published["file"].context.span_id
    with empty_database.connect() as there:
        row = there.execute("SELECT headers FROM pgqueue.outbox").fetchone()
    assert row is not None
    assert row[0]["traceparent"] == carried
    for span in published.values():
        assert span.kind is SpanKind.PRODUCER
        assert said(span)["messaging.message.id"] == str(number)
        assert said(span)["messaging.message.conversation_id"] == "c-1"
        if mode == "link":
            assert (linked(span), span.parent) == ([emitted.context.span_id], None)
        else:
            assert span.parent is not None
            assert span.parent.span_id == emitted.context.span_id


def test_a_delivery_that_fails_is_an_error_without_its_text(site: Site, spans: InMemorySpanExporter) -> None:
    @site.app.sink("file", topics="a.*")
    def to_file(message: Message) -> None:
        raise Reject("hunter2")

    site.app.outbox.emit(site.conn, "a.b")
    assert site.app.relay(drain=True).run() == 0
    (span,) = named(spans, "publish a.b")
    assert span.status.status_code is StatusCode.ERROR
    assert said(span)["error.type"] == "Reject"
    assert "hunter2" not in span.to_json()


def test_an_emit_that_is_refused_is_an_error_without_values(site: Site, spans: InMemorySpanExporter) -> None:
    with pytest.raises(Exception, match="payload"):
        site.app.outbox.emit(site.conn, "a.b", {"card": object()})
    (span,) = named(spans, "emit a.b")
    assert span.status.status_code is StatusCode.ERROR
    with pytest.raises(Exception, match="topic"):
        site.app.outbox.emit(site.conn, "hunter2 no topic")
    assert not [span for span in spans.get_finished_spans() if "hunter2" in span.to_json()]


async def test_an_async_emit_has_a_span(site: Site, spans: InMemorySpanExporter) -> None:
    number = await site.app.outbox.emit_async(None, "a.b", {"n": 1})
    (span,) = named(spans, "emit a.b")
    assert said(span)["messaging.message.id"] == str(number)
    headers = site.one("SELECT headers FROM pgqueue.outbox WHERE id = %s", number)
    assert trace_of(span) in headers["traceparent"]


def test_a_fired_job_links_to_the_fire(site: Site, spans: InMemorySpanExporter) -> None:
    @site.app.task(name="nightly")
    def nightly() -> None: ...

    site.conn.execute(
        'SELECT pgqueue.put_schedule(\'{"name": "night", "task": "nightly", "cron": "* * * * *"}\')'
    )
    site.conn.execute("UPDATE pgqueue.schedules SET last_fire_at = last_fire_at - interval '90 s'")
    link = Link(
        site.database.dsn,
        LEADER,
        label="test",
        connect_timeout_s=10,
        stop=threading.Event(),
        report=lambda trouble: None,
    )
    ticker = Ticker(link, "s1", Events())
    assert ticker.tick(ticker.due(0))
    link.close()
    site.drain()
    (fired,), (ran,) = named(spans, "fire night"), named(spans, "process default")
    assert fired.kind is SpanKind.INTERNAL
    job_id = site.one(
        "SELECT job_id FROM pgqueue.schedule_runs WHERE schedule = 'night' AND job_id IS NOT NULL"
    )
    assert said(fired)["messaging.message.id"] == str(job_id)
    assert said(fired)["messaging.pgqueue.outcome"] == "enqueued"
    assert linked(ran) == [fired.context.span_id]
    assert said(ran)["messaging.pgqueue.schedule"] == "night"


def test_without_a_provider_messages_and_fires_have_no_span_and_no_header(site: Site) -> None:
    number = site.app.outbox.emit(site.conn, "a.b", {"n": 1})
    assert site.one("SELECT headers FROM pgqueue.outbox WHERE id = %s", number) is None


def test_a_provider_is_seen_where_the_api_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheap look and the public question agree; if the API kept its provider elsewhere, the question decides."""
    otel = api.otel()
    assert otel is not None
    assert hasattr(trace, "_TRACER_PROVIDER")
    assert not api.is_tracing()
    provider = TracerProvider()
    with monkeypatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", provider)
        assert trace.get_tracer_provider() is provider
        assert api.is_tracing()
    with monkeypatch.context() as patch:
        patch.delattr(trace, "_TRACER_PROVIDER")
        patch.setattr(trace, "get_tracer_provider", lambda: provider)
        assert api.is_tracing()
    provider.shutdown()
