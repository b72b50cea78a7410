"""Upkeep by the clock: each duty once for the whole fleet, whoever is there; none stops another, none needs a scheduler."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.wait import wait_for

from pgqueue import App
from pgqueue.core.events import DutyDone, Events, Warned
from pgqueue.storage.connect import CHORES
from pgqueue.upkeep.duties import Done, Duty, Upkeep

FLEET = {
    *("partitions", "rollups", "samples", "expiry", "workers", "retention"),
    *("queue_retention", "dead_letters", "recount", "stats_retention"),
}


@pytest.fixture
def start(database: Database) -> Iterator[Callable[..., Events]]:
    running: list[Upkeep] = []

    def started(*duties: Duty, events: Events | None = None, **more: Any) -> Events:
        events = events or Events()
        running.append(
            Upkeep(
                database.dsn,
                duties,
                events,
                actor=f"worker:{len(running)}",
                label="test",
                connect_timeout_s=5,
                role=CHORES,
                **more,
            )
        )
        running[-1].start()
        return events

    yield started
    for one in running:
        one.stop()


def rounds(database: Database, duty: str) -> int:
    return int(
        database.one("SELECT coalesce(max(rounds), 0) FROM pgqueue.upkeep_duties WHERE duty = %s", [duty])
    )


def test_a_duty_is_done_once_by_any_number_of_processes(
    database: Database, start: Callable[..., Events]
) -> None:
    done: list[tuple[str, float]] = []

    def duty(name: str) -> Duty:
        def run(conn: psycopg.Connection[Any]) -> Done:
            row = conn.execute("SELECT date_part('epoch', clock_timestamp())").fetchone()
            assert row is not None
            done.append((name, float(row[0])))
            return Done(1)

        return Duty("d", 1.2, run, alone=True)

    for name in ("first", "second", "third"):
        start(duty(name))
    wait_for(lambda: rounds(database, "d") >= 4, 60, "four rounds")
    seen = sorted(at for _, at in done[:4])
    assert all(later - sooner > 1.1 for sooner, later in itertools.pairwise(seen)), seen


def test_a_duty_of_each_process_is_done_by_each(database: Database, start: Callable[..., Events]) -> None:
    counts = {"first": 0, "second": 0}

    def duty(name: str) -> Duty:
        def run(conn: psycopg.Connection[Any]) -> Done:
            conn.execute("SELECT 1")
            counts[name] += 1
            return Done(0)

        return Duty("each", 0.01, run)

    for name in counts:
        start(duty(name))
    wait_for(lambda: min(counts.values()) > 20, 30, "rounds of both")
    assert rounds(database, "each") <= 4, "rows are not written all the time"


def test_more_work_is_done_in_steps_that_leave_the_others_their_turn(
    database: Database, start: Callable[..., Events]
) -> None:
    left, order = [5], []

    def big(conn: psycopg.Connection[Any]) -> Done:
        conn.execute("SELECT 1")
        order.append("big")
        left[0] -= 1
        return Done(10, again_in_s=0 if left[0] > 0 else None)

    def small(conn: psycopg.Connection[Any]) -> Done:
        conn.execute("SELECT 1")
        order.append("small")
        return Done(0)

    start(Duty("big", 600, big, alone=True), Duty("small", 0.0, small))
    wait_for(lambda: rounds(database, "big") == 5, 30, "all steps")
    assert database.one("SELECT changed FROM pgqueue.upkeep_duties WHERE duty = 'big'") == 50
    assert "small" in order[: order.index("big") + 3], order


@pytest.mark.proves("P21")
@pytest.mark.parametrize("alone", [True, False])
def test_a_duty_that_fails_stops_no_other_and_says_why(
    database: Database, start: Callable[..., Events], alone: bool
) -> None:
    broken = threading.Event()
    broken.set()
    good: list[int] = []

    def failing(conn: psycopg.Connection[Any]) -> Done:
        if broken.is_set():
            conn.execute("SELECT 'hunter2'::int")
        return Done(1)

    def fine(conn: psycopg.Connection[Any]) -> Done:
        conn.execute("SELECT 1")
        good.append(1)
        return Done(0)

    events = Events()
    heard: list[object] = []
    events.listen(heard.append)
    start(Duty("failing", 1.0, failing, alone=alone), Duty("fine", 0.01, fine), events=events)
    wait_for(lambda: rounds(database, "fine") > 0 and len(good) > 10, 30, "the other duty")
    failure = "SELECT failing, error, failures FROM pgqueue.upkeep_status WHERE duty = 'failing'"
    with database.connect() as conn:
        row = wait_for(lambda: conn.execute(failure).fetchone(), 30, "the failure's row")
        assert row[0] is True
        assert row[1].startswith("22P02")
        warned = [event for event in heard if isinstance(event, Warned)]
        assert warned[0].key == "upkeep_failing"
        broken.clear()
        wait_for(lambda: any(isinstance(event, DutyDone) for event in heard), 60, "a good round")
        if alone:
            wait_for(lambda: conn.execute(failure).fetchone()[0] is False, 30, "the row of a good round")  # type: ignore[index]


def test_a_bug_in_a_duty_is_a_failure_like_any_other(
    database: Database, start: Callable[..., Events]
) -> None:
    def run(conn: psycopg.Connection[Any]) -> Done:
        raise ZeroDivisionError("division by zero")

    start(Duty("bug", 600, run, alone=True))
    wait_for(
        lambda: database.one("SELECT error FROM pgqueue.upkeep_duties WHERE duty = 'bug'"), 30, "the row"
    )
    assert "ZeroDivisionError" in database.one("SELECT error FROM pgqueue.upkeep_duties WHERE duty = 'bug'")


def test_upkeep_waits_for_its_turn(database: Database, start: Callable[..., Events]) -> None:
    mine = threading.Event()
    done: list[int] = []

    def run(conn: psycopg.Connection[Any]) -> Done:
        conn.execute("SELECT 1")
        done.append(1)
        return Done(0)

    start(Duty("d", 0.05, run), when=mine.is_set)
    start(Duty("other", 0.05, lambda conn: Done(conn.execute("SELECT 1").rowcount), alone=True))
    wait_for(lambda: rounds(database, "other") >= 1, 30, "the other's round")
    assert done == []
    mine.set()
    wait_for(lambda: len(done) > 1, 30, "rounds")
    mine.clear()
    idle = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgqueue/chores/test' AND datname = current_database()"
    wait_for(lambda: database.one(idle) == 1, 30, "its connection to be closed")


@pytest.mark.proves("P9")
def test_workers_do_everything_without_a_scheduler(site: Any) -> None:
    site.start()
    wait_for(
        lambda: (
            FLEET
            <= {name for (name,) in site.rows("SELECT duty FROM pgqueue.upkeep_duties WHERE rounds > 0")}
        ),
        30,
        "all duties of the fleet",
    )
    assert site.one("SELECT count(*) FROM pgqueue.upkeep_status WHERE failing") == 0
    assert site.one("SELECT count(*) FROM pgqueue.upkeep_duties WHERE by_whom !~ '^worker:'") == 0


@pytest.mark.proves("F29")
def test_a_locked_table_of_history_holds_up_no_deferred_job(site: Any) -> None:
    @site.app.task(name="t")
    def t() -> None:
        """Touches nothing."""

    blocker = site.database.connect(autocommit=False)
    blocker.execute("LOCK TABLE pgqueue.job_transitions IN ACCESS EXCLUSIVE MODE")
    site.start()
    failing = "SELECT count(*) FROM pgqueue.upkeep_status WHERE failing"
    wait_for(lambda: site.one(failing) > 0, 60, "a duty that meets the lock")
    site.wait_state(t.using(delay="100ms").enqueue(None).id, "succeeded", 30)
    blocker.rollback()
    site.conn.execute(
        "UPDATE pgqueue.upkeep_duties SET next_at = clock_timestamp() WHERE next_at IS NOT NULL"
    )
    wait_for(lambda: site.one(failing) == 0, 90, "all well again")


def test_the_leading_scheduler_does_it_where_no_worker_runs(database: Database) -> None:
    app = App(database.dsn)
    leading, waiting = app.scheduler(), app.scheduler()
    threads = [threading.Thread(target=one.run) for one in (leading, waiting)]
    for thread in threads:
        thread.start()
    try:
        done = "SELECT count(*) FROM pgqueue.upkeep_duties WHERE rounds > 0 AND by_whom ~ '^scheduler:'"
        wait_for(lambda: database.one(done) >= len(FLEET), 60, "the duties")
        assert database.one("SELECT count(DISTINCT by_whom) FROM pgqueue.upkeep_duties") == 1, (
            "only the leader"
        )
    finally:
        leading.stop()
        waiting.stop()
        for thread in threads:
            thread.join(30)
        app.close()
    assert not any(thread.is_alive() for thread in threads)
    until = time.monotonic() + 10
    while database.one(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgqueue/%' AND datname = current_database()"
    ):
        assert time.monotonic() < until, "a connection stays open"
