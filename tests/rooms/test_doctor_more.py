"""`pgqueue doctor` on addresses, space, schedules, the outbox and an application's tasks; what it prints mends what it found."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg
import pytest
from rig.database import Database

from pgqueue.cli.main import main
from pgqueue.control import doctor_address, doctor_space, doctor_time
from pgqueue.control.desk import Desk
from pgqueue.control.doctor import examine
from pgqueue.control.findings import Finding
from pgqueue.settings import load_settings
from pgqueue.storage.connect import CLI, connect
from pgqueue.storage.pooler import PoolerFacts, read_version

FASTER = {"fsync", "full_page_writes"}  # the test server is fast and lossy
WORKER = (
    "INSERT INTO pgqueue.workers (id, lease_s, pid, host, version, queues, slots)"
    " SELECT gen_random_uuid(), 600, 1, 'h', '1', '{}', 32 FROM generate_series(1, 50)"
)
SCHEDULE = "INSERT INTO pgqueue.schedules (name, task, cron, tz, next_fire_at, planned_revision) VALUES"
LEADS = "SELECT pg_advisory_lock(hashtextextended('pgqueue scheduler', 0))"
SUBSCRIBED = "SELECT pgqueue.subscribe('ride.done', 'gone')"


@pytest.fixture
def conn(database: Database) -> psycopg.Connection:
    conn = database.connect()
    conn.execute(LEADS)  # a scheduler leads, for what is looked at here
    return conn


@pytest.fixture
def find(database: Database) -> Callable[..., list[Finding]]:
    """All findings of a check, of an application that registers `known`, that are no PASS."""

    def look(check: str, words: str = "") -> list[Finding]:
        found = examine(
            Desk(database.dsn, via="cli"), settings=load_settings(database_url=database.dsn), tasks={"known"}
        )
        return [f for f in found if f.check == check and words in f.message and f.verdict != "PASS"]

    return look


def follow(database: Database, conn: psycopg.Connection, fix: str) -> None:
    """Do what a finding says, up to its first `;`."""
    first = fix.partition(";")[0]
    if first.startswith("pgqueue "):
        bulk = ["--yes"] if first.startswith("pgqueue jobs") else []
        assert main(["--dsn", database.dsn, *shlex.split(first)[1:], *bulk]) == 0
    else:
        conn.execute(first)


def test_nothing_of_this_is_wrong_with_a_new_database(any_database: Database) -> None:
    findings = examine(
        Desk(any_database.dsn, via="cli"), settings=load_settings(database_url=any_database.dsn), tasks=()
    )
    assert {f.check for f in findings if f.verdict != "PASS"} <= FASTER
    assert {f.check for f in findings} >= {
        *("encryption", "settings", "wake-ups", "clock", "dead rows", "disk", "pools", "transaction ids"),
        *("scheduler", "schedules", "time zones", "outbox", "dead letter growth", "tasks"),
    }


@pytest.mark.parametrize(
    ("defect", "check", "words"),
    [
        (SCHEDULE + " ('bad', 'known', '0 3 * * *', 'Mars/Base', NULL, 0)", "schedules", "cannot fire"),
        (SCHEDULE + " ('never', 'known', '0 0 30 2 *', 'UTC', NULL, 0)", "schedules", "cannot fire"),
        (
            "INSERT INTO pgqueue.schedules (name, task, cron, ends_at) VALUES ('over', 'known', '0 3 * * *', now())",
            "schedules",
            "no fire is left",
        ),
        (
            SCHEDULE + " ('slow', 'known', '* * * * *', 'UTC', now() + interval '1 minute', 1);"
            " INSERT INTO pgqueue.schedule_runs (schedule, run_key, fire_at, outcome, job_id, leader)"
            " VALUES ('slow', 'k', now(), 'enqueued', 77, 'l');"
            " INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, started_at, finished_at, wait_s, run_s, priority,"
            " attempts, max_attempts, state, queue, task, args)"
            " VALUES (77, now(), now(), now() - interval '5 minutes', now(), 0, 300, 5, 1, 1, 'succeeded', 'q', 'known', '{}')",
            "schedules",
            "its last run took 300 s and it fires every 60 s",
        ),
        ("SELECT pgqueue.enqueue('gone', delay => '1 day')", "tasks", "1 of the newest 10,000 jobs name it"),
        (
            SCHEDULE + " ('nightly', 'gone', '0 3 * * *', 'UTC', now() + interval '1 hour', 1)",
            "tasks",
            "schedule nightly fires it",
        ),
        (SUBSCRIBED, "tasks", "1 subscriptions deliver to it"),
    ],
)
def test_what_it_prints_mends_what_it_found(
    database: Database,
    conn: psycopg.Connection,
    find: Callable[..., list[Finding]],
    defect: str,
    check: str,
    words: str,
) -> None:
    assert find(check) == []
    conn.execute(defect)
    (finding,) = find(check, words)
    follow(database, conn, finding.fix)
    if check == "tasks" and "schedule " in finding.message:
        return  # paused, it still names the task
    assert find(check) == []


def test_overdue_and_failing_schedules_are_named_and_nobody_who_leads(
    database: Database, conn: psycopg.Connection, find: Callable[..., list[Finding]]
) -> None:
    conn.execute(SCHEDULE + " ('late', 'known', '0 3 * * *', 'UTC', now() - interval '1 hour', 1)")
    conn.execute(
        "UPDATE pgqueue.schedules SET last_fire_at = now() - interval '1 day', last_error = 'no such column'"
    )
    found = {f.message: f for f in find("schedules")}
    assert {f.verdict for f in found.values()} == {"FAIL"}
    assert any("is 3600 s overdue" in words for words in found)
    assert any("could not fire it: no such column" in words for words in found)
    assert find("scheduler") == []
    conn.execute("SELECT pg_advisory_unlock_all()")
    (finding,) = find("scheduler")
    assert (finding.verdict, finding.message) == ("FAIL", "1 schedules are enabled and no scheduler leads")
    conn.execute("UPDATE pgqueue.schedules SET paused_at = now(), paused_by = 'olga'")
    assert find("scheduler") == []


def test_zones_that_both_sides_read_differently_are_named(
    conn: psycopg.Connection, find: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.execute(
        SCHEDULE + " ('here', 'known', '0 3 * * *', 'Europe/Berlin', now() + interval '1 hour', 1),"
        " ('there', 'known', '0 3 * * *', 'America/Barbados', now() + interval '1 hour', 1)"
    )
    assert find("time zones") == []
    old = {"Europe/Berlin": "Europe/London"}  # tables from before a change of the law
    monkeypatch.setattr(doctor_time, "ZoneInfo", lambda name: ZoneInfo(old.get(name, name)))
    (finding,) = find("time zones")
    assert finding.message.startswith("zone Europe/Berlin differs from ")
    assert "tzdata" in finding.fix


def test_messages_that_wait_for_nobody_and_lines_that_fail_are_named(
    database: Database, conn: psycopg.Connection, find: Callable[..., list[Finding]]
) -> None:
    assert find("outbox") == []
    conn.execute("SELECT pgqueue.emit('ride.done', '{}')")
    conn.execute("UPDATE pgqueue.outbox SET emitted_at = now() - interval '2 minutes'")
    (finding,) = find("outbox")
    assert (finding.verdict, finding.fix) == ("FAIL", "pgqueue relay -A module:app")
    conn.execute("UPDATE pgqueue.outbox SET state = 'parked'")
    (finding,) = find("outbox")
    assert (finding.verdict, finding.message) == (
        "WARN",
        "topic ride.done: 1 messages are parked, as nobody subscribes",
    )


def test_dead_letters_above_the_limit_of_their_queue_are_named(
    database: Database, conn: psycopg.Connection, find: Callable[..., list[Finding]]
) -> None:
    conn.execute("INSERT INTO pgqueue.queues (name, dead_letter_limit) VALUES ('mail', 3)")
    conn.execute(
        "INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, reason, attempts, max_attempts, priority, failed_at,"
        " first_failed_at, created_at, job_created_at)"
        " SELECT i, 'mail', 't', '{}', 'max_retries', 1, 1, 5, now(), now(), now(), now() FROM generate_series(1, 3) i"
    )
    assert find("dead letter growth") == []
    conn.execute("UPDATE pgqueue.queues SET dead_letter_limit = 2")
    (finding,) = find("dead letter growth")
    assert finding.message == "queue mail: 3 dead letters in 15 minutes, 2 are allowed"
    follow(database, conn, finding.fix)


def test_what_runs_out_is_named(
    database: Database,
    conn: psycopg.Connection,
    find: Callable[..., list[Finding]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conn.execute(WORKER)
    (finding,) = find("pools")
    assert "living workers may open 1950 connections" in finding.message
    assert finding.fix.startswith("ALTER SYSTEM SET max_connections = 3900")
    conn.execute("DELETE FROM pgqueue.workers")
    assert find("pools") == []

    monkeypatch.setattr(doctor_space, "XID_WARN", -1)
    (finding,) = find("transaction ids")
    assert (finding.verdict, finding.fix) == ("WARN", "VACUUM (FREEZE)")
    monkeypatch.setattr(doctor_space, "XID_FAIL", -1)
    assert find("transaction ids")[0].verdict == "FAIL"

    monkeypatch.setattr(doctor_space, "DEAD_ROWS_MIN", 100)
    conn.execute("ALTER TABLE pgqueue.tasks SET (autovacuum_enabled = off)")
    conn.execute(
        "INSERT INTO pgqueue.tasks (name, queue, priority, max_attempts) SELECT 't' || i, 'q', 5, 1 FROM generate_series(1, 500) i"
    )
    conn.execute("DELETE FROM pgqueue.tasks")
    conn.execute("SELECT pg_stat_force_next_flush()")
    conn.execute("SELECT 1")
    (finding,) = find("dead rows")
    assert finding.message.startswith("tasks: about 500 dead rows beside 0 live ones")
    follow(database, conn, finding.fix)
    conn.execute("SELECT pg_stat_force_next_flush()")
    assert find("dead rows") == []


@pytest.mark.parametrize(
    ("host", "address", "encrypted", "verdict"),
    [
        ("/var/run/postgresql", "", False, "PASS"),
        ("localhost", "127.0.0.1", False, "PASS"),
        ("::1", "::1", False, "PASS"),
        ("db.example", "10.0.0.7", False, "WARN"),
        ("db.example", "10.0.0.7", True, "PASS"),
    ],
)
def test_a_connection_over_the_network_without_encryption_is_named(
    host: str, address: str, encrypted: bool, verdict: str
) -> None:
    finding = doctor_address.tls_finding(host, address, encrypted=encrypted)
    assert finding.verdict == verdict
    assert ("sslmode=verify-full" in finding.fix) == (verdict != "PASS")


@pytest.mark.parametrize(
    ("version", "prepared", "verdict", "fix"),
    [
        ("PgBouncer 1.24.1", 200, "PASS", ""),
        ("PgBouncer 1.22.0", 0, "WARN", "set max_prepared_statements = 200 in pgbouncer.ini"),
        ("PgBouncer 1.18.0", None, "WARN", "upgrade to PgBouncer 1.22 or later"),
        ("Odyssey", None, "WARN", "stats_users"),
    ],
)
def test_a_pooler_that_forgets_prepared_statements_is_named(
    version: str, prepared: int | None, verdict: str, fix: str
) -> None:
    finding = doctor_address.pooler_finding(PoolerFacts(read_version(version), prepared))
    assert finding.verdict == verdict
    assert fix in finding.fix


def test_a_direct_address_that_leads_nowhere_or_elsewhere_is_named(
    database: Database, empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(direct: str) -> list[Finding]:
        settings = load_settings(database_url=database.dsn, direct_database_url=direct)
        with connect(database.dsn, CLI) as conn:
            return [
                f
                for f in doctor_address.address_checks(conn, settings)
                if f.check in {"direct address", "wake-ups"}
            ]

    same, heard = look(database.dsn)
    assert (same.verdict, heard.verdict) == ("PASS", "PASS")
    (nowhere,) = look("host=127.0.0.1 port=1 password=hunter2")
    assert nowhere.verdict == "FAIL"
    assert "hunter2" not in nowhere.message
    elsewhere, _ = look(empty_database.dsn)
    assert elsewhere.verdict == "FAIL"
    assert "another database" in elsewhere.message
    real = doctor_address.statement
    monkeypatch.setattr(doctor_address, "HEARD_S", 0.2)
    monkeypatch.setattr(
        doctor_address,
        "statement",
        lambda name: b"SELECT %(token)s::text" if name == "doctor_self_test" else real(name),
    )
    (unheard,) = [f for f in look(database.dsn) if f.check == "wake-ups"]
    assert unheard.verdict == "WARN"


def test_unwise_settings_are_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    file = tmp_path / "pgqueue.toml"
    file.write_text(f'database_url = "{database.dsn.replace("@", ":hunter2@", 1)}"\n')
    file.chmod(0o644)
    monkeypatch.setenv("PGQUEUE_CONFIG", str(file))
    settings = load_settings()
    assert settings.warnings
    with connect(database.dsn, CLI) as conn:
        found = [f for f in doctor_address.address_checks(conn, settings) if f.check == "settings"]
    assert {f.verdict for f in found} == {"WARN"}
    assert "hunter2" not in str(found)


def test_fix_mends_what_is_safe_says_so_before_and_leaves_a_row(
    database: Database, conn: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    def doctor(*arguments: str) -> tuple[int, dict[str, str], str]:
        code = main(["--dsn", database.dsn, "doctor", "--fix", "-o", "json", *arguments])
        out, err = capsys.readouterr()
        return code, {f["check"]: f["verdict"] for f in json.loads(out or "[]")}, err

    assert "nothing that is wrong can be mended safely" in doctor("--yes")[2]
    tomorrow = "to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD')"
    conn.execute(f"DO $$ BEGIN EXECUTE 'DROP TABLE pgqueue.job_transitions_' || {tomorrow}; END $$")
    conn.execute("DELETE FROM pgqueue.alert_rules WHERE name = 'NoWorkers'")
    _, verdicts, err = doctor("--dry-run")
    assert (verdicts["partitions"], verdicts["alerts"]) == ("WARN", "WARN")
    assert "would mend partitions" in err
    assert "would mend alerts" in err
    code, _, err = doctor()
    assert code == 2
    assert "--yes" in err
    _, verdicts, err = doctor("--yes", "--reason", "after the restore")
    assert (verdicts["partitions"], verdicts["alerts"]) == ("PASS", "PASS")
    rows = conn.execute("SELECT action, target, reason FROM pgqueue.operator_audit ORDER BY id").fetchall()
    assert [(action, target.partition(":")[0], why) for action, target, why in rows] == [
        ("doctor_fix", "partitions", "after the restore"),
        ("doctor_fix", "alerts", "after the restore"),
    ]


def test_an_application_is_named_by_its_module(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dsn", database.dsn, "doctor", "-A", "nosuch:app"]) == 78
    assert "no module nosuch" in capsys.readouterr().err
