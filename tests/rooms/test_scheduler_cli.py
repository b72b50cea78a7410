"""`pgqueue scheduler` and `pgqueue schedules …`: what they print, their exit codes, their bad input."""

from __future__ import annotations

import csv
import io
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rig.database import Database
from rig.proc import Proc, python
from rig.wait import wait_for

from pgqueue import App
from pgqueue.cli.main import main

Cli = Callable[..., tuple[int, str, str]]
APP = """
from pgqueue import App

app = App()


@app.schedule(every="1s", name="tick", misfire="all")
@app.schedule("30 2 * * *", tz="Europe/Berlin", name="nightly")
@app.task(name="t")
def t():
    pass
"""


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


def scheduler(database: Database, folder: Path, *options: str) -> Proc:
    (folder / "ridesapp.py").write_text(APP)
    env = {"PGQUEUE_DATABASE_URL": database.dsn, "PYTHONPATH": str(folder), "PGQUEUE_LOG_FORMAT": "json"}
    return Proc([sys.executable, "-m", "pgqueue", "scheduler", "-A", "ridesapp:app", *options], env=env)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.proves("P14", "P18")
def test_a_scheduler_process_leads_fires_and_leaves_at_sigterm(database: Database, tmp_path: Path) -> None:
    with scheduler(database, tmp_path) as one, scheduler(database, tmp_path) as two:
        leader = wait_for(
            lambda: next((p for p in (one, two) if "leader.acquired" in p.stderr), None), 30, "a leader"
        )
        leader.wait_for_text("schedule.fired")
        (fired, *_) = [line for line in lines(leader.stderr) if line["event"] == "schedule.fired"]
        assert (fired["schedule"], fired["outcome"], fired["level"]) == ("tick", "enqueued", "info")
        assert fired["late_s"] < 3
        leader.signal(signal.SIGTERM)
        assert leader.wait() == 0
        assert "leader.lost" in leader.stderr
        assert leader.stdout == ""
        other = two if leader is one else one
        other.wait_for_text("leader.acquired")
        other.signal(signal.SIGINT)
        assert other.wait() == 0
    assert database.one("SELECT count(*) FROM pgqueue.schedules WHERE defined_in = 'ridesapp:app'") == 2
    assert database.one("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


@pytest.mark.proves("P18")
def test_the_second_signal_stops_at_once() -> None:
    script = """
import threading
from pgqueue._signals import hearing

class Busy:
    def stop(self):
        print("ASKED", flush=True)

with hearing(Busy().stop):
    print("READY", flush=True)
    threading.Event().wait(60)
"""
    with python(script) as process:
        process.wait_for_text("READY")
        process.signal(signal.SIGTERM)
        process.wait_for_text("ASKED")
        process.signal(signal.SIGTERM)
        assert process.wait() == 143
        assert "second signal: stopping now" in process.stderr


def test_a_scheduler_that_cannot_start_says_why(empty_database: Database, tmp_path: Path) -> None:
    with scheduler(empty_database, tmp_path) as one:
        assert one.wait() == 6
        assert "db upgrade" in one.stderr
    with scheduler(empty_database, tmp_path, "--dsn", "host=/nowhere port=1") as one:
        assert one.wait() == 5
        assert len(one.stderr.strip().splitlines()) == 1


def test_the_scheduler_needs_an_application(cli: Cli) -> None:
    code, out, err = cli("scheduler")
    assert (code, out) == (2, "")
    assert "-A" in err
    assert cli("scheduler", "-A", "no_such_module:app")[0] == 78


def test_define_look_run_pause_resume_delete(cli: Cli, database: Database) -> None:
    code, out, err = cli(
        "schedules",
        "put",
        "nightly",
        "report",
        '{"day": "today"}',
        "--cron",
        "30 2 * * *",
        "--tz",
        "Europe/Berlin",
        "-o",
        "json",
    )
    assert (code, json.loads(out)) == (0, {"name": "nightly", "change": "created"})
    where, what = err.splitlines()
    assert where.startswith("define schedule nightly in postgres@")
    assert where.endswith("(development)")
    assert what == "schedule nightly: at 02:30 every day, Europe/Berlin"
    code, out, _ = cli("schedules", "list", "-o", "json")
    (row,) = json.loads(out)
    assert (row["name"], row["state"], row["cron"], row["source"]) == (
        "nightly",
        "enabled",
        "30 2 * * *",
        "cli",
    )
    assert "today" not in out
    assert cli("schedules", "list", "-o", "name")[1] == "schedule/nightly\n"
    table = list(csv.DictReader(io.StringIO(cli("schedules", "list", "-o", "csv")[1])))
    assert (table[0]["when"], table[0]["tz"]) == ("30 2 * * *", "Europe/Berlin")
    code, out, _ = cli("schedules", "get", "schedule/nightly", "-o", "json")
    assert json.loads(out)["misfire"] == "latest"

    code, out, _ = cli("schedules", "next", "nightly", "-n", "2", "-o", "jsonl")
    fires = lines(out)
    assert len(fires) == 2
    assert all(fire["local"].split("T")[1].startswith("02:30") for fire in fires if fire["note"] is None)

    code, out, _ = cli("schedules", "run", "nightly", "--reason", "try", "-o", "json")
    job_id = json.loads(out)["id"]
    (run,) = json.loads(cli("schedules", "log", "nightly", "-o", "json")[1])
    assert (run["outcome"], run["job_id"], run["leader"], run["note"]) == ("manual", job_id, "olga", "try")

    assert cli("schedules", "pause", "nightly", "--reason", "deploy")[2].endswith(
        "\nschedule nightly is paused\n"
    )
    assert cli("schedules", "next", "nightly")[0] == 4
    assert cli("schedules", "resume", "nightly")[2].endswith("\nschedule nightly fires again\n")
    assert cli("schedules", "resume", "nightly")[2].endswith("\nschedule nightly was not paused\n")
    assert cli("schedules", "delete", "nightly")[0] == 0
    assert json.loads(cli("schedules", "list", "-o", "json")[1]) == []
    audit = database.connect().execute("SELECT DISTINCT actor, via FROM pgqueue.operator_audit").fetchall()
    assert audit == [("olga", "cli")]


@pytest.mark.proves("P22")
def test_production_wants_a_reason(cli: Cli, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_ENVIRONMENT", "production")
    put = ("schedules", "put", "s", "t", "--every", "15m")
    assert cli(*put)[0] == 2
    assert cli(*put, "--reason", "new")[0] == 0
    for verb in ("run", "pause", "resume", "delete"):
        assert cli("schedules", verb, "s")[0] == 2
    assert database.one("SELECT count(*) FROM pgqueue.operator_audit") == 1


def test_a_dry_run_changes_nothing(cli: Cli, database: Database) -> None:
    assert (
        cli("schedules", "put", "s", "t", "--every", "15m", "--dry-run")[2]
        == "would define schedule s: every 15m, UTC\n"
    )
    App(database.dsn).schedules.upsert("s", task="t", every="15m")
    before = database.one("SELECT to_jsonb(s) FROM pgqueue.schedules s")
    for verb, said in (
        ("run", "would enqueue t"),
        ("pause", "would pause schedule s, which is enabled"),
        ("resume", "schedule s is not paused"),
        ("delete", "would delete schedule s"),
    ):
        assert cli("schedules", verb, "s", "--dry-run") == (0, "", f"{said}\n")
    assert database.one("SELECT to_jsonb(s) FROM pgqueue.schedules s") == before
    assert database.one("SELECT count(*) FROM pgqueue.jobs") == 0
    assert database.one("SELECT count(*) FROM pgqueue.operator_audit") == 1


@pytest.mark.parametrize("verb", ["get", "next", "run", "pause", "resume", "delete"])
def test_an_unknown_schedule_is_exit_3(cli: Cli, verb: str) -> None:
    code, out, err = cli("schedules", verb, "nobody")
    assert (code, out) == (3, "")
    said = "pgqueue: schedule nobody: not known; `pgqueue schedules list` shows the known ones"
    assert err.splitlines()[-1] == said


@pytest.mark.proves("I27", "I29", "I32")
@pytest.mark.parametrize(
    "arguments",
    [
        ("preview", "* * * *"),
        ("preview", "R * * * *"),
        ("preview", "0 0 30 2 *"),
        ("preview", "0 0 * * *", "--tz", "Nope/X"),
        ("preview", "0 0 * * *", "--every", "5m"),
        ("preview",),
        ("preview", "0 0 * * *", "-n", "0"),
        ("preview", "0 0 * * *", "--after", "yesterday"),
        ("preview", "0 0 * * *", "--after", "2026-01-01"),
        ("put", "s", "t"),
        ("put", "s", "t", "[1]", "--every", "5m"),
        ("put", "s", "t", "{", "--every", "5m"),
        ("put", "a b", "t", "--every", "5m"),
        ("put", "s", "t", "--every", "5m", "--misfire", "maybe"),
        ("put", "s", "t", "--every", "5m", "--ends-at", "soon"),
    ],
)
def test_bad_input_is_exit_2_and_writes_nothing(
    cli: Cli, database: Database, arguments: tuple[str, ...]
) -> None:
    code, out, err = cli("schedules", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("pgqueue: ")
    assert database.one("SELECT count(*) FROM pgqueue.schedules") == 0


@pytest.mark.proves("I31")
def test_a_preview_needs_no_database_and_shows_the_clock_change(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", "host=/nowhere port=1")
    arguments = [
        "schedules",
        "preview",
        "30 1 * * *",
        "--tz",
        "America/New_York",
        "--after",
        "2026-10-31T12:00Z",
    ]
    assert main([*arguments, "-n", "2", "-o", "jsonl"]) == 0
    out, err = capsys.readouterr()
    assert lines(out) == [
        {
            "at": "2026-11-01T05:30:00Z",
            "local": "2026-11-01T01:30:00-04:00",
            "note": "01:30 occurs twice on 2026-11-01 in America/New_York: fires at the first",
        },
        {"at": "2026-11-02T06:30:00Z", "local": "2026-11-02T01:30:00-05:00", "note": None},
    ]
    assert err.splitlines() == [
        "at 01:30 every day, America/New_York",
        "01:30 occurs twice on 2026-11-01 in America/New_York: fires at the first",
    ]


def test_the_list_tells_what_is_wrong(cli: Cli, database: Database) -> None:
    App(database.dsn).schedules.upsert("bad", task="t", every="1h")
    App(database.dsn).schedules.upsert("old", task="t", every="1h")
    conn = database.connect()
    conn.execute(
        "UPDATE pgqueue.schedules SET cron = '0 0 30 2 *', every_s = NULL, last_error = 'cron: never fires' WHERE name = 'bad'"
    )
    conn.execute("UPDATE pgqueue.schedules SET orphaned_at = now(), defined_in = 'm:app' WHERE name = 'old'")
    code, out, err = cli("schedules", "list")
    assert code == 0
    assert "every 1h" in out
    assert err.splitlines() == [
        "schedule bad: cannot fire: cron: never fires",
        "schedule old: m:app no longer defines it, so it fires no more; `pgqueue schedules delete` removes it",
    ]
