"""tick ∥ tick ∥ pause, delete, define: every order of the real statements, and the twin without both guards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.orders import merges, play

from pgqueue.core.schedule import define_schedule
from pgqueue.scheduler.tick import DueSchedule, plan_for, read_due, write_plan
from pgqueue.storage.statements import statement

Step = Callable[[psycopg.Connection[Any]], None]
FIRES = 2


class Scheduler:
    """One scheduler's tick in three steps: read, write inside a transaction, commit."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.due: DueSchedule | None = None
        self.wrote_after: list[str] = []

    def script(self, log: list[str]) -> list[Step]:
        def read(conn: psycopg.Connection[Any]) -> None:
            self.due = next(iter(read_due(conn)), None)

        def write(conn: psycopg.Connection[Any]) -> None:
            if self.due is not None:
                self.wrote_after = list(log)
                conn.execute("BEGIN")
                write_plan(conn, self.due, plan_for(self.due), self.name)

        def commit(conn: psycopg.Connection[Any]) -> None:
            if conn.info.transaction_status.name == "INTRANS":
                conn.execute("COMMIT")
                log.append(self.name)

        return [read, write, commit]


class Scene:
    """One schedule with two fires overdue, two schedulers that both believe to lead, and perhaps a person."""

    def __init__(self, database: Database) -> None:
        self.dsn = database.dsn
        self.conn = database.connect()

    def reset(self) -> None:
        self.conn.execute(
            "TRUNCATE pgqueue.schedules, pgqueue.schedule_runs, pgqueue.jobs, pgqueue.operator_audit"
        )
        made = define_schedule(name="s", task="t", every="10d", misfire="all")
        self.put(self.conn, made.as_json())
        self.conn.execute(
            "UPDATE pgqueue.schedules SET last_fire_at = clock_timestamp() - interval '20 days', next_fire_at = clock_timestamp(),"
            " planned_revision = revision"
        )

    @staticmethod
    def put(conn: psycopg.Connection[Any], definition: str) -> None:
        parameters = {"definition": definition, "source": "python", "defined_in": None}
        conn.execute(statement("put_schedule"), {**parameters, "reason": None, "actor": None, "via": None})

    def count(self, sql: str) -> int:
        row = self.conn.execute(sql).fetchone()
        assert row is not None
        return int(row[0])

    def jobs(self) -> int:
        return self.count("SELECT count(*) FROM pgqueue.jobs")

    def assert_rows_and_jobs_agree(self) -> None:
        """Job and run row in one transaction: neither without the other, no job of two rows."""
        astray = self.conn.execute("""
            SELECT j.id, r.run_key FROM pgqueue.jobs j FULL JOIN (SELECT * FROM pgqueue.schedule_runs WHERE outcome = 'enqueued') r
            ON r.job_id = j.id WHERE j.id IS NULL OR r.job_id IS NULL""").fetchall()
        assert astray == []
        assert self.count("SELECT count(job_id) - count(DISTINCT job_id) FROM pgqueue.schedule_runs") == 0

    def pair(
        self, order: list[int], person: list[Step] | None = None, log: list[str] | None = None
    ) -> tuple[Scheduler, Scheduler]:
        log = [] if log is None else log
        both = Scheduler("a"), Scheduler("b")
        scripts = [both[0].script(log), both[1].script(log), *([person] if person else [])]
        errors = play(self.dsn, self.conn, scripts, order)
        assert errors == [[] for _ in scripts], order
        return both


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


@pytest.mark.proves("P14", "F32")
def test_two_leaders_in_every_order_enqueue_each_fire_once(scene: Scene) -> None:
    for order in merges([3, 3]):
        scene.reset()
        scene.pair(order)
        # A tick that met a locked row leaves the schedule to the next round.
        for due in read_due(scene.conn):
            write_plan(scene.conn, due, plan_for(due), "c")
        assert scene.jobs() == FIRES, order
        scene.assert_rows_and_jobs_agree()


def test_the_twin_without_guards_doubles(scene: Scene) -> None:
    """Neither the look at the row nor the unique key: what a plan found due is enqueued."""
    without(
        scene, "AND s.revision = tick_schedule.revision AND s.last_fire_at = tick_schedule.decided_from", ""
    )
    without_key(scene)
    doubled = 0
    for order in merges([3, 3]):
        scene.reset()
        scene.pair(order)
        doubled += scene.jobs() > FIRES
    assert doubled > 0


@pytest.mark.proves("P14")
def test_the_unique_key_alone_is_enough(scene: Scene) -> None:
    without(
        scene, "AND s.revision = tick_schedule.revision AND s.last_fire_at = tick_schedule.decided_from", ""
    )
    for order in merges([3, 3]):
        scene.reset()
        scene.pair(order)
        assert scene.jobs() <= FIRES, order
        scene.assert_rows_and_jobs_agree()


@pytest.mark.proves("P14")
def test_the_look_at_the_row_alone_is_enough(scene: Scene) -> None:
    without_key(scene)
    for order in merges([3, 3]):
        scene.reset()
        scene.pair(order)
        assert scene.jobs() <= FIRES, order


@pytest.mark.proves("P20", "F32")
def test_after_a_pause_is_committed_no_tick_enqueues(scene: Scene) -> None:
    for order in merges([3, 3, 1]):
        scene.reset()
        log: list[str] = []

        def pause(conn: psycopg.Connection[Any], log: list[str] = log) -> None:
            conn.execute("SELECT pgqueue.pause_schedule('s')")
            log.append("pause")

        both = scene.pair(order, [pause], log)
        late = [one.name for one in both if "pause" in one.wrote_after]
        written = {
            name
            for (name,) in scene.conn.execute("SELECT DISTINCT leader FROM pgqueue.schedule_runs").fetchall()
        }
        assert not written & set(late), order
        assert scene.jobs() <= FIRES
        scene.assert_rows_and_jobs_agree()


@pytest.mark.proves("F32")
def test_a_schedule_that_is_deleted_meanwhile_leaves_no_half_a_fire(scene: Scene) -> None:
    for order in merges([3, 3, 1]):
        scene.reset()
        scene.pair(order, [lambda conn: conn.execute("SELECT pgqueue.delete_schedule('s')")])  # type: ignore[list-item,return-value]
        assert scene.jobs() in {0, FIRES}, order
        scene.assert_rows_and_jobs_agree()


@pytest.mark.proves("P14", "F32")
def test_a_schedule_that_is_defined_anew_meanwhile_fires_by_one_definition(scene: Scene) -> None:
    other = define_schedule(name="s", task="other", every="10d", misfire="all").as_json()
    for order in merges([3, 3, 1]):
        scene.reset()
        scene.pair(order, [lambda conn: scene.put(conn, other)])
        for due in read_due(scene.conn):
            write_plan(scene.conn, due, plan_for(due), "c")
        assert scene.jobs() == FIRES, order
        assert scene.count("SELECT count(DISTINCT task) FROM pgqueue.jobs") == 1
        scene.assert_rows_and_jobs_agree()


def without(scene: Scene, guard: str, instead: str) -> None:
    row = scene.conn.execute(
        "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = 'tick_schedule'"
    ).fetchone()
    assert row is not None
    assert row[0].count(guard) == 1
    scene.conn.execute(row[0].replace(guard, instead))


def without_key(scene: Scene) -> None:
    scene.conn.execute("ALTER TABLE pgqueue.schedule_runs DROP CONSTRAINT schedule_runs_pkey")
    without(scene, "ON CONFLICT (schedule, run_key) DO NOTHING", "")
