"""Queues as people promise something of them: `app.queues.set|drain|pause`, `pgqueue queues …`, and configuration."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.wait import wait_for

from pgqueue.app import App
from pgqueue.cli.main import main
from pgqueue.errors import ConfigurationError, ConflictError, InvalidOption, InvalidTime, NotFoundError


@pytest.fixture
def run(database: Database, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """`pgqueue queues …` in JSON: exit code, answer, talk."""

    def call(*arguments: str) -> tuple[int, Any, str]:
        code = main(["--dsn", database.dsn, "queues", *arguments, "-o", "json"])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else None, said.err

    return call


def test_what_is_set_is_shown_and_can_be_taken_back(run: Callable[..., tuple[int, Any, str]]) -> None:
    code, answer, talk = run(
        *("set", "critical", "--sla", "5s", "--sla-target", "0.999", "--run-objective", "30s"),
        *("--dead-letter-limit", "2", "--tier", "critical", "--owner", "payments", "--reason", "promised"),
    )
    assert (code, answer) == (0, {"queue": "critical", "change": "created"})
    assert "set queue critical in" in talk
    _, row, _ = run("get", "critical")
    assert {name: row[name] for name in ("sla_s", "sla_target", "run_objective_s", "run_target")} == {
        "sla_s": 5,
        "sla_target": 0.999,
        "run_objective_s": 30,
        "run_target": 0.995,
    }
    assert (row["tier"], row["owner"], row["dead_letter_limit"]) == ("critical", "payments", 2)
    assert run("set", "critical", "--sla", "5s")[1]["change"] == "same"
    assert run("set", "critical", "--unset", "sla", "--unset", "sla-target")[1]["change"] == "changed"
    _, row, _ = run("get", "critical")
    assert (row["sla_s"], row["sla_target"], row["owner"]) == (None, 0.99, "payments")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "attributes: none given"),
        (("--sla", "5"), 'sla: has no unit; write "5s"'),
        (("--sla", "0s"), "sla: is too short"),
        (("--sla-target", "99"), "sla_target: must be a share"),
        (("--sla-target", "nan"), "sla_target: must be a share"),
        (("--dead-letter-limit", "-1"), "dead_letter_limit: must be a count"),
        (("--tier", "vip"), "tier: must be critical or standard"),
        (("--owner", "a\nb"), "owner: must be printable"),
        (("--unset", "paused"), "unset: must be one of"),
        (("--sla", "5s", "--unset", "sla"), "unset: must be one of"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_name(
    run: Callable[..., tuple[int, Any, str]], options: tuple[str, ...], words: str
) -> None:
    code, _, talk = run("set", "critical", *options)
    assert code == 2
    assert words in talk
    assert run("get", "critical")[0] == 3


def test_a_dry_run_changes_nothing(run: Callable[..., tuple[int, Any, str]]) -> None:
    code, answer, talk = run("set", "critical", "--sla", "5s", "--dry-run")
    assert (code, answer) == (0, None)
    assert "would set sla_s = 5.0 of queue critical" in talk
    assert run("list")[1] == []


@pytest.mark.proves("P22")
def test_each_change_is_a_row_of_the_audit_and_production_wants_a_reason(
    database: Database, make_site: Callable[..., Any]
) -> None:
    app = make_site(environment="production").app
    with pytest.raises(InvalidOption, match="reason"):
        app.queues.set("critical", sla="5s")
    assert app.queues.set("critical", sla=5, reason="promised") == "created"
    assert app.queues.set("critical", sla=None, tier="critical", reason="again") == "changed"
    rows = (
        database.connect()
        .execute("SELECT via, action, target, reason, detail -> 'to' FROM pgqueue.operator_audit ORDER BY id")
        .fetchall()
    )
    assert rows == [
        ("python", "set", "queue critical", "promised", {"sla_s": 5}),
        ("python", "set", "queue critical", "again", {"sla_s": None, "tier": "critical"}),
    ]
    with pytest.raises(InvalidOption, match="attributes: slo is none"):
        app.queues.set("critical", slo="5s", reason="x")


def test_a_pause_until_a_moment(run: Callable[..., tuple[int, Any, str]]) -> None:
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    assert run("pause", "mail", "--until", until.isoformat(), "--no-wait")[0] == 0
    _, row, _ = run("get", "mail")
    assert row["paused"]
    assert datetime.fromisoformat(row["paused_until"]) == until
    for options, words in (
        (("--until", "2020-01-01T00:00Z"), "until: lies in the past"),
        (("--until", "2030-01-01T00:00"), "until: has no time zone"),
        (("--until", "soon"), "until: is not a moment"),
        (("--until", "2030-01-01T00:00Z", "--for", "5m"), "until: given together"),
    ):
        code, _, talk = run("pause", "mail", "--no-wait", *options)
        assert (code, words in talk) == (2, True), talk


def test_python_refuses_a_naive_moment_before_it_asks_the_database() -> None:
    app = App("host=127.0.0.1 port=1")
    with pytest.raises(InvalidTime, match="time zone"):
        app.queues.pause("mail", until=datetime(2030, 1, 1))


def test_drain_waits_for_what_is_ready_and_not_for_what_is_deferred(site: Any) -> None:
    go = threading.Event()

    @site.app.task(name="slow", queue="mail")
    def slow() -> None:
        assert go.wait(30)

    site.start("mail")
    job = slow.enqueue(None)
    slow.using(delay="1h").enqueue(None)
    site.wait_state(job.id, "running")
    assert not site.app.queues.drain("mail", timeout_s=0)
    told: list[int] = []

    def tell(row: Any) -> None:
        told.append(row.running)
        go.set()

    assert site.app.queues.drain("mail", timeout_s=30, told=tell)
    assert told[0] == 1
    assert site.state(job.id) == "succeeded"


def test_a_queue_that_cannot_drain_says_why_at_once(
    site: Any, run: Callable[..., tuple[int, Any, str]]
) -> None:
    with pytest.raises(NotFoundError):
        site.app.queues.drain("nosuch", timeout_s=30)
    site.conn.execute("SELECT pgqueue.enqueue('t', queue => 'mail')")
    with pytest.raises(ConflictError, match="no worker serves it"):
        site.app.queues.drain("mail", timeout_s=30)
    site.conn.execute("SELECT pgqueue.pause('mail')")
    code, _, talk = run("drain", "mail", "--timeout", "30s")
    assert (code, "paused, so it does not drain" in talk) == (4, True)
    assert run("drain", "nosuch")[0] == 3


def test_a_worker_stores_what_its_configuration_says_and_one_without_leaves_it(
    make_site: Callable[..., Any],
) -> None:
    configured = make_site(queues={"mail": {"sla": "90s", "tier": "critical", "owner": "post"}})
    plain = make_site()

    def serve(site: Any) -> None:
        site.start("mail,default")
        wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.queues") == 2, 15, "the queues")
        site.stop()

    serve(plain)
    assert plain.app.queues.get("mail").sla_s is None
    serve(configured)
    row = plain.app.queues.get("mail")
    assert (row.sla_s, row.tier, row.owner) == (90, "critical", "post")
    serve(plain)
    assert plain.app.queues.get("mail").sla_s == 90
    plain.app.queues.set("mail", sla="1m")
    serve(configured)
    assert plain.app.queues.get("mail").sla_s == 60


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"sla": 5}, "sla"),
        ({"sla": "5"}, "has no unit"),
        ({"sla_target": 1.5}, "sla_target"),
        ({"slo": "5s"}, "slo"),
        ({"tier": "vip"}, "tier"),
    ],
)
def test_configuration_that_makes_no_sense_is_refused(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        _ = App(queues={"mail": table}).settings


def test_a_worker_starts_although_somebody_holds_its_queues_row(site: Any) -> None:
    site.conn.execute("INSERT INTO pgqueue.queues (name) VALUES ('mail')")
    with psycopg.connect(site.database.dsn) as other:
        other.execute("SELECT pgqueue.set_queue('mail', '{\"sla_s\": 5}')")
        site.start("mail")  # waits until it is live
        other.rollback()
