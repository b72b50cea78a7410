"""The tables, functions and statements of schedules, on the newest and on the oldest supported server.

Time is moved in the table (last_fire_at goes back), the clock is never faked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from rig.database import Database
from rig.hands import shared_database, wiped

from pgqueue.core.events import Events
from pgqueue.core.registry import Registry
from pgqueue.core.retry import Retry
from pgqueue.core.schedule import ScheduleDefinition, define_schedule
from pgqueue.scheduler.register import mark_orphans, store_schedules, store_tasks
from pgqueue.scheduler.tick import Decided, DueSchedule, plan_for, read_due, write_plan
from pgqueue.storage.statements import statement

ME = "here:1:rig"


@pytest.fixture(scope="module", params=["18", "15"])
def shared(request: pytest.FixtureRequest) -> Iterator[Database]:
    with shared_database(request, request.param) as database:
        yield database


@pytest.fixture
def conn(shared: Database) -> Iterator[psycopg.Connection[Any]]:
    with wiped(shared) as database:
        yield database.connect()


def define(**options: Any) -> ScheduleDefinition:
    times = {} if "cron" in options else {"every": "1h"}
    return define_schedule(**{"name": "s", "task": "t", **times, **options})


def put(conn: psycopg.Connection[Any], *, source: str = "python", **options: Any) -> str:
    parameters = {
        "definition": define(**options).as_json(),
        "source": source,
        "defined_in": None,
        "reason": "rig",
        "actor": "olga",
        "via": source,
    }
    row = conn.execute(statement("put_schedule"), parameters).fetchone()
    assert row is not None
    return str(row[0])


def back(conn: psycopg.Connection[Any], hours: float, name: str = "s") -> None:
    conn.execute(
        "UPDATE pgqueue.schedules SET last_fire_at = clock_timestamp() - make_interval(secs => %s), next_fire_at = clock_timestamp()"
        " WHERE name = %s",
        [hours * 3600, name],
    )


def the_due(conn: psycopg.Connection[Any], name: str = "s") -> DueSchedule:
    return next(due for due in read_due(conn) if due.name == name)


def tick(conn: psycopg.Connection[Any], name: str = "s") -> Decided:
    due = the_due(conn, name)
    return write_plan(conn, due, plan_for(due), ME)


def rows(conn: psycopg.Connection[Any], sql: str, *params: Any) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(sql, params).fetchall()


def row(conn: psycopg.Connection[Any], name: str = "s") -> dict[str, Any]:
    (found,) = rows(conn, "SELECT * FROM pgqueue.schedules WHERE name = %s", name)
    return found


def status(conn: psycopg.Connection[Any], name: str = "s") -> dict[str, Any]:
    (found,) = rows(conn, "SELECT * FROM pgqueue.schedule_status WHERE schedule = %s", name)
    return found


def jobs(conn: psycopg.Connection[Any]) -> int:
    return len(rows(conn, "SELECT id FROM pgqueue.jobs"))


# Defining


def test_a_new_schedule_begins_now_and_is_planned_by_the_first_tick(conn: psycopg.Connection[Any]) -> None:
    assert put(conn) == "created"
    stored = row(conn)
    assert stored["last_fire_at"] <= datetime.now(UTC) + timedelta(seconds=5)
    assert (stored["next_fire_at"], stored["revision"], stored["planned_revision"]) == (None, 1, 0)
    assert tick(conn) == [(None, "decided", None)]
    planned = row(conn)
    assert planned["planned_revision"] == 1
    assert timedelta(0) < planned["next_fire_at"] - planned["last_fire_at"] <= timedelta(hours=1)
    assert read_due(conn) == []
    assert jobs(conn) == 0


def test_the_same_definition_again_writes_nothing(conn: psycopg.Connection[Any]) -> None:
    put(conn, args={"n": 1}, headers={"a": "b"}, starts_at=datetime(2026, 1, 1, tzinfo=UTC))
    before = row(conn)
    assert put(conn, args={"n": 1}, headers={"a": "b"}, starts_at=datetime(2026, 1, 1, tzinfo=UTC)) == "same"
    assert row(conn) == before


def test_another_property_keeps_what_is_decided_and_another_timing_begins_anew(
    conn: psycopg.Connection[Any],
) -> None:
    put(conn)
    back(conn, 3)
    then = row(conn)["last_fire_at"]
    assert put(conn, misfire="all", args={"n": 2}) == "changed"
    assert row(conn)["last_fire_at"] == then
    assert put(conn, every="30m") == "changed"
    assert row(conn)["last_fire_at"] > then + timedelta(hours=2)
    assert row(conn)["revision"] == 3


def test_an_end_that_has_passed_and_is_moved_begins_anew(conn: psycopg.Connection[Any]) -> None:
    soon = datetime.now(UTC) + timedelta(days=1)
    put(conn, ends_at=soon)
    back(conn, 3)
    then = row(conn)["last_fire_at"]
    put(conn, ends_at=soon + timedelta(days=1))
    assert row(conn)["last_fire_at"] == then
    conn.execute("UPDATE pgqueue.schedules SET ends_at = clock_timestamp() - interval '2 hours'")
    put(conn, ends_at=soon)
    assert row(conn)["last_fire_at"] > then + timedelta(hours=2)


def test_code_overwrites_neither_a_pause_nor_what_is_decided(conn: psycopg.Connection[Any]) -> None:
    put(conn)
    back(conn, 3)
    conn.execute("SELECT pgqueue.pause_schedule('s', 'holiday', 'olga', 'cli')")
    before = row(conn)
    assert put(conn, source="code", misfire="all") == "changed"
    after = row(conn)
    assert (after["paused_by"], after["pause_reason"]) == ("olga", "holiday")
    assert (after["last_fire_at"], after["source"]) == (before["last_fire_at"], "code")


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ('{"name": "s", "task": "t", "cron": "0 0 * * *", "timezone": "UTC"}', "no column"),
        ('{"name": "s", "task": "no task", "cron": "0 0 * * *"}', "task:"),
        ('{"name": "s", "task": "t", "cron": "0 0 * * *", "args": [1]}', "args:"),
        ('{"name": "s", "task": "t", "cron": "0 0 * * *", "queue": "Loud"}', "queue:"),
    ],
)
def test_sql_refuses_what_python_refuses(conn: psycopg.Connection[Any], definition: str, said: str) -> None:
    with pytest.raises(psycopg.Error, match=said) as refused:
        conn.execute("SELECT pgqueue.put_schedule(%s)", [definition])
    assert refused.value.sqlstate == "22023"


@pytest.mark.parametrize(
    "columns",
    [
        "cron = NULL",
        "cron = '0 0 * * *', every_s = 60",
        "cron = NULL, every_s = 0.5",
        "cron = ''",
        "misfire = 'maybe'",
        "max_catch_up = 0",
        "grace_s = -1",
        "overlap = 'queue'",
        "jitter_s = 86401",
        "priority = 10",
        "next_fire_at = 'infinity'",
        "name = 'a b'",
        "source = 'x'",
    ],
)
def test_checks_refuse_rows_that_make_no_sense(conn: psycopg.Connection[Any], columns: str) -> None:
    put(conn, cron="0 0 * * *")
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(f"UPDATE pgqueue.schedules SET {columns}")


def test_defaults_for_people_who_write_sql(conn: psycopg.Connection[Any]) -> None:
    conn.execute("""SELECT pgqueue.put_schedule('{"name": "nightly", "task": "t", "cron": "0 3 * * *"}')""")
    stored = row(conn, "nightly")
    made = define_schedule(name="nightly", task="t", cron="0 3 * * *")
    assert {
        name: stored[name] for name in ("tz", "misfire", "max_catch_up", "grace_s", "overlap", "jitter_s")
    } == {
        name: getattr(made, name)
        for name in ("tz", "misfire", "max_catch_up", "grace_s", "overlap", "jitter_s")
    }
    assert (stored["args"], stored["source"]) == ({}, "sql")


# Ticking


@pytest.mark.proves("P14", "P15")
def test_a_tick_writes_run_and_job_and_plan_in_one_transaction(conn: psycopg.Connection[Any]) -> None:
    put(conn, args={"n": 1}, queue="mail", priority=2, headers={"team": "a"})
    back(conn, 1)
    decided = tick(conn)
    (run_key, outcome, job_id), last = decided
    assert (outcome, last) == ("enqueued", (None, "decided", None))
    (run,) = rows(conn, "SELECT * FROM pgqueue.schedule_runs")
    assert (run["run_key"], run["job_id"], run["leader"], run["outcome"]) == (run_key, job_id, ME, "enqueued")
    (job,) = rows(conn, "SELECT * FROM pgqueue.jobs")
    assert (job["id"], job["task"], job["args"], job["queue"], job["priority"], job["state"]) == (
        job_id,
        "t",
        {"n": 1},
        "mail",
        2,
        "ready",
    )
    assert job["headers"] == {
        "team": "a",
        "pgqueue.schedule": "s",
        "pgqueue.fire_at": run["fire_at"].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    stored = row(conn)
    assert stored["last_fire_at"] == run["fire_at"]
    assert stored["next_fire_at"] == run["fire_at"] + timedelta(hours=1)


@pytest.mark.proves("P14")
def test_a_plan_that_is_written_twice_is_void_the_second_time(conn: psycopg.Connection[Any]) -> None:
    put(conn)
    back(conn, 1)
    due = the_due(conn)
    plan = plan_for(due)
    assert len(write_plan(conn, due, plan, ME)) == 2
    assert write_plan(conn, due, plan, "there") == []
    assert jobs(conn) == 1


@pytest.mark.proves("P14", "CT5")
def test_the_unique_key_refuses_a_second_job_when_all_else_fails(conn: psycopg.Connection[Any]) -> None:
    """As after somebody set last_fire_at back: the fire has its row already."""
    put(conn, misfire="all")
    back(conn, 3)
    first = tick(conn)
    back(conn, 3)
    assert [outcome for _, outcome, _ in tick(conn)] == ["duplicate"] * (len(first) - 1) + ["decided"]
    assert jobs(conn) == len(first) - 1


@pytest.mark.proves("CT5")
def test_a_schedule_deleted_and_defined_again_repeats_no_fire(conn: psycopg.Connection[Any]) -> None:
    put(conn)
    back(conn, 1)
    tick(conn)
    conn.execute("SELECT pgqueue.delete_schedule('s')")
    put(conn)
    back(conn, 1)
    assert [outcome for _, outcome, _ in tick(conn)] == ["duplicate", "decided"]
    assert jobs(conn) == 1


@pytest.mark.parametrize(
    "meanwhile",
    [
        "SELECT pgqueue.delete_schedule('s')",
        "SELECT pgqueue.pause_schedule('s')",
        "UPDATE pgqueue.schedules SET orphaned_at = now()",
        "UPDATE pgqueue.schedules SET revision = revision + 1",
        "UPDATE pgqueue.schedules SET last_fire_at = clock_timestamp()",
    ],
)
@pytest.mark.proves("F32", "P14")
def test_a_plan_is_void_once_the_schedule_has_moved_on(conn: psycopg.Connection[Any], meanwhile: str) -> None:
    put(conn)
    back(conn, 1)
    due = the_due(conn)
    conn.execute(meanwhile)
    assert write_plan(conn, due, plan_for(due), ME) == []
    assert jobs(conn) == 0
    assert rows(conn, "SELECT * FROM pgqueue.schedule_runs WHERE outcome = 'enqueued'") == []


def test_a_locked_schedule_is_left_alone_and_not_waited_for(
    conn: psycopg.Connection[Any], shared: Database
) -> None:
    put(conn)
    back(conn, 1)
    with shared.connect(autocommit=False) as other:
        other.execute("SELECT FROM pgqueue.schedules FOR UPDATE")
        conn.execute("SET lock_timeout = 100")
        assert tick(conn) == []
    assert len(tick(conn)) == 2


@pytest.mark.proves("P15", "F33")
@pytest.mark.parametrize(
    ("options", "enqueued", "missed"),
    [
        ({"misfire": "latest"}, 1, 2),
        ({"misfire": "all"}, 3, 0),
        ({"misfire": "all", "max_catch_up": 2}, 2, 1),
        ({"misfire": "skip", "grace": "0s"}, 0, 3),
        ({"misfire": "skip", "grace": "4h"}, 3, 0),
    ],
)
def test_three_hours_down_by_policy(
    conn: psycopg.Connection[Any], options: dict[str, Any], enqueued: int, missed: int
) -> None:
    put(conn, **options)
    back(conn, 3)
    tick(conn)
    outcomes = [run["outcome"] for run in rows(conn, "SELECT outcome FROM pgqueue.schedule_runs")]
    assert (outcomes.count("enqueued"), outcomes.count("missed")) == (enqueued, missed)
    assert jobs(conn) == enqueued
    assert (
        rows(conn, "SELECT 1 FROM pgqueue.schedule_runs WHERE (job_id IS NULL) = (outcome = 'enqueued')")
        == []
    )


@pytest.mark.proves("P16", "I31")
def test_a_local_minute_that_comes_twice_runs_once(conn: psycopg.Connection[Any]) -> None:
    """The two instants of 02:30 on the night the clocks go back, decided in two ticks."""
    put(conn, cron="30 2 * * *", tz="Europe/Berlin")
    for now in (datetime(2026, 10, 25, 0, 31, tzinfo=UTC), datetime(2026, 10, 25, 1, 31, tzinfo=UTC)):
        conn.execute(
            "UPDATE pgqueue.schedules SET last_fire_at = '2026-10-24 12:00+00', next_fire_at = now(), planned_revision = revision"
        )
        due = the_due(conn)
        seen = DueSchedule(**{**{f: getattr(due, f) for f in due.__dataclass_fields__}, "now": now})
        write_plan(conn, seen, plan_for(seen), ME)
    runs = rows(conn, "SELECT run_key, fire_at, job_id, note FROM pgqueue.schedule_runs")
    assert [run["run_key"] for run in runs] == ["2026-10-25T02:30"]
    assert runs[0]["fire_at"] == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert "occurs twice" in runs[0]["note"]
    assert jobs(conn) == 1


@pytest.mark.proves("P8")
def test_jitter_delays_the_job_by_the_databases_clock(conn: psycopg.Connection[Any]) -> None:
    put(conn, jitter="1d")
    back(conn, 1)
    tick(conn)
    (job,) = rows(conn, "SELECT run_at, state FROM pgqueue.jobs")
    (run,) = rows(conn, "SELECT fire_at FROM pgqueue.schedule_runs")
    assert run["fire_at"] <= job["run_at"] <= run["fire_at"] + timedelta(days=1)
    assert job["state"] in {"scheduled", "ready"}


def test_overlap_skip_leaves_a_fire_out_while_the_last_job_lives(conn: psycopg.Connection[Any]) -> None:
    put(conn, overlap="skip", misfire="all")
    back(conn, 2)
    (_, first, job_id), (_, second, _), _ = tick(conn)
    assert (first, second) == ("enqueued", "skipped")
    skipped = rows(conn, "SELECT note, job_id FROM pgqueue.schedule_runs WHERE outcome = 'skipped'")
    assert skipped == [{"note": f"job {job_id} of the last run was still live", "job_id": None}]
    conn.execute("SELECT pgqueue.cancel(%s)", [job_id])
    conn.execute("DELETE FROM pgqueue.schedule_runs WHERE outcome = 'skipped'")
    back(conn, 1)
    assert [outcome for _, outcome, _ in tick(conn)] == ["enqueued", "decided"]


def test_a_job_that_is_refused_undoes_the_tick_and_is_told(conn: psycopg.Connection[Any]) -> None:
    put(conn)
    back(conn, 1)
    due = the_due(conn)
    conn.execute("UPDATE pgqueue.schedules SET task = 'no task'")
    with pytest.raises(psycopg.Error, match="task:"):
        write_plan(conn, due, plan_for(due), ME)
    assert rows(conn, "SELECT * FROM pgqueue.schedule_runs") == []
    conn.execute(statement("schedule_failed"), {"name": "s", "revision": 1, "error": "22023 task"})
    assert status(conn)["last_error"] == "22023 task"
    conn.execute("UPDATE pgqueue.schedules SET task = 't'")
    tick(conn)
    assert status(conn)["last_error"] is None


def test_a_follower_sees_only_what_is_late(conn: psycopg.Connection[Any]) -> None:
    put(conn)
    tick(conn)
    conn.execute("UPDATE pgqueue.schedules SET next_fire_at = clock_timestamp() - interval '2 seconds'")
    assert len(read_due(conn, 1)) == 1
    assert read_due(conn, 60) == []
    assert read_due(conn, 0, ["s"]) == []
    (late,) = conn.execute(statement("schedules_next"), {"resting": []}).fetchone() or (None,)
    assert late == pytest.approx(-2, abs=1)
    assert conn.execute(statement("schedules_next"), {"resting": ["s"]}).fetchone() == (None,)


# People


@pytest.mark.proves("P20", "P22")
def test_a_pause_stops_it_and_a_resume_begins_anew(conn: psycopg.Connection[Any]) -> None:
    put(conn)
    back(conn, 2)
    (since,) = conn.execute("SELECT pgqueue.pause_schedule('s', 'deploy', 'olga', 'cli')").fetchone() or (
        None,
    )
    (again,) = conn.execute("SELECT pgqueue.pause_schedule('s', 'still', 'olaf', 'cli')").fetchone() or (
        None,
    )
    assert since == again
    assert read_due(conn) == []
    assert (status(conn)["state"], status(conn)["overdue_s"], status(conn)["next_fire_at"]) == (
        "paused",
        0,
        None,
    )
    assert conn.execute("SELECT pgqueue.resume_schedule('s', 'done', 'olga', 'cli')").fetchone() == (True,)
    assert conn.execute("SELECT pgqueue.resume_schedule('s')").fetchone() == (False,)
    assert tick(conn) == [(None, "decided", None)]
    (run,) = rows(conn, "SELECT * FROM pgqueue.schedule_runs")
    assert (run["outcome"], run["fire_at"], run["leader"]) == ("skipped", since, "olga")
    assert "did not run" in run["note"]
    assert status(conn)["last_outcome"] is None
    audit = rows(conn, "SELECT actor, via, action, target, reason FROM pgqueue.operator_audit ORDER BY id")
    assert [(a["actor"], a["action"], a["reason"]) for a in audit[1:]] == [
        ("olga", "pause", "deploy"),
        ("olaf", "pause", "still"),
        ("olga", "resume", "done"),
    ]
    assert {a["target"] for a in audit} == {"schedule s"}


def test_run_now_does_not_use_up_the_next_fire(conn: psycopg.Connection[Any]) -> None:
    put(conn)
    tick(conn)
    before = row(conn)
    (job_id,) = conn.execute("SELECT pgqueue.run_schedule('s', 'test', 'olga', 'cli')").fetchone() or (None,)
    assert row(conn) == before
    (run,) = rows(conn, "SELECT * FROM pgqueue.schedule_runs")
    assert (run["run_key"], run["outcome"], run["job_id"], run["leader"]) == (
        f"manual:{job_id}",
        "manual",
        job_id,
        "olga",
    )
    assert status(conn)["last_outcome"] == "waiting"


@pytest.mark.parametrize("function", ["pause_schedule", "run_schedule"])
def test_an_unknown_schedule_is_null(conn: psycopg.Connection[Any], function: str) -> None:
    assert conn.execute(f"SELECT pgqueue.{function}('nobody')").fetchone() == (None,)
    assert conn.execute("SELECT pgqueue.delete_schedule('nobody')").fetchone() == (False,)
    assert rows(conn, "SELECT * FROM pgqueue.operator_audit") == []


def test_the_status_tells_what_became_of_the_last_job(conn: psycopg.Connection[Any]) -> None:
    put(conn)
    assert status(conn)["last_outcome"] is None
    back(conn, 1)
    ((_, _, job_id), _) = tick(conn)
    assert (status(conn)["last_outcome"], status(conn)["last_job_id"]) == ("waiting", job_id)
    conn.execute(
        "UPDATE pgqueue.jobs SET state = 'running', claim_id = gen_random_uuid(), worker_id = gen_random_uuid(),"
        " started_at = clock_timestamp() - interval '2 seconds'"
    )
    assert status(conn)["last_outcome"] == "running"
    assert status(conn)["last_duration_s"] == pytest.approx(2, abs=1)
    conn.execute("""INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, attempts, max_attempts,
        first_failed_at, failed_at, created_at, job_created_at)
        SELECT id, queue, task, args, priority, 'gave_up', 1, 1, now(), now(), now(), created_at FROM pgqueue.jobs""")
    conn.execute("DELETE FROM pgqueue.jobs")
    assert status(conn)["last_outcome"] == "dead"
    conn.execute("SELECT pgqueue.discard(%s)", [job_id])
    assert status(conn)["last_outcome"] == "cancelled"
    conn.execute("TRUNCATE pgqueue.job_history")
    assert status(conn)["last_outcome"] == "forgotten"
    back(conn, 1)
    conn.execute("UPDATE pgqueue.schedules SET misfire = 'skip', grace_s = 0")
    conn.execute("TRUNCATE pgqueue.schedule_runs")
    tick(conn)
    assert (status(conn)["last_outcome"], status(conn)["last_job_id"]) == ("missed", None)


def test_the_status_shows_no_arguments(conn: psycopg.Connection[Any]) -> None:
    put(conn, args={"pin": "hunter2"}, headers={"token": "hunter2"})
    assert "hunter2" not in json.dumps(status(conn), default=str)


# Code


def test_what_code_no_longer_names_is_an_orphan_until_it_comes_back(conn: psycopg.Connection[Any]) -> None:
    told: list[Any] = []
    events = Events()
    events.listen(told.append)
    both = [define(name="a"), define(name="b")]
    assert store_schedules(conn, both, "m:app") == {"a": "created", "b": "created"}
    store_schedules(conn, [define(name="c")], "other:app")
    put(conn, name="d")
    mark_orphans(conn, both[:1], "m:app", events)
    assert [warned.fields for warned in told] == [{"schedule": "b"}]
    states = {
        found["schedule"]: found["state"] for found in rows(conn, "SELECT * FROM pgqueue.schedule_status")
    }
    assert states == {"a": "enabled", "b": "orphaned", "c": "enabled", "d": "enabled"}
    assert {due.name for due in read_due(conn)} == {"a", "c", "d"}
    mark_orphans(conn, both[:1], "m:app", events)
    assert len(told) == 1
    back(conn, 5, "b")
    assert store_schedules(conn, both, "m:app") == {"a": "same", "b": "changed"}
    assert tick(conn, "b") == [(None, "decided", None)]


def test_pruning_deletes_the_orphans_of_this_application_alone(conn: psycopg.Connection[Any]) -> None:
    store_schedules(conn, [define(name="a"), define(name="b")], "m:app")
    store_schedules(conn, [define(name="c")], "other:app")
    mark_orphans(conn, [], "other:app", Events())
    mark_orphans(conn, [define(name="a")], "m:app", Events(), prune_as=ME)
    assert [s["name"] for s in rows(conn, "SELECT name FROM pgqueue.schedules ORDER BY 1")] == ["a", "c"]
    (audit,) = rows(conn, "SELECT actor, via, action, target FROM pgqueue.operator_audit")
    assert audit == {"actor": ME, "via": "code", "action": "delete", "target": "schedule b"}


def test_a_fire_that_comes_before_any_worker_finds_its_tasks_queue(conn: psycopg.Connection[Any]) -> None:
    from pgqueue import App

    app = App()

    @app.task(name="t", queue="mail", priority=1, retry=Retry(max_retries=2))
    def t() -> None: ...

    store_tasks(conn, app.registry())
    put(conn)
    back(conn, 1)
    tick(conn)
    assert rows(conn, "SELECT queue, priority, max_attempts FROM pgqueue.jobs") == [
        {"queue": "mail", "priority": 1, "max_attempts": 3}
    ]
    store_tasks(conn, Registry({}, lambda *_: Retry()))


# Age


def test_old_runs_go_in_batches_but_for_what_is_not_decided(conn: psycopg.Connection[Any]) -> None:
    put(conn)
    back(conn, 1)
    tick(conn)
    conn.execute("""INSERT INTO pgqueue.schedule_runs (schedule, run_key, fire_at, outcome, leader, ticked_at)
        SELECT s, 'k' || i, now() - interval '40 days', 'missed', 'x', now() - interval '40 days'
        FROM unnest(ARRAY['s', 'gone']) s, generate_series(1, 5) i""")
    conn.execute(
        "UPDATE pgqueue.schedule_runs SET ticked_at = now() - interval '50 days' WHERE outcome = 'enqueued'"
    )

    def prune(batch: int) -> int:
        row = conn.execute(statement("prune_schedule_runs"), {"keep_days": 30, "batch": batch}).fetchone()
        assert row is not None
        return int(row[0])

    assert [prune(4), prune(4), prune(4), prune(4)] == [4, 4, 2, 0]
    # The last decided fire keeps its key: a misfire policy could look back as far as that.
    assert [r["outcome"] for r in rows(conn, "SELECT outcome FROM pgqueue.schedule_runs")] == ["enqueued"]


def test_code_that_starts_again_with_what_is_stored_waits_for_nobody(
    conn: psycopg.Connection[Any], shared: Database
) -> None:
    put(conn, args={"n": 1.5})
    with shared.connect(autocommit=False) as person:
        person.execute("SELECT FROM pgqueue.schedules FOR UPDATE")
        conn.execute("SET lock_timeout = 100")
        assert put(conn, args={"n": 1.5}) == "same"
        with pytest.raises(psycopg.errors.LockNotAvailable):
            put(conn, args={"n": 2})
