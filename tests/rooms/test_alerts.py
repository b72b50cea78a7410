"""Alerts told by workers and schedulers: who evaluates when, the log, NOTIFY, a signed webhook; and the people's side."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rig.database import ROOT, Database
from rig.proc import pgqueue
from rig.wait import wait_for

from pgqueue.app import App
from pgqueue.cli.main import main
from pgqueue.core.events import AlertChanged, AlertUndelivered
from pgqueue.core.signing import verify
from pgqueue.errors import ConfigurationError, InvalidOption, NotFoundError
from pgqueue.upkeep import alerts as room
from pgqueue.upkeep.alert_webhook import Webhook

SECRET = "correct horse battery"
FAST = {
    "alert_interval_s": 0.2,
    "alert_takeover_s": 0.4,
    "heartbeat_s": 0.2,
    "lease_s": 1.0,
    "tcp_user_timeout_s": 0.5,
    "poll_max_s": 0.5,
}


@dataclass
class Receiver:
    """A server that takes alerts, answering with the status in `status`."""

    status: int = 200
    go_on: threading.Event = field(default_factory=threading.Event)
    hangs: bool = False
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def alerts(self) -> list[tuple[str, str, str]]:
        return [
            (one["alert"], one["key"], one["state"])
            for body in self.bodies
            for one in json.loads(body)["alerts"]
        ]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            found.bodies.append(body)
            if found.hangs:
                found.go_on.wait(60)
                return
            self.send_response(found.status)
            if 300 <= found.status < 400:
                self.send_header("Location", f"http://127.0.0.1:{found.port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        found.go_on.set()
        server.shutdown()
        thread.join(10)


@pytest.fixture
def lead(database: Database) -> Iterator[Callable[..., tuple[App, list[object]]]]:
    """Start schedulers that end with the test; each with its App and its events."""
    running: list[tuple[Any, threading.Thread]] = []

    def start(**settings: Any) -> tuple[App, list[object]]:
        app = App(database.dsn, **{**FAST, **settings})
        events: list[object] = []
        app.events.listen(events.append)
        scheduler = app.scheduler()
        thread = threading.Thread(target=scheduler.run)
        thread.start()
        running.append((scheduler, thread))
        return app, events

    yield start
    for scheduler, thread in running:
        scheduler.stop()
        thread.join(30)
        assert not thread.is_alive()


def quicken(database: Database, *kinds: str) -> None:
    """Leave some kinds enabled and take their patience away."""
    database.connect().execute(
        "UPDATE pgqueue.alert_rules SET enabled = kind = ANY (%s), for_s = 0, resolve_s = 0", [list(kinds)]
    )


def told(events: list[object]) -> list[tuple[str, str, str]]:
    return [(one.alert, one.key, one.state) for one in events if isinstance(one, AlertChanged)]


def test_the_leader_tells_the_log_once_that_it_fires_and_once_that_it_is_over(
    database: Database, lead: Callable[..., tuple[App, list[object]]]
) -> None:
    quicken(database, "no_workers")
    conn = database.connect()
    _, first = lead()
    _, second = lead()
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'q')")
    wait_for(lambda: told(first) + told(second), 60, "an alert")
    conn.execute("DELETE FROM pgqueue.jobs")
    wait_for(lambda: len(told(first) + told(second)) >= 2, 60, "its end")
    assert sorted(told(first) + told(second)) == [
        ("NoWorkers", "q", "firing"),
        ("NoWorkers", "q", "resolved"),
    ]
    row = conn.execute("SELECT mode FROM pgqueue.alert_evaluations").fetchone()
    assert row == ("leader",)
    (event,) = [one for one in first + second if isinstance(one, AlertChanged) and one.state == "resolved"]
    assert event.lasted_s > 0
    assert event.runbook == "docs/runbooks/no-workers.md"


def test_without_a_scheduler_a_worker_evaluates_and_says_that_none_leads(site: Any, make_site: Any) -> None:
    quicken(site.database, "no_leader")
    worker = make_site(**FAST)

    @worker.app.task(name="t", queue="q")
    def t() -> None: ...

    site.conn.execute('SELECT pgqueue.put_schedule(\'{"name": "s", "task": "t", "cron": "0 0 1 1 *"}\')')
    worker.start("q")
    wait_for(lambda: told(worker.events), 60, "an alert")
    assert told(worker.events) == [("NoSchedulerLeader", "", "firing")]
    assert site.one("SELECT mode FROM pgqueue.alert_evaluations") == "standin"
    site.conn.execute("SELECT pg_advisory_lock(hashtextextended('pgqueue scheduler', 0))")
    wait_for(lambda: len(told(worker.events)) == 2, 60, "its end")
    assert told(worker.events)[1] == ("NoSchedulerLeader", "", "resolved")


def test_workers_that_all_die_are_missed_and_their_return_ends_it(
    site: Any, make_site: Any, lead: Callable[..., tuple[App, list[object]]]
) -> None:
    quicken(site.database, "no_workers")
    workers = make_site(**FAST)

    @workers.app.task(name="t", queue="q")
    def t() -> None: ...

    workers.start("q")
    _, events = lead()
    job = t.enqueue(None)
    workers.wait_state(job.id, "succeeded", 60)
    workers.stop()
    job = t.enqueue(None)

    def heard() -> list[tuple[str, str, str]]:
        # Whoever notices first that nobody evaluates does it: with so short a patience that may be the worker.
        return sorted(told(events) + told(workers.events))

    wait_for(heard, 60, "an alert")
    workers.start("q")
    workers.wait_state(job.id, "succeeded", 60)
    wait_for(lambda: len(heard()) >= 2, 60, "its end")
    assert heard() == [("NoWorkers", "q", "firing"), ("NoWorkers", "q", "resolved")]


def test_a_notification_holds_ids_numbers_and_closed_words_only(
    database: Database, lead: Callable[..., tuple[App, list[object]]]
) -> None:
    quicken(database, "no_workers")
    conn = database.connect()
    listener = database.connect()
    listener.execute("LISTEN pgqueue_alerts")
    lead()
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'secret-queue')")
    (note,) = list(listener.notifies(timeout=60, stop_after=1))
    said = json.loads(note.payload)
    assert {name: said[name] for name in ("state", "severity", "value", "threshold")} == {
        "state": "firing",
        "severity": "page",
        "value": 1,
        "threshold": 0,
    }
    assert set(said) == {"id", "state", "severity", "value", "threshold"}
    assert "secret" not in note.payload


def test_a_webhook_is_signed_over_time_and_body(
    database: Database, lead: Callable[..., tuple[App, list[object]]], receiver: Receiver
) -> None:
    quicken(database, "no_workers")
    lead(alert_webhook_url=receiver.url, alert_webhook_secret=SECRET, environment="staging")
    database.connect().execute("SELECT pgqueue.enqueue('t', queue => 'q')")
    wait_for(lambda: receiver.bodies, 60, "a post")
    body = receiver.bodies[0]
    assert verify(receiver.headers[0], body, SECRET, now=time.time()).startswith("alerts_")
    with pytest.raises(ValueError, match="does not fit"):
        verify(receiver.headers[0], body + b" ", SECRET, now=time.time())
    assert json.loads(body)["environment"] == "staging"
    assert receiver.alerts() == [("NoWorkers", "q", "firing")]
    (alert,) = json.loads(body)["alerts"]
    assert alert["runbook"] == "docs/runbooks/no-workers.md"
    wait_for(
        lambda: database.one(
            "SELECT sent_at IS NOT NULL FROM pgqueue.alert_deliveries WHERE sink = 'webhook'"
        ),
        60,
        "the record of it",
    )


def test_a_sink_that_fails_is_tried_six_times_and_hinders_nothing(
    database: Database,
    lead: Callable[..., tuple[App, list[object]]],
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "BACKOFF_S", (0.01,) * 5)
    monkeypatch.setattr(room, "SOON_S", 0.05)
    receiver.status = 503
    quicken(database, "no_workers")
    _, events = lead(alert_webhook_url=receiver.url, alert_webhook_secret=SECRET)
    conn = database.connect()
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'q')")
    wait_for(lambda: [one for one in events if isinstance(one, AlertUndelivered)], 90, "giving up")
    assert told(events) == [("NoWorkers", "q", "firing")]  # the log was told all the same
    assert receiver.alerts() == [("NoWorkers", "q", "firing")] * 6
    row = conn.execute(
        "SELECT tries, next_at, sent_at, last_error FROM pgqueue.alert_deliveries WHERE sink = 'webhook'"
    ).fetchone()
    assert row == (6, None, None, "answered 503")
    receiver.status = 200
    conn.execute("DELETE FROM pgqueue.jobs")
    wait_for(lambda: receiver.alerts()[-1] == ("NoWorkers", "q", "resolved"), 60, "the end told")


def test_a_sink_that_hangs_delays_no_evaluation_and_no_other_sink(
    database: Database, lead: Callable[..., tuple[App, list[object]]], receiver: Receiver
) -> None:
    receiver.hangs = True
    quicken(database, "no_workers")
    _, events = lead(alert_webhook_url=receiver.url, alert_webhook_secret=SECRET)
    conn = database.connect()
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'q')")
    wait_for(lambda: receiver.bodies, 60, "a post that hangs")
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'other')")
    wait_for(lambda: ("NoWorkers", "other", "firing") in told(events), 60, "an alert while it hangs")
    conn.execute("DELETE FROM pgqueue.jobs")
    wait_for(lambda: ("NoWorkers", "other", "resolved") in told(events), 60, "its end while it hangs")
    row = conn.execute(
        "SELECT count(*) FROM pgqueue.alert_deliveries WHERE sink = 'webhook' AND sent_at IS NOT NULL"
    ).fetchone()
    assert row == (0,)


def test_all_worker_processes_killed_raise_the_alert_in_time_and_a_new_one_ends_it(
    database: Database, lead: Callable[..., tuple[App, list[object]]]
) -> None:
    """Within the lease, the rule's patience and an interval; the processes are killed as a crash would."""
    for_s, lease_s = 1.0, 3.0
    quicken(database, "no_workers")
    conn = database.connect()
    conn.execute("UPDATE pgqueue.alert_rules SET for_s = %s WHERE kind = 'no_workers'", [for_s])
    _, events = lead()
    env = {
        "PGQUEUE_DATABASE_URL": database.dsn,
        "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
        "PGQUEUE_LEASE_S": f"{lease_s:g}s",
        "PGQUEUE_HEARTBEAT_S": "500ms",
        "PGQUEUE_TCP_USER_TIMEOUT_S": "1s",
    }
    command = ("worker", "-A", "relayapp:app", "-q", "default")
    live = "SELECT count(*) FROM pgqueue.workers WHERE status = 'live'"
    with pgqueue(*command, env=env) as first, pgqueue(*command, env=env) as second:
        wait_for(lambda: database.one(live) == 2, 60, "two workers")
        first.kill()
        second.kill()
    conn.execute("SELECT pgqueue.enqueue('receipt')")
    wait_for(lambda: told(events), 60, "the alert")
    assert told(events) == [("NoWorkers", "default", "firing")]
    took_s = database.one(
        "SELECT date_part('epoch', e.fired_at - (SELECT max(w.beat_at) FROM pgqueue.workers w)) FROM pgqueue.alert_events e"
    )
    assert took_s >= for_s
    with pgqueue(*command, env=env):
        wait_for(lambda: len(told(events)) == 2, 60, "its end")
    assert told(events)[1] == ("NoWorkers", "default", "resolved")
    assert database.one("SELECT count(*) FROM pgqueue.alert_events") == 1


def test_what_a_webhook_answers_counts_as_told_only_with_2xx(receiver: Receiver) -> None:
    webhook = Webhook(receiver.url, SECRET, "test")
    assert webhook.post([{"id": 1}]) is None
    receiver.status = 204
    assert webhook.post([{"id": 1}]) is None
    receiver.status = 302
    assert webhook.post([{"id": 1}]) == "answered 302"
    assert len(receiver.bodies) == 3  # the redirect was not followed
    gone = Webhook("http://user:hunter2@127.0.0.1:1/", SECRET, "test")
    refused = gone.post([{"id": 1}])
    assert refused is not None
    assert "hunter2" not in refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alert_webhook_url": "https://x"}, "alert_webhook_secret must have"),
        (
            {"alert_webhook_url": "https://x", "alert_webhook_secret": "short"},
            "alert_webhook_secret must have",
        ),
        ({"alert_webhook_url": "ftp://x", "alert_webhook_secret": SECRET}, "must begin with https"),
        ({"alert_interval_s": 50}, "at least twice"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        _ = App(**settings).settings


def test_secrets_are_in_no_text_of_the_settings() -> None:
    settings = App(
        alert_webhook_url="https://hunter2@x", alert_webhook_secret="hunter2-hunter2-hunter2"
    ).settings
    assert "hunter2" not in repr(settings)


@pytest.fixture
def run(database: Database, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    def call(*arguments: str) -> tuple[int, Any, str]:
        code = main(["--dsn", database.dsn, "alerts", *arguments, "-o", "json"])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else None, said.err

    return call


def test_check_evaluates_now_and_its_exit_code_says_whether_anything_fires(
    database: Database, run: Callable[..., tuple[int, Any, str]]
) -> None:
    quicken(database, "no_workers")
    conn = database.connect()
    code, rows, talk = run("list")
    assert (code, rows) == (0, [])
    assert "evaluated never" in talk
    assert run("check")[:2] == (0, [])
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'q')")
    code, rows, _ = run("check")
    assert (code, [(row["rule"], row["key"], row["state"]) for row in rows]) == (
        1,
        [("NoWorkers", "q", "firing")],
    )
    _, rows, talk = run("list")
    assert (len(rows), talk) == (1, "")
    conn.execute("DELETE FROM pgqueue.jobs")
    assert run("check")[:2] == (0, [])
    assert run("list")[1] == []
    (row,) = run("list", "--history")[1]
    assert (row["state"], set(row["deliveries"])) == (
        "resolved",
        {
            f"{transition}/{sink}"
            for transition in ("firing", "resolved")
            for sink in ("log", "notify", "webhook")
        },
    )


@pytest.mark.proves("P22")
def test_people_acknowledge_silence_and_change_rules_with_a_reason(
    database: Database, run: Callable[..., tuple[int, Any, str]]
) -> None:
    quicken(database, "no_workers")
    conn = database.connect()
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'q')")
    alert = str(run("check")[1][0]["id"])
    assert run("ack", alert, "--reason", "looking")[0] == 0
    assert run("list")[1][0]["note"] == "looking"
    assert run("ack", "999", "--reason", "x")[0] == 3
    assert run("ack", alert, "--reason", " ")[0] == 2
    assert run("silence", "NoWorkers", "--for", "1h", "--reason", "deploy")[0] == 0
    assert run("list")[1][0]["silenced"] is True
    assert run("silence", "NoWorkers", "--off", "--reason", "done")[0] == 0
    assert run("list")[1][0]["silenced"] is False
    assert run("silence", "Nope", "--for", "1h", "--reason", "x")[0] == 3
    assert run("silence", "NoWorkers", "--reason", "x")[0] == 2
    code, answer, _ = run(
        "set", "NoWorkers", "--threshold", "5", "--for", "3m", "--sinks", "log,notify", "--disable"
    )
    assert (code, answer["change"]) == (0, "changed")
    rules = {row["name"]: row for row in run("rules")[1]}
    rule = rules["NoWorkers"]
    assert (rule["threshold"], rule["for_s"], rule["sinks"], rule["enabled"]) == (
        5,
        180,
        ["log", "notify"],
        False,
    )
    audit = conn.execute("SELECT action, target, reason FROM pgqueue.operator_audit ORDER BY id").fetchall()
    assert audit == [
        ("ack", f"alert {alert}", "looking"),
        ("silence", "alert rule NoWorkers", "deploy"),
        ("silence", "alert rule NoWorkers", "done"),
        ("set", "alert rule NoWorkers", None),
    ]
    assert run("set", "NoWorkers", "--severity", "loud")[0] == 2
    assert run("set", "NoWorkers")[0] == 2
    assert run("set", "Nope", "--threshold", "1")[0] == 3


def test_the_same_from_python(site: Any) -> None:
    quicken(site.database, "no_workers")
    alerts = site.app.alerts
    assert alerts.evaluation().age_s is None
    site.conn.execute("SELECT pgqueue.enqueue('t', queue => 'q')")
    (alert,) = alerts.check()
    assert (alert.rule, alert.key, alert.value) == ("NoWorkers", "q", 1)
    assert alerts.evaluation().mode == "check"
    assert alerts.rule("NoWorkers").firing == 1
    with pytest.raises(NotFoundError):
        alerts.rule("Nope")
    with pytest.raises(InvalidOption):
        alerts.silence("NoWorkers", for_s=-1, reason="x")
    with pytest.raises(InvalidOption):
        alerts.set("NoWorkers", threshold=float("nan"))


def test_an_upgrade_brings_deleted_rules_back(database: Database) -> None:
    conn = database.connect()
    conn.execute("DELETE FROM pgqueue.alert_rules WHERE name = 'NoWorkers'")
    assert main(["--dsn", database.dsn, "db", "upgrade"]) == 0
    assert database.one("SELECT enabled FROM pgqueue.alert_rules WHERE name = 'NoWorkers'")
