"""Schedulers in threads on a real database: who leads, what fires, and what neither a fault nor a person can break."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rig.database import Database
from rig.wait import wait_for

from pgqueue import App
from pgqueue.core.events import (
    DatabaseTrouble,
    LeaderChanged,
    ScheduleFailed,
    ScheduleFired,
    ScheduleMissed,
    Warned,
)
from pgqueue.errors import DatabaseUnreachable, SchemaMismatch
from pgqueue.scheduler import leader, tick
from pgqueue.scheduler.leader import Leadership
from pgqueue.scheduler.runtime import Scheduler
from pgqueue.storage import link as link_module

FAST = {"patience_s": 0.4, "poll_s": 0.1}
LOCK = "SELECT pg_advisory_lock(hashtextextended('pgqueue scheduler', 0))"


@dataclass
class One:
    """One scheduler, its thread and what it said."""

    scheduler: Scheduler
    events: list[Any]
    codes: list[int] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class Stage:
    """Schedulers on one database; all end with the test."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.conn = database.connect()
        self._threads: list[tuple[One, threading.Thread]] = []

    def app(self, **settings: Any) -> App:
        return App(self.database.dsn, **settings)

    def start(self, app: App | None = None, **options: Any) -> One:
        app = app or self.app()
        told: list[Any] = []
        app.events.listen(told.append)
        scheduler = Scheduler(
            app.registry(),
            list(app._schedules.values()),
            app.settings,
            events=app.events,
            **{**FAST, **options},
        )
        one = One(scheduler, told)

        def run() -> None:
            try:
                one.codes.append(scheduler.run())
            except Exception as error:
                one.errors.append(error)

        thread = threading.Thread(target=run)
        self._threads.append((one, thread))
        thread.start()
        return one

    def leader(self, app: App | None = None, **options: Any) -> One:
        one = self.start(app, **options)
        wait_for(lambda: one.scheduler.leads, what="a leader")
        return one

    def stop(self, one: One) -> None:
        for other, thread in self._threads:
            if other is one:
                one.scheduler.stop()
                thread.join(20)
                assert not thread.is_alive()

    def put(self, name: str = "s", **options: Any) -> None:
        times = {} if "cron" in options else {"every": "1h"}
        assert self.app().schedules.upsert(name, task="t", **{**times, **options}) == "created"

    def due(self, name: str = "s", hours: float = 1) -> None:
        """The schedule was last decided so long ago, and its next fire has come."""
        self.conn.execute(
            "UPDATE pgqueue.schedules SET last_fire_at = clock_timestamp() - make_interval(secs => %s),"
            " next_fire_at = clock_timestamp() WHERE name = %s",
            [hours * 3600, name],
        )

    def planned(self, name: str = "s") -> None:
        wait_for(
            lambda: self.one(
                "SELECT planned_revision = revision FROM pgqueue.schedules WHERE name = %s", name
            ),
            what="the schedule to be planned",
        )

    def one(self, sql: str, *params: Any) -> Any:
        row = self.conn.execute(sql, params).fetchone()
        return None if row is None else row[0]

    def runs(self, outcome: str = "enqueued", name: str = "s") -> int:
        return int(
            self.one(
                "SELECT count(*) FROM pgqueue.schedule_runs WHERE outcome = %s AND schedule = %s",
                outcome,
                name,
            )
        )

    def end(self) -> None:
        for one, _ in self._threads:
            one.scheduler.stop()
        for _, thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def stage(database: Database) -> Iterator[Stage]:
    made = Stage(database)
    yield made
    made.end()


@pytest.mark.proves("P14")
def test_a_schedule_of_the_code_fires_on_time_and_its_job_runs(stage: Stage) -> None:
    app = stage.app()
    ran: list[tuple[int, str]] = []

    @app.schedule(every="1s", name="tick", args={"n": 7})
    @app.task(name="t", queue="mail")
    def t(ctx: Any, n: int) -> None:
        ran.append((n, ctx.job.headers["pgqueue.schedule"]))

    one = stage.leader(app)
    fired = wait_for(lambda: one.of(ScheduleFired)[1:], what="two fires")
    assert fired[0].outcome == "enqueued"
    assert 0 <= fired[0].late_s < 1
    assert app.worker("mail", drain=True).run() == 0
    wait_for(lambda: ran, what="the job")
    assert ran[0] == (7, "tick")
    assert stage.one("SELECT defined_in IS NULL AND source = 'code' FROM pgqueue.schedules")
    stage.stop(one)
    assert one.codes == [0]
    assert [(event.leads, event.note) for event in one.of(LeaderChanged)] == [(True, ""), (False, "it stops")]


@pytest.mark.proves("P15", "F33")
@pytest.mark.parametrize(("misfire", "enqueued", "missed"), [("latest", 1, 2), ("all", 3, 0), ("skip", 0, 3)])
def test_after_three_hours_two_schedulers_start_at_once(
    stage: Stage, misfire: str, enqueued: int, missed: int
) -> None:
    stage.put(misfire=misfire, grace="0s")
    stage.due(hours=3)
    both = [stage.start(), stage.start()]
    wait_for(lambda: stage.runs("enqueued") + stage.runs("missed") == 3, what="the verdict")
    stage.planned()
    assert (stage.runs("enqueued"), stage.runs("missed")) == (enqueued, missed)
    assert stage.one("SELECT count(*) FROM pgqueue.jobs") == enqueued
    told = wait_for(
        lambda: [e for one in both for e in one.of(ScheduleMissed)] or not missed, what="the event"
    )
    if missed:
        assert [(event.fires, event.exact) for event in told] == [(missed, True)]


def test_a_follower_takes_over_when_the_leader_stops_or_its_session_dies(stage: Stage) -> None:
    stage.put(every="1s", misfire="all")
    first = stage.leader()
    second = stage.start()
    stage.stop(first)
    wait_for(lambda: second.scheduler.leads, what="the follower to lead")
    pid = stage.one(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    stage.conn.execute("SELECT pg_terminate_backend(%s)", [pid])
    lost = wait_for(lambda: second.of(LeaderChanged)[1:], what="the loss to be seen")
    assert (lost[0].leads, lost[0].note) == (False, "its connection was lost")
    wait_for(lambda: second.scheduler.leads, what="it to lead again")
    assert [event.over for event in second.of(DatabaseTrouble)] == [False, True]
    before = stage.runs()
    wait_for(lambda: stage.runs() > before, what="another fire")


@pytest.mark.proves("S10", "P14")
def test_a_stranger_who_holds_the_lock_cannot_stop_schedules(stage: Stage) -> None:
    stranger = stage.database.connect(application_name="stranger")
    stranger.execute(LOCK)
    stage.put(every="1s", misfire="all")
    both = [stage.start(), stage.start()]
    wait_for(lambda: stage.runs() >= 4, what="fires without a leader")
    assert not any(one.scheduler.leads for one in both)
    gaps = stage.one(
        "SELECT count(*) FROM (SELECT fire_at - lag(fire_at) OVER (ORDER BY fire_at) AS gap FROM pgqueue.schedule_runs) g WHERE gap <> interval '1 second'"
    )
    assert gaps == 0
    late = stage.one("SELECT max(ticked_at - fire_at) FROM pgqueue.schedule_runs")
    assert late < timedelta(seconds=2 * (FAST["patience_s"] + FAST["poll_s"]) + 1)
    for one in both:
        said = [e for e in one.of(Warned) if e.key == "leader_silent"]
        assert len(said) <= 1
        for event in said:
            assert event.fields == {"pid": stranger.info.backend_pid}
            assert f"process {stranger.info.backend_pid} (stranger) holds" in event.message
    assert [e for one in both for e in one.of(Warned) if e.key == "leader_silent"]
    stranger.close()
    wait_for(lambda: any(one.scheduler.leads for one in both), what="a leader once the lock is free")


def test_a_stand_in_acts_early_and_steps_back_when_there_is_nothing_to_do() -> None:
    now = [100.0]

    class FakeLink:
        pooled = True
        generation = 0

    from pgqueue.core.events import Events

    place = Leadership(FakeLink(), "me", Events(), patience_s=3.0, clock=lambda: now[0])  # type: ignore[arg-type]
    assert place.late_s == 3.0
    place.acted(None)  # type: ignore[arg-type]
    assert place.late_s == leader.STAND_IN_LATE_S
    now[0] += 2.9
    assert place.late_s == leader.STAND_IN_LATE_S
    now[0] += 0.2
    assert place.late_s == 3.0


@pytest.mark.proves("P10")
def test_behind_a_pooler_it_says_so_once_and_fires_by_patience(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "is_pooled", lambda conn: True)
    stage.put(every="1s", misfire="all")
    one = stage.start()
    wait_for(lambda: stage.runs() >= 3, what="fires")
    assert not one.scheduler.leads
    said = [event for event in one.of(Warned) if event.key == "scheduler_pooled"]
    assert len(said) == 1
    assert "set direct_database_url" in said[0].message
    assert stage.one("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


@pytest.mark.proves("P21")
def test_a_poisoned_schedule_harms_only_itself(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tick, "REST_FIRST_S", 0.2)
    for name, columns in (
        ("bad-cron", "cron = '0 0 30 2 *'"),
        ("bad-zone", "tz = 'Nope/X'"),
        ("bad-task", "task = 'no task'"),
    ):
        stage.put(name, cron="* * * * *")
        stage.conn.execute(f"UPDATE pgqueue.schedules SET {columns} WHERE name = %s", [name])
        stage.due(name)
    stage.put("good", every="1s", misfire="all")
    one = stage.leader()
    wait_for(lambda: stage.runs(name="good") >= 3, what="the good one to fire")
    wait_for(
        lambda: {e.schedule for e in one.of(ScheduleFailed)} >= {"bad-cron", "bad-zone", "bad-task"},
        what="the bad ones to be told",
    )
    errors = dict(
        stage.conn.execute(
            "SELECT name, last_error FROM pgqueue.schedules WHERE last_error IS NOT NULL"
        ).fetchall()
    )
    assert errors["bad-cron"].startswith("cron: never fires")
    assert errors["bad-zone"].startswith("tz: ")
    assert errors["bad-task"].startswith("22023 task: ")
    # Mended, it goes on where it stood.
    stage.conn.execute("UPDATE pgqueue.schedules SET task = 't' WHERE name = 'bad-task'")
    wait_for(lambda: stage.runs(name="bad-task") == 1, what="the mended one to fire")
    assert stage.one("SELECT last_error IS NULL FROM pgqueue.schedules WHERE name = 'bad-task'")


def test_a_schedule_that_stays_bad_is_tried_ever_more_rarely(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tick, "REST_FIRST_S", 0.05)
    monkeypatch.setattr(tick, "REST_MAX_S", 0.2)
    stage.put("bad", cron="* * * * *")
    stage.conn.execute("UPDATE pgqueue.schedules SET tz = 'Nope/X'")
    stage.due("bad")
    one = stage.leader()
    wait_for(lambda: len(one.of(ScheduleFailed)) >= 5, what="five tries")
    assert [event.again_in_s for event in one.of(ScheduleFailed)[:5]] == [0.05, 0.1, 0.2, 0.2, 0.2]


def test_a_row_that_a_person_has_locked_waits_and_the_others_do_not(stage: Stage) -> None:
    stage.put("held", misfire="all")
    stage.put("free", every="1s", misfire="all")
    stage.leader()
    stage.planned("held")
    person = stage.database.connect(autocommit=False)
    person.execute("SELECT FROM pgqueue.schedules WHERE name = 'held' FOR UPDATE")
    before = stage.runs(name="free")
    wait_for(lambda: stage.runs(name="free") >= before + 2, what="the others to go on")
    person.execute(
        "UPDATE pgqueue.schedules SET last_fire_at = last_fire_at - interval '1 hour', next_fire_at = clock_timestamp() WHERE name = 'held'"
    )
    before = stage.runs(name="free")
    wait_for(lambda: stage.runs(name="free") >= before + 2, what="the others to go on")
    assert stage.runs(name="held") == 0
    person.commit()
    wait_for(lambda: stage.runs(name="held") == 1, what="the freed one to fire")


@pytest.mark.proves("P20")
def test_pause_resume_and_delete_take_effect_while_it_runs(stage: Stage) -> None:
    app = stage.app()
    stage.put(every="1s", misfire="all")
    one = stage.leader()
    wait_for(lambda: stage.runs() >= 1, what="a fire")
    since = app.schedules.pause("s", reason="deploy")
    frozen = stage.runs()
    # A later fire of another schedule shows that rounds went on meanwhile.
    stage.put("other", every="1s", misfire="all")
    wait_for(lambda: stage.runs(name="other") >= 2, what="other fires")
    assert stage.runs() == frozen
    assert stage.one("SELECT max(ticked_at) FROM pgqueue.schedule_runs WHERE schedule = 's'") < since
    assert app.schedules.resume("s") is True
    wait_for(lambda: stage.runs() > frozen, what="fires after the resume")
    back_at = stage.one(
        "SELECT min(fire_at) FROM pgqueue.schedule_runs WHERE schedule = 's' AND fire_at > %s AND outcome = 'enqueued'",
        since,
    )
    resumed_at = stage.one(
        "SELECT ticked_at FROM pgqueue.schedule_runs WHERE starts_with(run_key, 'paused:')"
    )
    assert back_at > resumed_at - timedelta(seconds=1)
    app.schedules.delete("s")
    gone = stage.runs()
    before = stage.runs(name="other")
    wait_for(lambda: stage.runs(name="other") >= before + 2, what="other fires")
    assert stage.runs() == gone
    assert one.errors == []


def test_schedules_of_the_code_that_vanish_are_told_of_and_pruned_on_demand(stage: Stage) -> None:
    def app(*names: str) -> App:
        made = stage.app()
        task = made.task(name="t")(lambda: None)
        for name in names:
            made.schedule(every="1h", name=name)(task)
        return made

    stage.stop(stage.leader(app("a", "b"), defined_in="m:app"))
    one = stage.leader(app("a"), defined_in="m:app")
    (said,) = [event for event in one.of(Warned) if event.key.startswith("schedule_orphaned")]
    assert said.fields == {"schedule": "b"}
    stage.stop(one)
    states = {row.name: row.state for row in stage.app().schedules.list()}
    assert states == {"a": "enabled", "b": "orphaned"}
    stage.stop(stage.leader(app("a"), defined_in="m:app", prune=True))
    assert [row.name for row in stage.app().schedules.list()] == ["a"]


def test_the_leader_prunes_old_runs(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tick, "PRUNE_BATCH", 4)
    from pgqueue.scheduler import runtime

    monkeypatch.setattr(runtime, "PRUNE_BATCH", 4)
    stage.conn.execute("""INSERT INTO pgqueue.schedule_runs (schedule, run_key, fire_at, outcome, leader, ticked_at)
        SELECT 'gone', i::text, now(), 'missed', 'x', now() - interval '40 days' FROM generate_series(1, 10) i""")
    stage.leader()
    wait_for(lambda: stage.runs("missed", "gone") == 0, what="the old rows to go")


@pytest.mark.proves("P9", "F12")
def test_a_restarted_server_is_met_again_and_no_fire_is_lost(stage: Stage) -> None:
    stage.put(every="1s", misfire="all", max_catch_up=1000)
    one = stage.leader()
    wait_for(lambda: stage.runs() >= 2, what="fires")
    stage.database.server.restart("immediate")
    stage.conn = stage.database.connect()
    wait_for(lambda: one.scheduler.leads and one.of(DatabaseTrouble), 20, what="it to lead again")
    before = stage.runs()
    wait_for(lambda: stage.runs() >= before + 2, what="fires after the restart")
    gaps = stage.one(
        "SELECT count(*) FROM (SELECT fire_at - lag(fire_at) OVER (ORDER BY fire_at) AS gap FROM pgqueue.schedule_runs) g WHERE gap <> interval '1 second'"
    )
    assert gaps == 0


def test_it_refuses_a_database_without_the_schema_or_none_at_all(empty_database: Database) -> None:
    with pytest.raises(SchemaMismatch, match="db upgrade"):
        App(empty_database.dsn).scheduler().run()
    with pytest.raises(DatabaseUnreachable):
        App("host=/nowhere port=1", connect_timeout_s=1).scheduler().run()


def test_it_stops_while_the_server_is_gone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    one = stage.leader()

    def refused(*_: Any, **__: Any) -> Any:
        raise DatabaseUnreachable("gone")

    monkeypatch.setattr(link_module, "connect", refused)
    stage.conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgqueue/leader/%' AND datname = current_database()"
    )
    wait_for(lambda: one.of(DatabaseTrouble), what="the loss to be seen")
    stage.stop(one)
    assert one.codes == [0]


def test_nothing_of_a_fire_depends_on_the_clock_of_the_scheduler(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no call of it: the module that plans and the one that writes know the database's now alone."""
    import inspect

    from pgqueue.core import schedule, schedule_plan
    from pgqueue.scheduler import register, runtime

    for module in (schedule, schedule_plan, leader, tick, register, runtime):
        source = inspect.getsource(module)
        assert "datetime.now" not in source
        assert "time.time()" not in source


# The face that applications use


def test_the_decorator_stacks_and_refuses_what_cannot_work() -> None:
    from pgqueue.errors import ConfigurationError, InvalidArguments, InvalidSchedule

    app = App()

    @app.schedule("0 0 * * *", tz="America/Barbados", misfire="latest", name="promo-expiry")
    @app.schedule(every="15m", name="promo-check", args={"city": "b"})
    @app.task(name="promo")
    def promo(city: str = "a") -> None: ...

    assert list(app._schedules) == ["promo-check", "promo-expiry"]
    assert promo() is None
    made = app._schedules["promo-expiry"]
    assert (made.task, made.tz, made.cron) == ("promo", "America/Barbados", "0 0 * * *")
    with pytest.raises(ConfigurationError, match="defined twice"):
        app.schedule("0 1 * * *", name="promo-expiry")(promo)
    with pytest.raises(ConfigurationError, match=r"above @app\.task"):
        app.schedule("0 1 * * *")(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(InvalidArguments):
        app.schedule("0 1 * * *", args={"town": "x"})(promo)
    with pytest.raises(InvalidSchedule):
        app.schedule("0 0 30 2 *")(promo)

    @app.task(name="needs")
    def needs(city: str) -> None: ...

    with pytest.raises(InvalidArguments):
        app.schedule("0 1 * * *")(needs)


def test_schedules_from_python(stage: Stage) -> None:
    from pgqueue.errors import ConflictError, InvalidArguments, InvalidName, NotFoundError

    app = stage.app()

    @app.task(name="t")
    def t(n: int = 0) -> None: ...

    schedules = app.schedules
    assert schedules.upsert("s", task="t", cron="0 3 * * *", args={"n": 1}) == "created"
    assert schedules.upsert("s", task="t", cron="0 3 * * *", args={"n": 1}) == "same"
    with pytest.raises(InvalidArguments):
        schedules.upsert("s", task="t", cron="0 3 * * *", args={"m": 1})
    assert schedules.upsert("elsewhere", task="other.task", every="1d") == "created"
    assert [row.name for row in schedules.list()] == ["elsewhere", "s"]
    row = schedules.get("s")
    assert (row.cron, row.source, row.state, row.timing.words) == (
        "0 3 * * *",
        "python",
        "enabled",
        "at 03:00 every day",
    )
    fires = schedules.next("s", count=3).fires
    assert [fire.at.hour for fire in fires] == [3, 3, 3]
    job_id = schedules.run_now("s", reason="try")
    assert app.jobs.get(job_id) is not None
    assert [(run.outcome, run.job_id) for run in schedules.runs("s")] == [("manual", job_id)]
    schedules.pause("s")
    with pytest.raises(ConflictError, match="is paused"):
        schedules.next("s")
    assert schedules.resume("s") is True
    assert schedules.resume("s") is False
    schedules.delete("s")
    for ask in (
        schedules.get,
        schedules.pause,
        schedules.resume,
        schedules.run_now,
        schedules.delete,
        schedules.next,
    ):
        with pytest.raises(NotFoundError, match="schedules list"):
            ask("s")
        with pytest.raises(InvalidName):
            ask("no name")
    assert stage.one("SELECT count(*) FROM pgqueue.operator_audit WHERE via = 'python'") == 6


def test_previews_ask_no_database() -> None:
    shown = App("host=/nowhere").schedules.preview(
        "30 2 * * *", tz="Europe/Berlin", after=datetime(2026, 3, 28, 12, tzinfo=UTC), count=1
    )
    assert shown.fires[0].note == "02:30 does not exist on 2026-03-29 in Europe/Berlin: fires at 03:00"


def test_two_places_of_one_name_are_one_row_that_the_last_one_wins(stage: Stage) -> None:
    app = stage.app()
    app.schedule(every="1h", name="s")(app.task(name="t")(lambda: None))
    stage.stop(stage.leader(app, defined_in="m:app"))
    assert stage.app().schedules.upsert("s", task="t", every="2h") == "changed"
    assert stage.one("SELECT source FROM pgqueue.schedules") == "python"
    stage.stop(stage.leader(app, defined_in="m:app"))
    assert stage.one("SELECT (source, every_s)::text FROM pgqueue.schedules") == "(code,3600)"


@pytest.mark.proves("P21", "P23")
def test_many_schedules_of_one_minute_are_decided_in_few_transactions(stage: Stage) -> None:
    """And one that is refused leaves its batch's others whole."""
    app = stage.app()
    task = app.task(name="t")(lambda: None)
    for number in range(120):
        app.schedule(every="1h", name=f"s{number:03}")(task)
    stage.stop(stage.leader(app))
    stage.conn.execute(
        "UPDATE pgqueue.schedules SET last_fire_at = clock_timestamp() - interval '1 hour', next_fire_at = clock_timestamp()"
    )
    stage.conn.execute("UPDATE pgqueue.schedules SET task = 'no task' WHERE name = 's060'")
    one = stage.start()
    wait_for(lambda: stage.one("SELECT count(*) FROM pgqueue.jobs") == 119, what="the others' jobs")
    (failed,) = {event.schedule for event in one.of(ScheduleFailed)}
    assert failed == "s060"
    transactions = stage.one("SELECT count(DISTINCT xmin::text) FROM pgqueue.schedule_runs")
    # Two batches of fifty and twenty, and one of fifty that was repeated one by one.
    assert transactions < 60


def test_code_without_a_name_makes_no_orphans(stage: Stage) -> None:
    app = stage.app()
    app.schedule(every="1h", name="s")(app.task(name="t")(lambda: None))
    stage.stop(stage.leader(app))
    stage.stop(stage.leader(stage.app(), prune=True))
    assert [row.state for row in stage.app().schedules.list()] == ["enabled"]
