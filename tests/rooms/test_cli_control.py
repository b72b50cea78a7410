"""The operators' layer from Python (`app.jobs`, `app.dead_letters`, `app.queues`): rows, deeds, audit, refusals."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.wait import wait_for

from pgqueue import (
    App,
    ConflictError,
    DatabaseError,
    DatabaseUnreachable,
    InvalidInput,
    JobCancelled,
    JobFailed,
    NotFoundError,
    Reject,
    SchemaMismatch,
)
from pgqueue.cli.main import main
from pgqueue.control.dead_letters import DeadCursor, DeadFilter
from pgqueue.control.desk import Desk
from pgqueue.control.jobs import JobFilter
from pgqueue.errors import ConfigurationError

NOBODY = 999_999
AUDIT = "SELECT actor, via, action, target, reason, matched, changed FROM pgqueue.operator_audit ORDER BY id"


@pytest.fixture
def app(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.setenv("PGQUEUE_ACTOR", "olga")
    app = App(database.dsn)

    @app.task(name="pay", queue="critical")
    def pay(ride_id: int) -> None:
        raise Reject(f"the bank declined ride {ride_id}")

    @app.task(name="sum")
    def total(a: int, b: int) -> dict[str, int]:
        return {"total": a + b}

    yield app
    app.close()


@pytest.fixture
def dead(app: App) -> list[int]:
    ids = [app.enqueue("pay", {"ride_id": n}).id for n in (1, 2, 3)]
    assert app.worker("critical", concurrency=1, drain=True).run() == 0
    return ids


def test_a_job_is_found_wherever_it_stands(app: App, dead: list[int], database: Database) -> None:
    waiting = app.enqueue("sum", {"a": 1, "b": 2**40}, delay="1h", tags=["x"], headers={"h": "v"})
    row = app.jobs.get(waiting.id)
    assert (row.state, row.queue, row.attempt, row.args) == ("scheduled", "default", 0, {"a": 1, "b": 2**40})
    assert (row.tags, row.headers, row.result, row.finished_at) == (["x"], {"h": "v"}, None, None)
    assert row.run_at > datetime.now(UTC)
    letter = app.jobs.get(dead[0])
    assert (letter.state, letter.reason, letter.error_type) == ("dead", "rejected", "pgqueue.errors.Reject")
    done = app.enqueue("sum", {"a": 1, "b": 2})
    app.worker("default", drain=True).run()
    ended = app.jobs.get(done.id)
    assert (ended.state, ended.result) == ("succeeded", {"total": 3})
    assert ended.run_s is not None
    assert ended.run_s >= 0
    with pytest.raises(NotFoundError, match=str(NOBODY)):
        app.jobs.get(NOBODY)


def test_a_listing_has_one_row_per_job_of_the_states_asked_for(app: App, dead: list[int]) -> None:
    held = app.enqueue("nosuch").id
    ready = app.enqueue("sum", {"a": 1, "b": 1}, delay="1h").id
    everything = ["ready", "running", "scheduled", "held", "succeeded", "cancelled", "dead"]
    assert [row.id for row in app.jobs.list()] == [ready, held]
    assert [row.id for row in app.jobs.list(states=everything)] == [ready, held, *reversed(dead)]
    assert [row.id for row in app.jobs.list(states=["dead"], task="pa*")] == dead[::-1]
    assert app.jobs.list(states=["dead"], task="pa") == []
    assert [row.id for row in app.jobs.list(states=["dead"], queue="critical", limit=2)] == dead[:0:-1]
    assert [row.id for row in app.jobs.list(states=["dead"], before=dead[1])] == [dead[0]]
    with pytest.raises(InvalidInput, match="state"):
        app.jobs.list(states=["died"])
    with pytest.raises(InvalidInput, match="limit"):
        app.jobs.list(limit=0)


def test_pages_meet_without_gap_or_double(app: App, dead: list[int]) -> None:
    live = [app.enqueue("sum", {"a": n, "b": n}, delay="1h").id for n in range(7)]
    where = JobFilter(("scheduled", "dead", "succeeded"))
    seen: list[int] = []
    before = 2**63 - 1
    while True:
        page = app.jobs.page(where, limit=3, before=before)
        seen += [row.id for row in page.rows]
        if page.before is None:
            break
        before = page.before
    assert seen == [*reversed(live), *reversed(dead)]


def test_dead_letter_pages_meet_too(app: App, dead: list[int]) -> None:
    first = app.dead_letters.page(limit=2)
    assert first.after is not None
    rest = app.dead_letters.page(limit=2, after=DeadCursor.parse(str(first.after)))
    assert [row.job_id for row in [*first.rows, *rest.rows]] == dead[::-1]
    assert rest.after is None
    for text in ("", "x", "2026-01-01/1", "2026-01-01T00:00:00Z/x", "2026-01-01T00:00:00Z"):
        with pytest.raises(InvalidInput, match="after"):
            DeadCursor.parse(text)


@pytest.mark.proves("P22", "S26")
def test_every_deed_leaves_its_audit_row(app: App, dead: list[int], database: Database) -> None:
    waiting = app.enqueue("sum", {"a": 1, "b": 2}, delay="1h").id
    assert app.jobs.run_now(waiting, reason="now") == {waiting: "freed"}
    later = app.enqueue("sum", {"a": 1, "b": 2}, delay="1h").id
    assert app.jobs.reschedule(later, NOBODY, delay="2h", reason="tomorrow") == {
        later: "rescheduled",
        NOBODY: "unknown",
    }
    assert app.jobs.cancel(waiting, NOBODY, reason="no need") == {waiting: "cancelled", NOBODY: "unknown"}
    assert app.jobs.retry(dead[0], reason="again").verdict == "redriven"
    (redriven,) = app.dead_letters.redrive(dead[1]).values()
    assert app.dead_letters.discard(dead[2]) == {dead[2]: True}
    app.queues.pause("critical", reason="deploy", wait_s=0)
    assert app.queues.resume("critical")
    rows = database.connect().execute(AUDIT).fetchall()
    assert [(row[2], row[3], row[4]) for row in rows] == [
        ("run_now", f"job {waiting}", "now"),
        ("reschedule", f"job {later}", "tomorrow"),
        ("cancel", f"job {waiting}", "no need"),
        ("redrive", f"dead letter {dead[0]}", "again"),
        ("redrive", f"dead letter {dead[1]}", None),
        ("discard", f"dead letter {dead[2]}", None),
        ("pause", "queue critical", "deploy"),
        ("resume", "queue critical", None),
    ]
    assert {row[:2] for row in rows} == {("olga", "python")}
    assert app.dead_letters.get(dead[1]).redriven_as == redriven
    assert app.jobs.get(redriven).redrive_of == dead[1]
    events = [(entry.event, entry.actor) for entry in app.timeline(dead[0])]
    assert ("operator", "olga") in events


def test_a_job_is_moved_to_a_moment_given_in_one_way(app: App) -> None:
    job_id = app.enqueue("sum", {"a": 1, "b": 2}).id
    moment = datetime(2031, 1, 1, 9, tzinfo=UTC)
    assert app.jobs.reschedule(job_id, run_at=moment) == {job_id: "rescheduled"}
    assert app.jobs.get(job_id).run_at == moment
    assert app.jobs.get(job_id).state == "scheduled"
    given: dict[str, Any]
    for given in (
        {},
        {"delay": "1s", "run_at": moment},
        {"delay": "-1s"},
        {"run_at": datetime(2031, 1, 1)},
    ):
        with pytest.raises(InvalidInput):
            app.jobs.reschedule(job_id, **given)
    assert app.jobs.reschedule(job_id, delay=0) == {job_id: "rescheduled"}
    assert app.jobs.get(job_id).state == "ready"


def test_retry_refuses_what_cannot_be_retried(app: App, dead: list[int]) -> None:
    done = app.enqueue("sum", {"a": 1, "b": 2}).id
    app.worker("default", drain=True).run()
    with pytest.raises(ConflictError, match="ended well"):
        app.jobs.retry(done)
    with pytest.raises(NotFoundError):
        app.jobs.retry(NOBODY)
    first = app.jobs.retry(dead[0])
    assert app.jobs.retry(dead[0]) == first  # no second job
    ready = app.jobs.retry(first.job_id)
    assert ready == ("ready", first.job_id)


def test_redrive_spreads_jobs_over_time_and_may_send_them_elsewhere(
    app: App, dead: list[int], database: Database
) -> None:
    done = app.dead_letters.redrive(*dead, queue="slow_lane", priority=9, rate_per_s=0.5)
    rows = (
        database.connect()
        .execute(
            "SELECT queue, priority, date_part('epoch', run_at - min(run_at) OVER ()) FROM pgqueue.jobs WHERE id = ANY (%s) ORDER BY id",
            [list(done.values())],
        )
        .fetchall()
    )
    assert [row[:2] for row in rows] == [("slow_lane", 9)] * 3
    assert [round(row[2]) for row in rows] == [0, 2, 4]
    with pytest.raises(InvalidInput, match="rate"):
        app.dead_letters.redrive(dead[0], rate_per_s=-1)


def test_dead_letters_are_grouped_filtered_and_exported(app: App, dead: list[int]) -> None:
    (group,) = app.dead_letters.groups()
    assert (group.task, group.reason, group.dead) == ("pay", "rejected", 3)
    where = DeadFilter(task="p*", reason="rejected", fingerprint=group.error_fingerprint)
    assert app.dead_letters.matching(where) == dead
    assert [letter.args for letter in app.dead_letters.export(where)] == [{"ride_id": n} for n in (1, 2, 3)]
    assert app.dead_letters.matching(DeadFilter(error_type="ValueError")) == []
    assert app.dead_letters.matching(DeadFilter(age_max_s=0)) == []
    app.dead_letters.redrive(dead[0])
    assert [row.job_id for row in app.dead_letters.list()] == dead[:0:-1]
    assert len(app.dead_letters.list(waiting=False)) == 3


def test_wait_returns_the_result_or_raises_how_it_ended(app: App, dead: list[int]) -> None:
    job = app.enqueue("sum", {"a": 20, "b": 22})
    answers: list[Any] = []
    waiter = threading.Thread(target=lambda: answers.append(app.jobs.wait(job.id, timeout_s=30)))
    waiter.start()
    app.worker("default", drain=True).run()
    waiter.join(30)
    assert answers == [{"total": 42}]
    with pytest.raises(JobFailed, match="rejected"):
        app.jobs.wait(dead[0])
    waiting = app.enqueue("sum", {"a": 1, "b": 2}, delay="1h").id
    with pytest.raises(TimeoutError, match="still scheduled"):
        app.jobs.wait(waiting, timeout_s=0.01)
    app.jobs.cancel(waiting)
    with pytest.raises(JobCancelled):
        app.jobs.wait(waiting)
    with pytest.raises(NotFoundError):
        app.jobs.wait(NOBODY)


@pytest.mark.proves("P20")
def test_pause_waits_until_every_worker_has_heard(app: App, database: Database) -> None:
    app.use(heartbeat_s="50ms")
    worker = app.worker("default", concurrency=1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_for(lambda: database.one("SELECT count(*) FROM pgqueue.workers"), what="a worker")
        app.queues.pause("default", for_s=3600, wait_s=10)
        assert worker.state.paused == {"default"}
        health = app.queues.get("default")
        assert (health.paused, health.paused_by) == (True, "olga")
        assert health.paused_until is not None
        (row,) = app.queues.workers()
        assert (row.status, row.stale, list(row.queues)) == ("live", False, ["default"])
        assert app.queues.fleet().workers == 1
    finally:
        worker.stop()
        thread.join(20)
    assert [row.status for row in app.queues.workers(ended=True)] == ["stopped"]
    assert app.queues.resume("default")
    assert not app.queues.resume("default")


def test_pause_says_so_when_a_worker_is_deaf(app: App, database: Database) -> None:
    database.connect().execute(
        "INSERT INTO pgqueue.workers (id, lease_s, pid, host, version, queues) VALUES (gen_random_uuid(), 60, 1, 'h', 'v', '{default}')"
    )
    with pytest.raises(ConflictError, match="has not confirmed"):
        app.queues.pause("default", wait_s=0.3)
    assert app.queues.get("default").paused


def test_production_wants_a_reason_for_each_change(database: Database, dead: list[int]) -> None:
    app = App(database.dsn, environment="production")
    deeds: list[Callable[..., object]] = [
        lambda **why: app.jobs.cancel(NOBODY, **why),
        lambda **why: app.jobs.run_now(NOBODY, **why),
        lambda **why: app.jobs.reschedule(NOBODY, delay="1s", **why),
        lambda **why: app.dead_letters.redrive(NOBODY, **why),
        lambda **why: app.dead_letters.discard(NOBODY, **why),
        lambda **why: app.queues.pause("critical", wait_s=0, **why),
        lambda **why: app.queues.resume("critical", **why),
    ]
    for deed in deeds:
        with pytest.raises(InvalidInput, match="reason"):
            deed()
        with pytest.raises(InvalidInput, match="reason"):
            deed(reason="  ")
        deed(reason="incident 12")


@pytest.mark.proves("S6")
def test_the_command_line_wants_a_reason_in_production_and_names_the_database(
    database: Database, dead: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGQUEUE_ENVIRONMENT", "production")
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", database.dsn)
    assert main(["dlq", "discard", str(dead[0])]) == 2
    assert "reason" in capsys.readouterr().err
    assert main(["jobs", "get", str(dead[0]), "--show-args"]) == 2
    assert '"ride_id": 1' not in capsys.readouterr().out
    assert main(["dlq", "discard", str(dead[0]), "--reason", "test data"]) == 0
    err = capsys.readouterr().err
    assert "production" in err
    assert database.name in err


@pytest.mark.proves("P22")
def test_a_bulk_deed_is_summed_up_with_its_filter(
    database: Database, app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", database.dsn)
    for _ in range(3):
        app.enqueue("sum", {"a": 1, "b": 2}, delay="1h")
    assert (
        main(["jobs", "cancel", "--task", "su*", "--state", "scheduled", "--yes", "--reason", "moved"]) == 0
    )
    capsys.readouterr()
    last = database.connect().execute(AUDIT).fetchall()[-1]
    assert last == ("olga", "cli", "cancel", "jobs state:scheduled task:su*", "moved", 3, 3)


@pytest.mark.proves("S6")
def test_an_export_with_values_is_audited_once(
    database: Database, dead: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", database.dsn)
    assert main(["dlq", "export", "--queue", "critical"]) == 0
    assert '"ride_id": "int"' in capsys.readouterr().out
    assert database.one("SELECT count(*) FROM pgqueue.operator_audit") == 0
    assert main(["dlq", "export", "--queue", "critical", "--show-args"]) == 0
    assert '"ride_id": 1' in capsys.readouterr().out
    (row,) = database.connect().execute(AUDIT).fetchall()
    assert row[2:] == ("reveal_args", "dead letters queue:critical", None, 3, 0)


def test_the_databases_refusals_become_errors_of_ours(database: Database, empty_database: Database) -> None:
    with pytest.raises(SchemaMismatch, match="db upgrade"):
        App(empty_database.dsn).jobs.list()
    with pytest.raises(DatabaseUnreachable, match="cannot connect"):
        App("host=127.0.0.1 port=1").jobs.list()
    desk = Desk(database.dsn, via="python")
    with pytest.raises(InvalidInput, match="queue"), desk.explained("x"):
        database.connect().execute("SELECT pgqueue.redrive(1, queue => 'Bad Queue')")
    role = f"stranger_{database.name}"
    database.connect().execute(psycopg.sql.SQL("CREATE ROLE {} LOGIN").format(psycopg.sql.Identifier(role)))
    try:
        with pytest.raises(DatabaseError, match="pgqueue_operator") as refused:
            App(database.dsn_as(role)).jobs.list()
        assert "permission denied" in str(refused.value)
    finally:
        database.connect().execute(psycopg.sql.SQL("DROP ROLE {}").format(psycopg.sql.Identifier(role)))


def test_a_connection_that_is_cut_is_told_as_such(database: Database) -> None:
    desk = Desk(database.dsn, via="python")
    with pytest.raises(DatabaseUnreachable, match="look before you repeat"), desk.connection() as conn:
        database.connect().execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])
        conn.execute("SELECT 1")


@pytest.mark.proves("P21")
def test_a_row_that_cannot_be_read_harms_only_itself(app: App, database: Database) -> None:
    deep = "[" * 5000 + "]" * 5000
    good = app.enqueue("sum", {"a": 1, "b": 2}, delay="1h").id
    bad = database.one("SELECT nextval('pgqueue.job_seq')")
    database.connect().execute(
        "INSERT INTO pgqueue.jobs (id, created_at, run_at, priority, max_attempts, state, queue, task, args)"
        " VALUES (%s, now(), now() + interval '1h', 5, 1, 'scheduled', 'default', E't\\x1b[2J', %s)",
        [bad, f'{{"deep": {deep}}}'],
    )
    assert [row.id for row in app.jobs.list()] == [bad, good]
    assert app.jobs.get(bad).args == {"(unreadable)": "RecursionError"}


@pytest.mark.parametrize("actor", ["x" * 201, "two\nlines", "esc\x1b[31m"])
def test_an_actor_that_would_spoil_the_audit_is_refused(
    actor: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUE_ACTOR", actor)
    with pytest.raises(ConfigurationError, match="PGQUEUE_ACTOR"):
        Desk(database.dsn, via="cli")


def test_without_a_name_the_actor_is_the_account_and_the_machine(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGQUEUE_ACTOR", raising=False)
    user, _, host = Desk(database.dsn, via="cli").actor.partition("@")
    assert user
    assert host
