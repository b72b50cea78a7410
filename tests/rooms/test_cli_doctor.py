"""`pgqueue doctor`, `health` and `stats` name staged defects, each with the object and the way to mend it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import psycopg
import pytest
from rig.database import Database

from pgqueue.cli.main import main
from pgqueue.control.desk import Desk
from pgqueue.control.doctor import Finding, examine

WORKER = (
    "INSERT INTO pgqueue.workers (id, lease_s, pid, host, version, queues, slots, beat_at)"
    " VALUES (gen_random_uuid(), 15, 1, 'h', %s, %s, 4, clock_timestamp() - %s::interval)"
)


@pytest.fixture
def conn(database: Database) -> psycopg.Connection:
    return database.connect()


@pytest.fixture
def find(database: Database) -> Callable[..., Finding]:
    """The finding of a check whose message holds `words`."""

    def look(check: str, words: str = "") -> Finding:
        found = [f for f in examine(Desk(database.dsn, via="cli")) if f.check == check and words in f.message]
        assert found, f"nothing about {check}: {words}"
        return found[0]

    return look


def test_a_healthy_database_passes_all_but_the_test_servers_fsync(database: Database) -> None:
    findings = examine(Desk(database.dsn, via="cli"))
    bad = {finding.check for finding in findings if finding.verdict != "PASS"}
    assert bad == {"fsync", "full_page_writes"}  # the test server is fast and lossy
    assert {finding.fix for finding in findings if finding.verdict == "PASS"} == {""}
    assert all(finding.fix for finding in findings if finding.verdict != "PASS")


@pytest.mark.parametrize(
    ("defect", "check", "words", "fix"),
    [
        (
            "ALTER TABLE pgqueue.sleepers SET UNLOGGED",
            "tables",
            "sleepers",
            "ALTER TABLE pgqueue.sleepers SET LOGGED",
        ),
        (
            "ALTER TABLE pgqueue.jobs SET (autovacuum_enabled = off)",
            "tables",
            "jobs",
            "RESET (autovacuum_enabled)",
        ),
        (
            (
                "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
                "CREATE TRIGGER spy AFTER INSERT ON pgqueue.jobs EXECUTE FUNCTION f()"
            ),
            "tables",
            "spy",
            "DROP TRIGGER spy",
        ),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pgqueue.jobs_lane_idx'::regclass",
            "schema",
            "jobs_lane_idx",
            "db upgrade",
        ),
        ("DROP INDEX pgqueue.jobs_held_idx", "drift", "jobs_held_idx", "by hand"),
        ("ALTER TABLE pgqueue.jobs ADD COLUMN mine text", "drift", "mine", "by hand"),
        ("SELECT pgqueue.enqueue('t', queue => 'forgotten')", "queues", "forgotten", "-q forgotten"),
        (
            "INSERT INTO pgqueue.queues (name) VALUES ('mail'); SELECT pgqueue.enqueue('t', queue => 'mail')",
            "queues",
            "no worker serves it",
            "-q mail",
        ),
        ("SELECT pgqueue.pause('mail')", "queues", "paused since", "queues resume mail"),
        (
            (
                "SELECT pgqueue.enqueue('t', delay => '1s');"
                " UPDATE pgqueue.jobs SET run_at = clock_timestamp() - interval '5 min'"
            ),
            "promotion",
            "1 jobs should have become ready",
            "start a worker",
        ),
        (
            "SELECT pgqueue.enqueue('nosuch'); UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'unknown_task', ready_seq = NULL",
            "unknown tasks",
            "nosuch",
            "deploy a worker",
        ),
        (
            (
                "INSERT INTO pgqueue.job_transitions (job_id, at, from_state, to_state, reason, actor, queue, task)"
                " VALUES (1, now() + interval '400 days', 'held', 'ready', 'freed', 'a', 'q', 't')"
            ),
            "default partition",
            "a day was missing",
            "workers running",
        ),
    ],
)
def test_staged_defects_are_named_with_their_fix(
    conn: psycopg.Connection, find: Callable[..., Finding], defect: str, check: str, words: str, fix: str
) -> None:
    conn.execute(defect)
    finding = find(check, words)
    assert finding.verdict != "PASS"
    assert fix in finding.fix


def test_a_missing_day_counts_as_the_end_of_the_days_ahead(
    conn: psycopg.Connection, find: Callable[..., Finding]
) -> None:
    assert "7 days" in find("partitions").message
    tomorrow = "to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD')"
    conn.execute(f"DO $$ BEGIN EXECUTE 'DROP TABLE pgqueue.job_transitions_' || {tomorrow}; END $$")
    finding = find("partitions")
    assert (finding.verdict, finding.message) == ("WARN", "0 days are made ahead")


def test_flush_overrides_of_roles_are_named_with_whose_they_are(
    conn: psycopg.Connection, database: Database, find: Callable[..., Finding]
) -> None:
    conn.execute(f"ALTER DATABASE {database.name} SET synchronous_commit = off")
    finding = find("synchronous_commit", "every role")
    assert finding.verdict == "FAIL"
    conn.execute(finding.fix)  # the fix is SQL that runs as it stands
    assert find("synchronous_commit").verdict == "PASS"


def test_old_transactions_of_each_kind_are_named(
    database: Database,
    conn: psycopg.Connection,
    find: Callable[..., Finding],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pgqueue.control import doctor

    monkeypatch.setattr(doctor, "OLD_TRANSACTION_WARN_S", -1.0)
    holder = database.connect(autocommit=False, application_name="report")
    holder.execute("SELECT 1")
    finding = find("oldest transaction", "report")
    assert finding.verdict == "WARN"
    assert f"pg_terminate_backend({holder.info.backend_pid})" in finding.fix
    monkeypatch.setattr(doctor, "OLD_TRANSACTION_FAIL_S", -1.0)
    assert find("oldest transaction", "report").verdict == "FAIL"
    with database.connect(autocommit=False) as prepared:
        prepared.execute("CREATE TABLE t (); PREPARE TRANSACTION 'it''s old'")
    finding = find("oldest transaction", "prepared transaction")
    conn.execute(finding.fix)
    assert not [f for f in examine(Desk(database.dsn, via="cli")) if "prepared transaction" in f.message]


def test_stale_and_mixed_workers_are_named(conn: psycopg.Connection, find: Callable[..., Finding]) -> None:
    conn.execute(WORKER, ["1.0", ["default"], "1 hour"])
    assert find("workers").verdict == "WARN"
    for version in ("1.0", "1.1"):
        conn.execute(WORKER, [version, ["default"], "0 s"])
    assert find("versions").message == "living workers run 1.0 and 1.1"


def test_without_a_schema_the_exit_code_is_6_and_the_server_is_still_examined(
    empty_database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dsn", empty_database.dsn, "doctor", "-o", "json"]) == 6
    findings = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["schema"]["fix"] == "pgqueue db upgrade"
    assert findings["version"]["verdict"] == "PASS"


def test_the_oldest_server_is_examined_too(database15: Database) -> None:
    findings = examine(Desk(database15.dsn, via="cli"))
    assert {f.check for f in findings if f.verdict != "PASS"} == {"fsync", "full_page_writes"}


def test_exit_codes_of_doctor(
    database: Database,
    conn: psycopg.Connection,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pgqueue.control import doctor

    def server_is_sound(conn: object, name: str) -> list[dict[str, object]]:
        rows = real(conn, name)
        if name == "doctor_server":
            rows[0] |= {"fsync": "on", "full_page_writes": "on"}
        return rows

    real = doctor._all
    monkeypatch.setattr(doctor, "_all", server_is_sound)
    assert main(["--dsn", database.dsn, "doctor", "--strict"]) == 0
    conn.execute("SELECT pgqueue.pause('mail')")
    assert main(["--dsn", database.dsn, "doctor"]) == 0
    assert main(["--dsn", database.dsn, "doctor", "--strict"]) == 1
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'forgotten')")
    assert main(["--dsn", database.dsn, "doctor"]) == 1
    capsys.readouterr()
    assert main(["--dsn", "host=127.0.0.1 port=1", "doctor"]) == 5


def test_health_names_what_is_wrong_and_leaves_paused_queues_alone(
    database: Database, conn: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    def health(*arguments: str) -> tuple[int, list[str]]:
        code = main(["--dsn", database.dsn, "health", "-o", "json", *arguments])
        return code, json.loads(capsys.readouterr().out)["problems"]

    assert health() == (0, [])
    conn.execute("INSERT INTO pgqueue.queues (name) VALUES ('mail'), ('critical')")
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'mail')")
    assert health() == (1, ["queue mail: 1 jobs are due and no worker serves it"])
    assert health("--queue", "critical") == (0, [])
    conn.execute(WORKER, ["1.0", ["mail"], "0 s"])
    assert health() == (0, [])
    conn.execute("UPDATE pgqueue.jobs SET run_at = clock_timestamp() - interval '5 min'")
    code, problems = health("--max-lag", "4m")
    assert (code, len(problems)) == (1, 1)
    assert "waits for 300" in problems[0]
    assert health("--max-lag", "10m") == (0, [])
    conn.execute("SELECT pgqueue.pause('mail')")
    assert health() == (0, [])
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'forgotten')")
    assert health("--queue", "forgotten")[0] == 1
    assert main(["--dsn", database.dsn, "health", "--queue", "nope"]) == 3
    assert main(["--dsn", database.dsn, "health", "--max-lag", "5"]) == 2


@pytest.fixture
def probe() -> Iterator[tuple[int, list[int]]]:
    """A process's health port that answers with the status in its list."""
    status = [200]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0] if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(b'{"failing": ["draining"]}')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, status
        server.shutdown()
        thread.join(10)


def test_health_asks_a_process_of_this_machine(
    probe: tuple[int, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    port, status = probe
    assert main(["health", "--port", str(port)]) == 0
    status[0] = 503
    assert main(["health", "--port", str(port)]) == 1
    assert "draining" in capsys.readouterr().out
    assert main(["health", "--port", "1"]) == 1


def test_stats_shows_what_is_wrong_first(
    database: Database, conn: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    conn.execute("INSERT INTO pgqueue.queues (name) VALUES ('calm'), ('late')")
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'late'), pgqueue.enqueue('t', queue => 'forgotten')")
    assert main(["--dsn", database.dsn, "stats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0 workers, 0 of 0 slots busy")
    assert [line.split()[0] for line in lines[1:5]] == ["queue", "late", "forgotten", "calm"]
    assert lines[5] == "queue forgotten: jobs wait and no worker ever served it"
    assert main(["--dsn", database.dsn, "stats", "-w", "0"]) == 2


def test_stats_shows_what_ended_lately_and_how_long_it_took(
    database: Database, conn: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    conn.execute("INSERT INTO pgqueue.queues (name) VALUES ('mail'), ('calm')")
    conn.execute("SELECT pgqueue.roll_up()")
    conn.execute(
        """INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, started_at, finished_at, wait_s, run_s, priority, attempts, max_attempts, state, queue, task, args)
           SELECT i, p.at, p.at, p.at, p.at, 0.01, 0.1, 5, 1, 1, 'succeeded', 'mail', 'receipt', '{}'
           FROM (SELECT done_upto - interval '2 minutes' AS at FROM pgqueue.stats_progress WHERE what = 'rollups') p, generate_series(1, 20) i"""
    )
    conn.execute(
        "SELECT pgqueue.count_minutes(done_upto - interval '5 minutes', done_upto) FROM pgqueue.stats_progress WHERE what = 'rollups'"
    )
    assert main(["--dsn", database.dsn, "stats", "--minutes", "10"]) == 0
    out = capsys.readouterr().out
    assert "the 10 minutes up to" in out
    (total, task) = [line.split() for line in out.splitlines() if line.startswith("mail") and " 2 " in line]
    assert total[:4] == ["mail", "2", "20", "0"]
    assert task[:5] == ["mail", "receipt", "2", "20", "0"]
    assert main(["--dsn", database.dsn, "-o", "json", "stats"]) == 0
    calm, mail = json.loads(capsys.readouterr().out)
    assert (calm["queue"], calm["recent"], calm["tasks"]) == ("calm", None, [])
    assert mail["recent"]["per_minute"] == 4
    assert 0.064 <= mail["recent"]["run_p95_s"] <= 0.1001
    assert [one["task"] for one in mail["tasks"]] == ["receipt"]
    assert main(["--dsn", database.dsn, "stats", "--minutes", "0"]) == 2


def test_doctor_names_a_duty_that_fails_or_is_not_done(
    conn: psycopg.Connection, find: Callable[..., Finding]
) -> None:
    assert find("upkeep").verdict == "PASS"
    assert find("rollups").verdict == "PASS", "nothing was counted yet, and nothing was to be"
    conn.execute(
        """INSERT INTO pgqueue.upkeep_duties (duty, next_at, started_at, failed_at, error) VALUES
             ('retention', clock_timestamp() + interval '1 minute', clock_timestamp() - interval '1 day', clock_timestamp(), '55P03 lock'),
             ('partitions', clock_timestamp() - interval '11 minutes', clock_timestamp() - interval '1 day', NULL, NULL),
             ('expiry', clock_timestamp() - interval '1 minute', clock_timestamp(), clock_timestamp() - interval '1 day', 'old')"""
    )
    conn.execute(
        "UPDATE pgqueue.stats_progress SET done_upto = clock_timestamp() - CASE what WHEN 'rollups' THEN interval '6 minutes' ELSE interval '3 days' END"
    )
    failing, overdue = find("upkeep", "retention"), find("upkeep", "partitions")
    assert (failing.verdict, overdue.verdict) == ("WARN", "WARN")
    assert "55P03 lock" in failing.message
    assert overdue.message.startswith("duty partitions is ")
    assert overdue.message.endswith(" s overdue")
    with pytest.raises(AssertionError):
        find("upkeep", "expiry")
    assert find("rollups", "newest counted minute").verdict == "WARN"
    assert find("rollups", "recounted").verdict == "WARN"
