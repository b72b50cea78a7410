"""Scheduler processes killed, stopped, cut off and set to another time: each fire once, none lost, none late for long."""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rig.clock import HOUR_S, Clock, until_next
from rig.cutter import Cutter
from rig.database import Database
from rig.proc import Proc
from rig.soak import soak_duration_s, soak_seed
from rig.wait import wait_for

from pgqueue import App
from pgqueue.core.schedule import define_schedule
from pgqueue.embedded import EmbeddedPostgres
from pgqueue.errors import DatabaseUnreachable
from pgqueue.scheduler.tick import plan_for, read_due, write_plan
from pgqueue.storage import migrate
from pgqueue.storage.connect import LEADER, connect
from pgqueue.storage.statements import statement

FOLDER = Path(__file__).parent
TAKEOVER_S = 5.0
LOADED = 2.0  # timings are asserted with twice their bound on a loaded machine, and printed
STORM_S = 18.0
SEED = 20261124
TENS_S = 600

# Each returns no row when its promise holds.
CHECKS = {
    "P14 one job per fire": """
        SELECT job_id FROM pgqueue.schedule_runs WHERE job_id IS NOT NULL GROUP BY 1 HAVING count(*) > 1""",
    "P14 no job without its fire, no fire without its job": """
        SELECT j.id, r.run_key FROM pgqueue.jobs j
        FULL JOIN (SELECT * FROM pgqueue.schedule_runs WHERE outcome = 'enqueued') r ON r.job_id = j.id
        WHERE j.id IS NULL OR r.job_id IS NULL""",
    "P15 every fire of the stretch, and no other": """
        SELECT schedule, fire_at FROM (
          SELECT s.name AS schedule, generate_series(min(r.fire_at), max(r.fire_at), make_interval(secs => s.every_s)) AS fire_at
          FROM pgqueue.schedules s JOIN pgqueue.schedule_runs r ON r.schedule = s.name GROUP BY s.name) x
        FULL JOIN (SELECT schedule, fire_at FROM pgqueue.schedule_runs WHERE job_id IS NOT NULL) r USING (schedule, fire_at)
        WHERE x.fire_at IS NULL OR r.fire_at IS NULL""",
}


def check(conn: psycopg.Connection[Any]) -> None:
    broken = {name: conn.execute(sql).fetchmany(5) for name, sql in CHECKS.items()}
    assert {name: rows for name, rows in broken.items() if rows} == {}


def one(conn: psycopg.Connection[Any], sql: str, *params: Any) -> Any:
    row = conn.execute(sql, params).fetchone()
    assert row is not None
    return row[0]


def fires(conn: psycopg.Connection[Any], name: str = "each-second") -> int:
    return int(
        one(
            conn,
            "SELECT count(*) FROM pgqueue.schedule_runs WHERE schedule = %s AND job_id IS NOT NULL",
            name,
        )
    )


def scheduler(dsn: str) -> Proc:
    return Proc(
        [sys.executable, "-m", "pgqueue", "scheduler", "-A", "leaderapp:app"],
        env={"PGQUEUE_DATABASE_URL": dsn, "PYTHONPATH": str(FOLDER), "PGQUEUE_LOG_FORMAT": "json"},
    )


class Pair:
    """Two scheduler processes, each of which is started again when it was killed."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._stack = contextlib.ExitStack()
        self.both = [self._new(), self._new()]

    def _new(self) -> Proc:
        return self._stack.enter_context(scheduler(self.dsn))

    def kill(self, number: int) -> None:
        self.both[number].kill()
        self.both[number] = self._new()

    def leader(self) -> Proc:
        """The one whose last word on the matter is that it leads."""

        def leads() -> Proc | None:
            return next(
                (p for p in self.both if p.stderr.count("leader.acquired") > p.stderr.count("leader.lost")),
                None,
            )

        return wait_for(leads, 20, "a leader")

    def other(self, one: Proc) -> Proc:
        return self.both[1 - self.both.index(one)]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def pair(database: Database) -> Iterator[Pair]:
    made = Pair(database.dsn)
    try:
        yield made
    finally:
        made.close()


def storm(dsn: str, pair: Pair, dice: random.Random, duration_s: float, say: Callable[[str], None]) -> None:
    """Kill, stop and cut off schedulers at random for so long, then let them calm down."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        wait_for(lambda: fires(conn) > 0, 30, "the first fire")
        until = time.monotonic() + duration_s
        while time.monotonic() < until:
            number, blow = (
                dice.randrange(2),
                dice.choice(["kill", "freeze", "freeze", "freeze", "terminate", "both"]),
            )
            say(f"{blow} {number}")
            if blow == "kill":
                pair.kill(number)
            elif blow == "both":
                pair.kill(0)
                pair.kill(1)
            elif blow == "terminate":
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE starts_with(application_name, 'pgqueue/leader/') AND datname = current_database()"
                )
            else:
                pair.both[number].freeze()
                time.sleep(dice.uniform(0.1, 7))
                pair.both[number].thaw()
            time.sleep(dice.uniform(0.1, 3))
        before = one(conn, "SELECT clock_timestamp()")
        decided = "SELECT min(last_fire_at) >= %s AND max(clock_timestamp() - last_fire_at) < interval '3 seconds' FROM pgqueue.schedules"
        wait_for(lambda: one(conn, decided, before), 30, "the calm")
        for process in pair.both:
            assert process.running, process.tail()


@pytest.mark.proves("P14", "P15", "F32")
def test_leaders_killed_and_stopped_at_random_leave_exactly_the_expected_fires(
    database: Database, pair: Pair
) -> None:
    conn = database.connect()
    storm(database.dsn, pair, random.Random(SEED), STORM_S, print)
    check(conn)
    assert fires(conn) >= STORM_S
    late = one(conn, "SELECT extract(epoch FROM max(ticked_at - fire_at))::float FROM pgqueue.schedule_runs")
    print(
        f"latest fire {late:.1f} s late; {one(conn, 'SELECT count(DISTINCT leader) FROM pgqueue.schedule_runs')} leaders"
    )


@pytest.mark.slow
@pytest.mark.proves("P14", "P15", "F32")
def test_soak_scheduler(database: Database, pair: Pair) -> None:
    """`make soak-scheduler DURATION=1h SEED=…`: the same storm for as long as one likes."""
    conn = database.connect()
    dice = random.Random(soak_seed())
    until = time.monotonic() + soak_duration_s("1h")
    while (left_s := until - time.monotonic()) > 0:
        storm(database.dsn, pair, dice, min(60.0, left_s), lambda _: None)
        check(conn)
        print(f"{fires(conn)} fires, all as expected; {left_s / 60:.0f} min to go", flush=True)


@pytest.mark.proves("F32", "P14")
def test_a_stopped_leader_is_replaced_within_five_seconds_and_wakes_up_harmless(
    database: Database, pair: Pair
) -> None:
    conn = database.connect()
    leader = pair.leader()
    wait_for(lambda: fires(conn) >= 2, what="fires")
    before = fires(conn)
    leader.freeze()
    began = time.monotonic()
    wait_for(lambda: fires(conn) >= before + 2, TAKEOVER_S * LOADED, "fires by the other")
    took_s = time.monotonic() - began
    print(f"takeover from a stopped leader: {took_s:.1f} s")
    pair.other(leader).wait_for_text("leader.acquired", 20)
    leader.thaw()
    leader.wait_for_text("leader.lost")
    before = fires(conn)
    wait_for(lambda: fires(conn) >= before + 3, what="fires with both awake")
    check(conn)
    assert took_s < TAKEOVER_S * LOADED


@pytest.mark.proves("F32", "P14")
def test_a_killed_leader_is_replaced_at_the_next_look(database: Database, pair: Pair) -> None:
    conn = database.connect()
    leader = pair.leader()
    other = pair.other(leader)
    wait_for(lambda: fires(conn) >= 2, what="fires")
    leader.kill()
    began = time.monotonic()
    other.wait_for_text("leader.acquired", TAKEOVER_S * LOADED)
    print(f"takeover from a killed leader: {time.monotonic() - began:.1f} s")
    before = fires(conn)
    wait_for(lambda: fires(conn) >= before + 2, what="fires by the other")
    check(conn)


@pytest.mark.proves("F32", "P14")
@pytest.mark.parametrize("sent", [False, True], ids=["message lost", "answer lost"])
def test_a_tick_cut_at_each_of_its_messages_leaves_all_or_nothing(database: Database, sent: bool) -> None:
    conn = database.connect()
    definition = define_schedule(name="s", task="t", every="10d", misfire="all").as_json()
    parameters = {"source": "python", "defined_in": None, "reason": None, "actor": None, "via": None}
    cut = 0
    with Cutter(database.server.socket_dir, database.server.port) as cutter:
        for message in range(1, 100):
            conn.execute("TRUNCATE pgqueue.schedules, pgqueue.schedule_runs, pgqueue.jobs")
            conn.execute(statement("put_schedule"), {"definition": definition, **parameters})
            conn.execute("UPDATE pgqueue.schedules SET last_fire_at = clock_timestamp() - interval '20 days'")
            cutter.arm(message, sent=sent)
            with contextlib.suppress(DatabaseUnreachable, psycopg.Error):
                with contextlib.closing(connect(cutter.dsn(database.name), LEADER)) as leader:
                    for due in read_due(leader):
                        write_plan(leader, due, plan_for(due), "first")
            if not cutter.fired:
                break
            cut += 1
            gone = "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, 'pgqueue/leader') AND datname = current_database()"
            wait_for(lambda: one(conn, gone) == 0, what="the server to notice")
            assert one(conn, "SELECT count(*) FROM pgqueue.jobs") in {0, 2}, message
            for due in read_due(conn):
                write_plan(conn, due, plan_for(due), "second")
            assert one(conn, "SELECT count(*) FROM pgqueue.jobs") == 2, message
            check(conn)
    assert cut > 10


@pytest.fixture
def clocked() -> Iterator[tuple[EmbeddedPostgres, Clock]]:
    """A server whose clock can be set while it runs."""
    with tempfile.TemporaryDirectory(prefix="pgqclock-") as folder:
        Path(folder).chmod(0o755)
        clock = Clock(Path(folder), ahead_s=until_next(TENS_S) + 60)
        with EmbeddedPostgres(settings={"fsync": "off"}, environment=clock.environment) as server:
            yield server, clock


@pytest.mark.proves("F26s", "P8", "P14", "P15")
def test_the_servers_clock_steps_and_no_fire_is_doubled_or_early(
    clocked: tuple[EmbeddedPostgres, Clock],
) -> None:
    server, clock = clocked
    migrate.upgrade(server.dsn())
    app = App(server.dsn())
    app.schedules.upsert("tens", task="t", every="10m", misfire="latest")
    with psycopg.connect(server.dsn(), autocommit=True) as conn, scheduler(server.dsn()):

        def outcomes() -> dict[str, int]:
            return dict(
                conn.execute(
                    "SELECT outcome, count(*)::int FROM pgqueue.schedule_runs WHERE schedule = 'tens' GROUP BY 1"
                ).fetchall()
            )

        def rounds_go_on(name: str) -> None:
            app.schedules.upsert(name, task="t", every="1s", misfire="all")
            wait_for(lambda: fires(conn, name) >= 3, 30, f"fires of {name}")

        wait_for(lambda: fires(conn) > 0, 30, "the first fire")
        # Of these one might be in the making at the very moment of a step.
        app.schedules.pause("each-second")
        app.schedules.pause("each-other")
        planned = "SELECT planned_revision = revision FROM pgqueue.schedules WHERE name = 'tens'"
        wait_for(lambda: one(conn, planned), 30, "the plan")
        assert outcomes() == {}
        clock.step_to(HOUR_S)
        wait_for(lambda: outcomes() == {"enqueued": 1, "missed": 5}, 30, "the hour's verdict")
        # Two hours back: what was decided stays decided, and nothing fires until the clock has caught up.
        clock.step_to(-HOUR_S)
        rounds_go_on("after-the-step-back")
        assert outcomes() == {"enqueued": 1, "missed": 5}
        clock.step_to(2 * HOUR_S)
        wait_for(lambda: outcomes() == {"enqueued": 2, "missed": 10}, 30, "the next hour's verdict")
        rounds_go_on("after-the-step-forward")
        assert one(conn, "SELECT count(*) FROM pgqueue.schedule_runs WHERE fire_at > ticked_at") == 0
        assert one(conn, "SELECT count(*) FROM pgqueue.jobs WHERE run_at < created_at") == 0
        assert conn.execute(CHECKS["P14 one job per fire"]).fetchall() == []
    app.close()


def test_the_checks_find_what_is_planted(database: Database) -> None:
    """A rig that has never failed proves nothing."""
    conn = database.connect()
    app = App(database.dsn)
    app.schedules.upsert("s", task="t", every="1s")
    app.close()
    run = "INSERT INTO pgqueue.schedule_runs (schedule, run_key, fire_at, outcome, job_id, leader) VALUES ('s', %s, %s, 'enqueued', %s, 'x')"
    job = one(conn, "SELECT pgqueue.enqueue('t')")
    conn.execute(run, ["a", "2026-01-01 00:00:00+00", job])
    check(conn)
    conn.execute(run, ["b", "2026-01-01 00:00:01+00", job])
    with pytest.raises(AssertionError, match="P14 one job per fire"):
        check(conn)
    conn.execute("DELETE FROM pgqueue.schedule_runs WHERE run_key = 'b'")
    conn.execute("SELECT pgqueue.enqueue('t')")
    with pytest.raises(AssertionError, match="P14 no job without"):
        check(conn)
    conn.execute(run, ["c", "2026-01-01 00:00:02+00", one(conn, "SELECT max(id) FROM pgqueue.jobs")])
    with pytest.raises(AssertionError, match="P15 every fire"):
        check(conn)
