"""Several processes under one parent: `all`, and one fleet of workers over several databases."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig.database import Database, migrate_template
from rig.proc import ROOT, Proc
from rig.wait import wait_for

from pgqueue import App
from pgqueue.cli import work
from pgqueue.cli.group import Member
from pgqueue.cli.main import main

APPLICATION = """
from pgqueue import App, JobContext

app = App()

@app.on("ride.done")
@app.task(name="receipt", queue="mail")
def receipt(ctx: JobContext, ride_id: int) -> None:
    ctx.conn.execute("INSERT INTO effects VALUES (%s)", (f"receipt {ride_id}",))

@app.schedule(every="1s")
@app.task(name="tick")
def tick(ctx: JobContext) -> None:
    ctx.conn.execute("INSERT INTO effects VALUES ('tick')")

@app.task(name="pay")
def pay(ctx: JobContext, ride_id: int) -> None:
    ctx.conn.execute("INSERT INTO effects VALUES (%s)", (f"pay {ride_id}",))
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Proc]]:
    (tmp_path / "shop.py").write_text(APPLICATION)
    started: list[Proc] = []

    def begin(*args: str, **env: str) -> Proc:
        variables = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PGQUEUE_HEARTBEAT_S": "500ms", **env}
        started.append(Proc([sys.executable, "-m", "pgqueue", *args], env=variables, cwd=tmp_path))
        return started[-1]

    yield begin
    for process in started:
        process.end()


def lines(process: Proc) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.stderr.splitlines() if line.startswith("{")]


def test_all_runs_jobs_schedules_and_messages_until_it_is_told_to_stop(
    database: Database, start: Callable[..., Proc]
) -> None:
    database.connect().execute("CREATE TABLE effects (what text)")
    app = App(database.dsn)
    process = start("all", "-A", "shop:app", "--dsn", database.dsn)
    app.enqueue("pay", {"ride_id": 7})
    app.outbox.emit(None, "ride.done", {"ride_id": 7})
    app.close()
    wanted = {"pay 7", "receipt 7", "tick"}
    wait_for(
        lambda: set(database.one("SELECT array_agg(DISTINCT what) FROM effects") or []) == wanted,
        60,
        what=f"job, message and schedule; {process.stderr[-2000:]}",
    )
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(60) == 0, process.stderr
    told = lines(process)
    assert [(line["role"], line["number"]) for line in told if line["event"] == "process.started"] == [
        ("worker", 0),
        ("scheduler", 1),
        ("relay", 2),
    ]
    assert [line["exit_code"] for line in told if line["event"] == "process.ended"] == [0, 0, 0]
    assert database.one("SELECT count(*) FROM pgqueue.workers WHERE status = 'live'") == 0


def test_one_fleet_serves_several_databases_and_each_line_names_its_own(
    database: Database, empty_database: Database, start: Callable[..., Proc]
) -> None:
    with empty_database.connect() as conn:
        info = conn.info
        migrate_template(host=info.host, port=info.port, user=info.user, dbname=info.dbname)
    both = (database, empty_database)
    for one in both:
        one.connect().execute("CREATE TABLE effects (what text)")
        app = App(one.dsn)
        app.enqueue("pay", {"ride_id": 1})
        app.close()
    addresses = [option for one in both for option in ("--dsn", with_password(one.dsn))]
    process = start("worker", "-A", "shop:app", "-c", "1", "--drain", *addresses)
    assert process.popen.wait(90) == 0, process.stderr
    for one in both:
        assert one.one("SELECT array_agg(what) FROM effects") == ["pay 1"]
        assert one.one("SELECT count(*) FROM pgqueue.workers WHERE kind = 'worker'") == 1
    told = lines(process)
    assert [line for line in told if "database" not in line] == []
    names = {line["database"] for line in told}
    assert len(names) == 2, names
    assert all(any(str(name).endswith(f"/{one.name}") for name in names) for one in both)
    assert "hunter2" not in "\n".join(line for line in process.stderr.splitlines() if line.startswith("{"))
    assert "a password in --dsn is seen by everyone" in process.stderr


def with_password(dsn: str) -> str:
    """The same address with a password, which nobody asks for over a socket."""
    head, _, rest = dsn.partition("@")
    return f"{head}:hunter2@{rest}"


def test_what_cannot_be_several_says_so(
    database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = ["--dsn", database.dsn, "--dsn", "host=127.0.0.1 port=1"]
    for verb in (["jobs", "list"], ["scheduler", "-A", "json:app"], ["all", "-A", "json:app"]):
        assert main([*verb, *twice]) == 2
        assert "--dsn: given more than once; only `pgqueue worker`" in capsys.readouterr().err
    monkeypatch.setenv("PGQUEUE_DIRECT_DATABASE_URL", database.dsn)
    assert main(["worker", "-A", "json:app", *twice]) == 78
    assert "is the address of one database" in capsys.readouterr().err


def test_so_many_processes_for_each_database_and_an_address_named_twice_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Member] = []

    def note(session: object, members: list[Member], ports: object) -> int:
        del session, ports
        seen.extend(members)
        return 0

    monkeypatch.setattr(work, "run_group", note)
    addresses = ["--dsn", "dbname=a", "--dsn", "dbname=b", "--dsn", "dbname=a"]
    assert main(["worker", "-A", "shop:app", "-q", "mail", "--processes", "2", "--drain", *addresses]) == 0
    assert [member.dsn for member in seen] == ["dbname=a", "dbname=a", "dbname=b", "dbname=b"]
    assert {tuple(member.arguments) for member in seen} == {("-A", "shop:app", "-q", "mail", "--drain")}
