"""`pgqueue worker --processes N` and the processes for suspects, with real workers: killed one by one and all together."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.proc import ROOT, Proc
from rig.wait import wait_for

APPLICATION = """
import os, time
from pathlib import Path
from pgqueue import App, JobContext, Retry

app = App({dsn})
folder = Path({folder!r})

@app.task(name="pid", retry=Retry(max_retries=5, initial_delay="10ms"))
def pid(n: int) -> int:
    time.sleep(0.005)
    return os.getpid()

@app.task(name="slow", retry=Retry(max_retries=5, initial_delay="10ms"))
def slow(ctx: JobContext) -> int:
    (folder / f"started-{{ctx.job.attempt}}-{{os.getpid()}}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return os.getpid()

@app.task(name="killer", retry=Retry(max_retries=2, initial_delay="10ms"))
def killer() -> None:
    os._exit(7)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APPLICATION.format(dsn="", folder=str(tmp_path)))
    return tmp_path


@pytest.fixture
def conn(database: Database) -> psycopg.Connection[Any]:
    return database.connect()


@pytest.fixture
def start(database: Database, folder: Path) -> Iterator[Callable[..., Proc]]:
    started: list[Proc] = []

    def begin(*args: str, **env: str) -> Proc:
        variables = {
            "PGQUEUE_DATABASE_URL": database.dsn,
            "PYTHONPATH": f"{folder}:{ROOT}",
            "PGQUEUE_RESCUE_INTERVAL_S": "100ms",
            "PGQUEUE_HEARTBEAT_S": "500ms",
            **env,
        }
        started.append(Proc([sys.executable, "-m", "pgqueue", *args], env=variables, cwd=folder))
        return started[-1]

    yield begin
    for process in started:
        process.end()


def one(conn: psycopg.Connection[Any], sql: str, *values: Any) -> Any:
    row = conn.execute(sql, values or None).fetchone()
    return None if row is None else row[0]


def told(process: Proc, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in process.stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def live(conn: psycopg.Connection[Any], kind: str = "worker") -> list[int]:
    rows = conn.execute("SELECT pid FROM pgqueue.workers WHERE status = 'live' AND kind = %s", [kind])
    return [pid for (pid,) in rows.fetchall()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.proves("P3", "P9", "F2")
def test_a_killed_child_is_started_again_and_its_jobs_run(
    start: Callable[..., Proc], conn: psycopg.Connection[Any], folder: Path
) -> None:
    job = one(conn, "SELECT pgqueue.enqueue('slow')")
    parent = start("worker", "-A", "shop:app", "-c", "2", "--processes", "2")
    wait_for(lambda: len(live(conn)) == 2, 60, "both children")
    (first,) = wait_for(lambda: list(folder.glob("started-1-*")), 30, "the job's start")
    victim = int(first.name.rsplit("-", 1)[1])
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: list(folder.glob("started-2-*")), 60, "its second start")
    (folder / "go").touch()
    wait_for(lambda: one(conn, "SELECT count(*) FROM pgqueue.job_history"), 30, "its end")
    assert one(conn, "SELECT state FROM pgqueue.job_history WHERE job_id = %s", job) == "succeeded"
    wait_for(lambda: len(live(conn)) == 2, 30, "the new child")
    assert victim not in live(conn)
    (ended,) = told(parent, "process.ended")
    assert (ended["pid"], ended["exit_code"], ended["role"]) == (victim, -signal.SIGKILL, "worker")
    parent.signal(signal.SIGTERM)
    assert parent.wait(60) == 0
    assert set(conn.execute("SELECT status FROM pgqueue.workers WHERE pid <> %s", [victim])) == {("stopped",)}


@pytest.mark.proves("P18")
def test_one_sigterm_stops_all_and_lets_running_jobs_finish(
    start: Callable[..., Proc], conn: psycopg.Connection[Any], folder: Path
) -> None:
    conn.execute("SELECT pgqueue.enqueue('slow') FROM generate_series(1, 2)")
    parent = start("worker", "-A", "shop:app", "-c", "1", "--processes", "2")
    wait_for(lambda: len(list(folder.glob("started-*"))) == 2, 60, "a job in each child")
    parent.signal(signal.SIGTERM)
    wait_for(lambda: len(told(parent, "worker.draining")) == 2, 30, "both to drain")
    (folder / "go").touch()
    assert parent.wait(60) == 0
    assert one(conn, "SELECT count(DISTINCT result) FROM pgqueue.job_history WHERE state = 'succeeded'") == 2
    assert set(conn.execute("SELECT status FROM pgqueue.workers")) == {("stopped",)}


@pytest.mark.proves("P18")
def test_a_second_signal_stops_all_at_once(
    start: Callable[..., Proc], conn: psycopg.Connection[Any], folder: Path
) -> None:
    conn.execute("SELECT pgqueue.enqueue('slow') FROM generate_series(1, 2)")
    parent = start("worker", "-A", "shop:app", "-c", "1", "--processes", "2")
    wait_for(lambda: len(list(folder.glob("started-*"))) == 2, 60, "a job in each child")
    pids = live(conn)
    parent.signal(signal.SIGINT)
    wait_for(lambda: len(told(parent, "worker.draining")) == 2, 30, "both to drain")
    parent.signal(signal.SIGINT)
    assert parent.wait(30) == 130
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.proves("P9")
def test_children_end_when_their_parent_is_killed(
    start: Callable[..., Proc], conn: psycopg.Connection[Any]
) -> None:
    parent = start("worker", "-A", "shop:app", "--processes", "2")
    pids = wait_for(lambda: found if len(found := live(conn)) == 2 else None, 60, "both children")
    parent.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in pids), 30, "the children's end")
    # In order, so that nobody has to be rescued.
    assert set(conn.execute("SELECT status FROM pgqueue.workers")) == {("stopped",)}


def test_drain_waits_for_every_child_and_uses_the_given_database(
    start: Callable[..., Proc], conn: psycopg.Connection[Any], database: Database, folder: Path
) -> None:
    # The application's own address leads nowhere: the option's has to reach the children.
    (folder / "shop.py").write_text(
        APPLICATION.format(dsn="'host=127.0.0.1 port=1 dbname=nowhere'", folder=str(folder))
    )
    conn.execute("SELECT pgqueue.enqueue('pid', jsonb_build_object('n', n)) FROM generate_series(1, 100) n")
    parent = start("--dsn", database.dsn, "worker", "-A", "shop:app", "--processes", "2", "--drain")
    assert parent.wait(60) == 0
    assert one(conn, "SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded'") == 100


@pytest.mark.proves("S20")
def test_no_child_has_an_address_or_arguments_of_jobs_on_its_command_line(
    start: Callable[..., Proc], conn: psycopg.Connection[Any], database: Database, folder: Path
) -> None:
    conn.execute("""SELECT pgqueue.enqueue('slow', '{"card": "4111-1111"}')""")
    (folder / "shop.py").write_text(
        (folder / "shop.py").read_text().replace("ctx: JobContext)", "ctx: JobContext, card: str)")
    )
    start("--dsn", database.dsn, "worker", "-A", "shop:app", "--processes", "2")
    wait_for(lambda: list(folder.glob("started-*")), 60, "the job's start")
    pids = wait_for(lambda: found if len(found := live(conn)) == 2 else None, 60, "both children")
    for pid in pids:
        assert database.name not in Path(f"/proc/{pid}/cmdline").read_text()
        assert "4111" not in Path(f"/proc/{pid}/cmdline").read_text()
        assert "4111" not in Path(f"/proc/{pid}/environ").read_text()


def test_an_application_that_cannot_be_imported_ends_all_with_its_code(start: Callable[..., Proc]) -> None:
    parent = start("worker", "-A", "nowhere:app", "--processes", "3")
    assert parent.wait(60) == 78
    assert "no module nowhere" in parent.stderr
    assert told(parent, "process.given_up")


def hold(conn: psycopg.Connection[Any], task: str, count: int = 1, args: str = "{}") -> list[int]:
    """Jobs as a rescue leaves them: held, to be run alone."""
    with conn.transaction():  # or a worker takes one before it is held
        rows = conn.execute("SELECT pgqueue.enqueue(%s, %s) FROM generate_series(1, %s)", (task, args, count))
        ids = [job_id for (job_id,) in rows.fetchall()]
        conn.execute(
            "UPDATE pgqueue.jobs SET state = 'held', hold_reason = 'suspect', ready_seq = NULL, attempt = 1 WHERE id = ANY (%s)",
            [ids],
        )
    return ids


@pytest.mark.proves("P6", "F46")
def test_suspects_run_on_when_their_workers_process_is_killed(
    start: Callable[..., Proc], conn: psycopg.Connection[Any], folder: Path
) -> None:
    """A new parent's child takes seconds to come; this one is here. It goes when nothing is left for it."""
    hold(conn, "slow", 3)
    worker = start("worker", "-A", "shop:app", PGQUEUE_SUSPECT_PROCESSES_MAX="1")
    wait_for(lambda: list(folder.glob("started-2-*")), 60, "the first suspect's start")
    (child,) = live(conn, "suspect")
    worker.kill()
    (folder / "go").touch()
    wait_for(lambda: one(conn, "SELECT count(*) FROM pgqueue.job_history") == 3, 60, "all suspects to end")
    # With the attempt that it had: nobody took them from it.
    assert set(conn.execute("SELECT attempts, result::int FROM pgqueue.job_history")) == {(2, child)}
    wait_for(lambda: not is_alive(child), 30, "the child's end")


def test_suspects_of_a_paused_queue_start_no_process(
    start: Callable[..., Proc], conn: psycopg.Connection[Any]
) -> None:
    hold(conn, "pid", args='{"n": 1}')
    conn.execute("SELECT pgqueue.pause('default')")
    worker = start("worker", "-A", "shop:app")
    wait_for(lambda: live(conn), 60, "the worker")
    beats = "SELECT beat_at - started_at > interval '2 seconds' FROM pgqueue.workers"
    wait_for(lambda: one(conn, beats), 30, "many rounds of its duties")
    assert told(worker, "process.started") == []
    conn.execute("SELECT pgqueue.resume('default')")
    wait_for(lambda: one(conn, "SELECT count(*) FROM pgqueue.job_history"), 60, "the suspect's run")


def test_a_process_for_suspects_that_dies_at_its_start_is_told_and_slowed(
    start: Callable[..., Proc], conn: psycopg.Connection[Any], folder: Path
) -> None:
    worker = start("worker", "-A", "shop:app", PGQUEUE_SUSPECT_PROCESSES_MAX="1")
    wait_for(lambda: live(conn), 60, "the worker")
    (folder / "shop.py").write_text("raise SystemExit(9)")
    hold(conn, "pid", args='{"n": 1}')
    ends = wait_for(
        lambda: found if len(found := told(worker, "process.ended")) >= 3 else None, 60, "three deaths"
    )
    assert [end["exit_code"] for end in ends[:3]] == [9, 9, 9]
    assert [end["again_in_s"] for end in ends[:3]] == [0, 0.5, 1]
    assert {end["role"] for end in ends} == {"suspect"}
    assert worker.running
    # And it is tried again when the application is whole.
    (folder / "shop.py").write_text(APPLICATION.format(dsn="", folder=str(folder)))
    wait_for(lambda: one(conn, "SELECT count(*) FROM pgqueue.job_history"), 60, "the suspect's run")
