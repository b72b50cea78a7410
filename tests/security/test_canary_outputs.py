"""A secret in arguments, headers, errors, the environment and the DSN is found in none of the outputs there are.

Logs of both kinds, metrics of processes and database, spans, every verb of the command line in every form,
notifications, alerts with their webhook, the audit, the timeline, what Postgres shows of sessions, and tracebacks.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from rig.database import Database
from rig.receiver import Receiver
from rig.wait import wait_for

from pgqueue import App, Message, Retry
from pgqueue.cli.main import app as command_line
from pgqueue.cli.main import main
from pgqueue.observe.database_metrics import DatabaseMetrics
from pgqueue.observe.log_sink import LogSink
from pgqueue.observe.logs import LogListener
from pgqueue.observe.metrics import ProcessMetrics
from pgqueue.observe.snapshot import Snapshots
from pgqueue.observe.statement_spans import StatementSpans
from pgqueue.settings import Settings

ONCE = Retry(max_retries=0)
FORMS = ("table", "json", "jsonl", "csv", "name")
REASON = ("--reason", "looking")
DRY = ("--dry-run", *REASON)

# Every verb that answers and ends, with what it is asked; {job}, {dead} and {worker} are filled in.
LOOKS: dict[str, tuple[str, ...]] = {
    "alerts check": (),
    "alerts list": ("--history",),
    "alerts rules": (),
    "audit list": (),
    "db check": (),
    "db current": (),
    "dlq export": (),
    "dlq get": ("{dead}",),
    "dlq groups": (),
    "dlq list": (),
    "doctor": (),
    "health": (),
    "jobs explain": ("{job}",),
    "jobs get": ("{job}",),
    "jobs list": ("--state", "dead", "--state", "succeeded"),
    "jobs tail": ("--for", "0.1s"),
    "jobs timeline": ("{dead}",),
    "jobs wait": ("{job}", "--timeout", "5s"),
    "outbox list": (),
    "outbox status": (),
    "outbox subscriptions": (),
    "queues get": ("default",),
    "queues list": (),
    "schedules get": ("night",),
    "schedules list": (),
    "schedules log": ("night",),
    "schedules next": ("night",),
    "schedules preview": ("0 0 * * *",),
    "stats": (),
    "version": (),
    "workers list": ("--ended",),
}
DEEDS: dict[str, tuple[str, ...]] = {
    "alerts ack": ("{alert}", *REASON),
    "alerts set": ("NoWorkers", "--threshold", "1", *DRY),
    "alerts silence": ("NoWorkers", "--for", "1h", *DRY),
    "db downgrade": ("base", "--dry-run"),
    "db roles": (),
    "db sql": (),
    "db upgrade": ("--dry-run",),
    "dlq discard": ("--all", *DRY),
    "dlq redrive": ("--all", *DRY),
    "enqueue": ("says", '{{"card": "{secret}"}}'),
    "jobs cancel": ("--all", *DRY),
    "jobs reschedule": ("--all", "--delay", "1h", *DRY),
    "jobs retry": ("--all", *DRY),
    "jobs run-now": ("--all", *DRY),
    "outbox replay": ("--all", *DRY),
    "outbox skip": ("--all", *DRY),
    "queues drain": ("default", "--timeout", "0.1s"),
    "queues keep": ("default", "--days", "3", *DRY),
    "queues pause": ("default", *DRY),
    "queues resume": ("default", *DRY),
    "queues set": ("default", "--sla", "5s", *DRY),
    "schedules delete": ("night", *DRY),
    "schedules pause": ("night", *DRY),
    "schedules put": ("other", "says", "--cron", "0 0 * * *"),
    "schedules resume": ("night", *DRY),
    "schedules run": ("night", *REASON),
    "workers drain": ("{worker}", *DRY),
}
# Its result is what its caller asks for.
REVEALS = {"jobs wait"}
# Processes, whose outputs are their logs and ports, and what draws on a terminal from the same rows.
RUN = {"all", "bench", "demo", "exporter", "relay", "scheduler", "top", "worker"}


class Kept(LogSink):
    """Log lines, kept."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every verb of the command line."""
    if not hasattr(command, "commands"):
        yield " ".join(path)
        return
    for name, found in command.commands.items():
        yield from verbs(found, (*path, name))


def test_no_verb_is_left_out() -> None:
    known = [*LOOKS, *DEEDS, *RUN]
    assert len(set(known)) == len(known)
    assert set(verbs(typer.main.get_command(command_line))) == set(known)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def tasks_of(app: App, secret: str) -> None:
    """Jobs that succeed, die with their arguments in the error, and emit; a sink that refuses with them."""

    @app.task(name="says", retry=ONCE)
    def says(ctx: Any, card: str) -> None:
        ctx.log.info("charged", card=card)
        raise RuntimeError(f"the bank refused password={card} at postgresql://bank:{card}@h/db")

    @app.task(name="unique", retry=ONCE)
    def unique(ctx: Any, card: str) -> None:
        for _ in range(2):
            ctx.conn.execute("INSERT INTO cards VALUES (%s)", (card,))

    @app.task(name="emits")
    def emits(ctx: Any, card: str) -> dict[str, str]:
        ctx.emit("ride.paid", {"card": card}, headers={"x-secret": card})
        return {"card": card}

    @app.task(name="wrong", retry=ONCE)
    def wrong(amount: int) -> None: ...

    @app.sink("shop", topics="ride.*", retry=ONCE)
    def shop(message: Message) -> None:
        raise RuntimeError(f"refused token={message.payload['card']}")


def played(app: App, conn: Any, secret: str) -> dict[str, int]:
    """Everything happens once; ids by what they are for."""
    headers = {"x-secret": secret}
    dead = app.enqueue("says", {"card": secret}, headers=headers).id
    job = app.enqueue("emits", {"card": secret}, headers=headers).id
    app.enqueue("unique", {"card": secret}, headers=headers)
    app.enqueue("wrong", {"amount": secret}, headers=headers)
    app.enqueue("nosuch", {"card": secret}, headers=headers)
    schedule = {
        "name": "night",
        "task": "emits",
        "cron": "0 0 * * *",
        "args": {"card": secret},
        "headers": headers,
    }
    conn.execute("SELECT pgqueue.put_schedule(%s)", [json.dumps(schedule)])
    conn.execute("SELECT pgqueue.run_schedule('night')")
    assert app.worker(drain=True, concurrency=2).run() == 0
    assert app.relay(drain=True).run() == 0
    return {"dead": dead, "job": job}


def alerted(app: App, conn: Any, receiver: Receiver) -> None:
    """A scheduler leads, evaluates and posts."""
    conn.execute("UPDATE pgqueue.alert_rules SET for_s = 0")
    scheduler = app.scheduler()
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    try:
        wait_for(lambda: receiver.got, 60, "an alert to be posted")
    finally:
        scheduler.stop()
        thread.join(30)
    assert not thread.is_alive()


@pytest.mark.proves("S6", "S7", "S8")
def test_a_secret_is_in_no_output(
    database: Database,
    spans: InMemorySpanExporter,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret, password = f"hunter2-{uuid.uuid4()}", f"sesame-{uuid.uuid4()}"
    monkeypatch.setenv("CARD_SECRET", secret)
    where = database.dsn.replace("postgresql://postgres@", f"postgresql://postgres:{password}@")
    conn, listener = database.connect(), database.connect()
    conn.execute("CREATE TABLE cards (card text PRIMARY KEY)")
    for channel in ("wake", "outbox", "alerts", "doctor"):
        listener.execute(f"LISTEN pgqueue_{channel}".encode())
    outputs: dict[str, str] = {}
    with Receiver() as receiver:
        app = App(
            where,
            alert_interval_s=0.2,
            alert_takeover_s=0.4,
            alert_webhook_url=f"{receiver.url}?key={secret}",
            alert_webhook_secret=f"{secret}-{password}",
        )
        logs = {kind: Kept() for kind in ("json", "console")}
        for kind, kept in logs.items():
            app.events.listen(LogListener(Settings(log_format=kind, log_level="debug"), kept))
        process = ProcessMetrics("worker", events=app.events)
        app.events.listen(process)
        app.events.listen(StatementSpans())
        tasks_of(app, secret)
        ids = played(app, conn, secret)
        alerted(app, conn, receiver)
        outputs["alert webhook"] = "".join(
            got.body.decode() + json.dumps(got.headers) for got in receiver.got
        )
        outputs |= {f"{kind} log": "\n".join(kept.lines) for kind, kept in logs.items()}
    snapshots = Snapshots(where)
    registry = CollectorRegistry()
    for collector in (process, DatabaseMetrics(snapshots)):
        registry.register(collector)
    outputs["metrics"] = generate_latest(registry).decode()
    outputs["sessions"] = str(
        conn.execute(
            "SELECT application_name, query FROM pg_stat_activity WHERE datname = current_database()"
        ).fetchall()
    )
    snapshots.close()
    outputs["spans"] = "".join(span.to_json() for span in spans.get_finished_spans())
    asked = {
        **ids,
        "secret": secret,
        "alert": database.one("SELECT min(id) FROM pgqueue.alert_events"),
        "worker": database.one("SELECT min(id::text) FROM pgqueue.workers"),
    }
    outputs |= answers(where, asked, capsys)
    outputs |= {
        table: str(conn.execute(f"SELECT t::text FROM pgqueue.{table} t".encode()).fetchall())
        for table in ("operator_audit", "alert_events", "alert_deliveries", "alert_rules")
    }
    outputs["job_timeline"] = str(conn.execute("SELECT pgqueue.job_timeline(%s)", [ids["dead"]]).fetchall())
    outputs["notifications"] = str([note.payload for note in listener.notifies(timeout=0.1)])
    app.close()
    expected_in(outputs)
    leaks = {name for name, text in outputs.items() if secret in text or password in text}
    assert leaks == {f"{verb} -o {form}" for verb in REVEALS for form in FORMS}
    # The twin: the same search finds the secret where it belongs, so it would have found it elsewhere.
    assert secret in str(conn.execute("SELECT args FROM pgqueue.dead_letter_jobs").fetchall())


def answers(where: str, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What the verbs say, each in every form; and -v with a command that fails."""
    found: dict[str, str] = {}
    for verb, words in [*LOOKS.items(), *DEEDS.items()]:
        filled = [word.format(**asked) for word in words]
        for form in FORMS if verb in LOOKS else FORMS[:1]:
            capsys.readouterr()
            code = main([*verb.split(), *filled, "--dsn", where, "-o", form])
            said = capsys.readouterr()
            assert code in {0, 1, 2, 3, 4, 7}, f"{verb} -o {form}: {code} {said.err}"
            assert "Traceback" not in said.err, f"{verb} -o {form}"
            found[f"{verb} -o {form}"] = said.out + said.err
    for words in (
        ("enqueue", "says", '{"card": "' + asked["secret"]),
        ("enqueue", "says", json.dumps({"card": asked["secret"]}), "--run-at", "never"),
    ):
        assert main([*words, "--dsn", where, "-v"]) == 2
        found["-v " + str(len(found))] = capsys.readouterr().err
    nowhere = where.replace("/tmp", "/nowhere")
    assert main(["stats", "--dsn", re.sub(r"@[^/]*/", "@127.0.0.1:1/", nowhere).split("?")[0], "-v"]) == 5
    found["-v unreachable"] = capsys.readouterr().err
    return found


def expected_in(outputs: dict[str, str]) -> None:
    """Each output says what it is asked for: an empty one would hold no secret either."""
    for name, words in {
        "json log": "the bank refused",
        "console log": "the bank refused",
        "metrics": "pgqueue_jobs_settled_total",
        "spans": "publish ride.paid",
        "sessions": "pgqueue",
        "alert webhook": "firing",
        "notifications": "firing",
        "jobs get -o json": "emits",
        "dlq get -o json": "RuntimeError",
        "dlq export -o json": "RuntimeError",
        "job_timeline": "RuntimeError",
        "operator_audit": "looking",
        "-v unreachable": "Traceback",
    }.items():
        assert words in outputs[name], name
