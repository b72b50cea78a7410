"""Every verb of the command line: its output, its exit codes, its bad input."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import pytest
from rig.database import Database

from pgqueue import App, Reject
from pgqueue.cli.main import main

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", database.dsn)
    monkeypatch.setenv("PGQUEUE_ACTOR", "olga")

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def dead(database: Database) -> list[int]:
    """Three dead letters of two causes."""
    app = App(database.dsn)

    @app.task(name="pay", queue="critical")
    def pay(ride_id: int, secret: str = "hunter2") -> None:
        raise Reject(f"the bank declined card {ride_id}")

    @app.task(name="mail", queue="mail")
    def mail() -> None:
        raise Reject("no such address")

    ids = [job.id for job in pay.enqueue_many(None, [{"ride_id": 1}, {"ride_id": 2}])] + [
        mail.enqueue(None).id
    ]
    assert app.worker("critical,mail", concurrency=2, drain=True).run() == 0
    app.close()
    return ids


def test_enqueue_list_get_and_timeline(cli: Cli, database: Database) -> None:
    code, out, _ = cli(
        "enqueue",
        "pay",
        '{"ride_id": 7, "pin": "hunter2"}',
        "--queue",
        "critical",
        "--idempotency-key",
        "k",
        "-o",
        "json",
    )
    assert code == 0
    job = json.loads(out)
    assert job["created"] is True
    _, again, _ = cli("enqueue", "pay", "{}", "--idempotency-key", "k", "-o", "json")
    assert json.loads(again) == {
        "id": job["id"],
        "created": False,
        "replaced": False,
        "task": "pay",
    }
    code, out, _ = cli("jobs", "list", "--queue", "critical", "-o", "jsonl")
    assert [json.loads(line)["id"] for line in out.splitlines()] == [job["id"]]
    code, out, _ = cli("jobs", "list", "--task", "pa*", "-o", "name")
    assert out == f"job/{job['id']}\n"
    code, out, _ = cli("jobs", "list", "-o", "csv")
    assert next(csv.DictReader(io.StringIO(out)))["task"] == "pay"
    code, out, _ = cli("jobs", "get", str(job["id"]), "-o", "json")
    assert json.loads(out)["args"] == {"ride_id": "int", "pin": "str[7]"}
    assert "hunter2" not in out
    code, out, _ = cli("jobs", "get", str(job["id"]), "--show-args", "--reason", "a look")
    assert "hunter2" in out
    assert database.one("SELECT actor || ' ' || action FROM pgqueue.operator_audit") == "olga reveal_args"
    code, out, _ = cli("jobs", "timeline", str(job["id"]))
    assert code == 0
    assert "enqueued" in out


def test_cancel_run_now_and_retry(cli: Cli, database: Database, dead: list[int]) -> None:
    waiting = database.one("SELECT pgqueue.enqueue('later', delay => '1 hour')")
    code, out, _ = cli("jobs", "run-now", str(waiting), "-o", "json")
    assert (code, json.loads(out)) == (0, [{"id": waiting, "verdict": "freed"}])
    assert cli("jobs", "cancel", str(waiting), "--reason", "no need")[0] == 0
    assert cli("jobs", "cancel", str(waiting))[0] == 4
    assert cli("jobs", "cancel", "999999")[0] == 3
    more = database.one("SELECT pgqueue.enqueue('later', delay => '1 hour')")
    assert cli("jobs", "cancel", str(more), "999999")[0] == 7
    code, out, _ = cli("jobs", "retry", str(dead[0]), "-o", "json")
    assert code == 0
    assert [row["verdict"] for row in json.loads(out)] == ["redriven"]
    assert cli("jobs", "retry", str(waiting))[0] == 4
    assert cli("jobs", "retry", "999999")[0] == 3
    assert (
        database.one(
            "SELECT note FROM pgqueue.job_transitions WHERE job_id = %s AND to_state = 'cancelled'", [waiting]
        )
        == "no need"
    )


def test_reschedule_moves_previews_and_says_why_not(cli: Cli, database: Database) -> None:
    later = database.one("SELECT pgqueue.enqueue('later', delay => '1 hour')")
    ready = database.one("SELECT pgqueue.enqueue('now')")
    run_at = "SELECT run_at::text FROM pgqueue.jobs WHERE id = %s"
    code, _, err = cli("jobs", "reschedule", str(later), "--run-at", "2031-01-01T00:00Z", "--dry-run")
    assert (code, f"would reschedule 1 jobs: {later}" in err) == (0, True)
    assert not database.one(run_at, [later]).startswith("2031")
    code, out, _ = cli(
        "jobs",
        "reschedule",
        str(later),
        "--run-at",
        "2031-01-01T00:00Z",
        "--reason",
        "no hurry",
        "-o",
        "json",
    )
    assert (code, json.loads(out)) == (0, [{"id": later, "verdict": "rescheduled"}])
    assert database.one(run_at, [later]).startswith("2031-01-01")
    # A filter means what is scheduled: the ready job stays where it is.
    code, out, _ = cli("jobs", "reschedule", "--queue", "default", "--delay", "0s", "--yes", "-o", "json")
    assert (code, json.loads(out)) == (0, [{"id": later, "verdict": "rescheduled"}])
    assert database.one("SELECT count(*) FROM pgqueue.jobs WHERE state = 'ready'") == 2
    code, out, _ = cli("jobs", "reschedule", str(ready), "999999", "--delay", "0s", "-o", "json")
    assert (code, [row["verdict"] for row in json.loads(out)]) == (4, ["ready", "unknown"])
    assert cli("jobs", "reschedule", "999999", "--delay", "1h")[0] == 3
    for wrong in (
        (),
        ("--delay", "1h", "--run-at", "2031-01-01T00:00Z"),
        ("--run-at", "2031-01-01"),
        ("--delay", "x"),
    ):
        code, _, err = cli("jobs", "reschedule", str(later), *wrong)
        assert code == 2, err
        assert err.count("\n") == 1
    actions = database.connect().execute(
        "SELECT actor, via, action, target, reason FROM pgqueue.operator_audit ORDER BY id"
    )
    assert actions.fetchall() == [
        ("olga", "cli", "reschedule", f"job {later}", "no hurry"),
        ("olga", "cli", "reschedule", f"job {later}", None),
        ("olga", "cli", "reschedule", "jobs state:scheduled queue:default", None),
    ]


def test_bulk_asks_previews_and_refuses(cli: Cli, database: Database) -> None:
    database.connect().execute("SELECT pgqueue.enqueue('t') FROM generate_series(1, 3)")
    code, _, err = cli("jobs", "cancel", "--task", "t", "--dry-run")
    assert code == 0
    assert "would cancel 3" in err
    assert cli("jobs", "cancel", "--task", "t")[0] == 2  # nobody can be asked
    assert cli("jobs", "cancel")[0] == 2
    assert cli("jobs", "cancel", "1", "--task", "t")[0] == 2
    assert cli("jobs", "cancel", "--task", "other", "--yes")[0] == 3
    assert database.one("SELECT count(*) FROM pgqueue.jobs") == 3
    assert cli("jobs", "cancel", "--all", "--yes")[0] == 0
    assert database.one("SELECT count(*) FROM pgqueue.jobs") == 0


@pytest.mark.proves("P22")
def test_dead_letters(cli: Cli, database: Database, dead: list[int]) -> None:
    code, out, _ = cli("dlq", "list", "-o", "json")
    assert {row["job_id"] for row in json.loads(out)} == set(dead)
    code, out, _ = cli("dlq", "groups", "-o", "json")
    groups = json.loads(out)
    assert [(g["task"], g["dead"]) for g in groups] == [("pay", 2), ("mail", 1)]
    code, out, _ = cli("dlq", "get", str(dead[0]))
    assert code == 0
    assert "Reject" in out
    assert "hunter2" not in out
    code, out, _ = cli("dlq", "export", "--queue", "critical")
    assert [json.loads(line)["job_id"] for line in out.splitlines()] == dead[:2]
    assert cli("dlq", "get", "999999")[0] == 3
    code, out, _ = cli(
        "dlq",
        "redrive",
        "--fingerprint",
        groups[0]["error_fingerprint"],
        "--yes",
        "--reason",
        "bank is back",
        "-o",
        "json",
    )
    assert code == 0
    first = {row["job_id"]: row["redriven_as"] for row in json.loads(out)}
    code, out, _ = cli("dlq", "redrive", *map(str, dead[:2]), "-o", "json")
    assert {row["job_id"]: row["redriven_as"] for row in json.loads(out)} == first
    assert cli("dlq", "redrive", "999999")[0] == 3
    assert cli("dlq", "discard", str(dead[2]), "--reason", "test data")[0] == 0
    assert cli("dlq", "discard", str(dead[2]))[0] == 3
    assert database.one("SELECT state FROM pgqueue.job_history WHERE job_id = %s", [dead[2]]) == "cancelled"
    actions = (
        database.connect()
        .execute("SELECT DISTINCT action FROM pgqueue.operator_audit WHERE via = 'cli' ORDER BY 1")
        .fetchall()
    )
    assert actions == [("discard",), ("redrive",)]


def test_queues_workers_stats_health_and_doctor(cli: Cli, dead: list[int]) -> None:
    _, out, _ = cli("queues", "list", "-o", "json")
    assert {row["queue"]: row["dead_waiting"] for row in json.loads(out)} == {"critical": 2, "mail": 1}
    assert cli("queues", "get", "nope")[0] == 3
    assert cli("queues", "pause", "critical", "--reason", "deploy", "--for", "30m")[0] == 0
    _, out, _ = cli("queues", "get", "critical", "-o", "json")
    assert json.loads(out)["pause_reason"] == "deploy"
    assert cli("queues", "resume", "critical")[0] == 0
    assert cli("queues", "resume", "nope")[0] == 3
    _, out, _ = cli("workers", "list", "--ended", "-o", "json")
    assert [row["status"] for row in json.loads(out)] == ["stopped"]
    assert cli("stats")[0] == 0
    assert cli("health")[0] == 0
    _, out, _ = cli("doctor", "-o", "json")
    findings = {f["check"]: f["verdict"] for f in json.loads(out)}
    assert findings["schema"] == "PASS"
    assert findings["drift"] == "PASS", out
    assert findings["dead letters"] == "WARN"
    assert cli("doctor", "--strict")[0] == 1
    cli("enqueue", "t", "{}", "--queue", "mail")
    assert cli("health")[0] == 1
    assert cli("version")[0] == 0


def test_wait_returns_the_result_or_says_how_it_ended(cli: Cli, database: Database, dead: list[int]) -> None:
    app = App(database.dsn)

    @app.task(name="sum")
    def total(a: int, b: int) -> int:
        return a + b

    job = total.enqueue(None, a=2, b=3)
    app.worker(drain=True).run()
    app.close()
    assert cli("jobs", "wait", str(job.id))[:2] == (0, "5\n")
    assert cli("jobs", "wait", str(dead[0]))[0] == 1
    open_job = database.one("SELECT pgqueue.enqueue('never')")
    assert cli("jobs", "wait", str(open_job), "--timeout", "200ms")[0] == 1
    assert cli("jobs", "wait", "999999")[0] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["jobs", "lst"], 2, "list"),
        (["enqueue", "pay", "{x"], 2, "not JSON"),
        (["enqueue", "a b"], 2, "task"),
        (["enqueue", "pay", "{}", "--priority", "12"], 2, "priority"),
        (["enqueue", "pay", "{}", "--delay", "30"], 2, "30s"),
        (["enqueue", "pay", "{}", "--run-at", "2026-12-01T08:00"], 2, "run_at"),
        (["jobs", "get", "abc"], 2, "integer"),
        (["jobs", "list", "--state", "nope"], 2, "state"),
        (["worker", "-A", "nowhere:app"], 78, "nowhere"),
        (["--dsn", "host=127.0.0.1 port=1 password=hunter2", "jobs", "list"], 5, "cannot connect"),
    ],
)
@pytest.mark.proves("I34")
def test_bad_input_gets_one_clear_line(cli: Cli, arguments: list[str], code: int, words: str) -> None:
    got, out, err = cli(*arguments)
    assert got == code, err
    assert words in err
    assert out == ""
    assert "Traceback" not in err
    assert "hunter2" not in err


def test_a_database_without_the_schema_is_refused_with_the_next_command(
    empty_database: Database, cli: Cli
) -> None:
    code, _, err = cli("--dsn", empty_database.dsn, "health")
    assert code == 6
    assert "pgqueue db upgrade" in err
