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

from pgqueue import App, JobContext, Retry, Snooze
from pgqueue.core.events import DutyDone, Events, Warned
from pgqueue.storage.connect import CHORES
from pgqueue.upkeep.duties import Done, Duty, Upkeep
from pgqueue.upkeep.expiry import EXPIRE_BATCH, expiry_duty
from pgqueue.upkeep.retention import LETTERS_BATCH, dead_letters_duty

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


def test_what_a_worker_did_is_what_the_rollups_count(site: Any) -> None:
    @site.app.task(name="good")
    def good() -> None:
        """Succeeds."""

    @site.app.task(name="bad", retry=Retry(max_retries=2, initial_delay="1ms"))
    def bad() -> None:
        raise ValueError("always")

    @site.app.task(name="later")
    def later(ctx: JobContext) -> None:
        if site.database.one("SELECT count(*) FROM effects") == 0:
            site.database.one("INSERT INTO effects VALUES (1, 'seen') RETURNING 1")
            raise Snooze("1ms")

    good.enqueue_many(None, [{}] * 20)
    bad.enqueue_many(None, [{}] * 3)
    later.enqueue(None)
    site.conn.execute("SELECT pgqueue.cancel(%s)", [good.using(delay="1h").enqueue(None).id])
    site.drain()
    counted = site.rows(
        "SELECT task, outcome, sum(n)::int, sum((SELECT sum(c) FROM unnest(run_n) c))::int"
        " FROM pgqueue.count_attempts(clock_timestamp() - interval '1 hour', clock_timestamp() + interval '1 minute') GROUP BY 1, 2 ORDER BY 1, 2"
    )
    assert counted == [
        ("bad", "dead", 3, 3),
        ("bad", "retry", 6, 6),
        ("good", "cancelled", 1, 0),
        ("good", "succeeded", 20, 20),
        ("later", "snoozed", 1, 1),
        ("later", "succeeded", 1, 1),
    ]


@pytest.mark.proves("P23")
@pytest.mark.parametrize(
    ("rows", "more"), [(EXPIRE_BATCH - 1, False), (EXPIRE_BATCH, True), (EXPIRE_BATCH + 1, True)]
)
def test_a_step_ends_at_its_limit_and_asks_for_the_next(database: Database, rows: int, more: bool) -> None:
    conn = database.connect()
    conn.execute(
        """INSERT INTO pgqueue.dedup_keys (task, key, job_id, created_at, expires_at)
           SELECT 't', i::text, i, clock_timestamp() - interval '2 days', clock_timestamp() - interval '1 day' FROM generate_series(1, %s) i""",
        [rows],
    )
    done = expiry_duty(10).run(conn)
    assert done.changed == min(rows, EXPIRE_BATCH)
    assert (done.again_in_s is not None) is more
    assert database.one("SELECT count(*) FROM pgqueue.dedup_keys") == max(0, rows - EXPIRE_BATCH)


@pytest.mark.proves("P23")
@pytest.mark.parametrize(
    ("rows", "first", "more"),
    [
        (LETTERS_BATCH - 1, LETTERS_BATCH - 1, False),
        (LETTERS_BATCH, LETTERS_BATCH, True),
        (LETTERS_BATCH + 1, LETTERS_BATCH, True),
    ],
)
@pytest.mark.parametrize("redriven", [True, False])
def test_letters_go_in_steps_and_waiting_ones_only_when_asked(
    database: Database, rows: int, first: int, more: bool, redriven: bool
) -> None:
    conn = database.connect()
    conn.execute(
        """INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, attempts, max_attempts, first_failed_at, failed_at,
             created_at, job_created_at, redriven_as, redriven_at)
           SELECT i, 'q', 't', '{}', 5, 'gave_up', 1, 1, m.at, m.at, m.at, m.at, CASE WHEN %s THEN i + 100000 END, CASE WHEN %s THEN m.at END
           FROM generate_series(1, %s) i, (SELECT clock_timestamp() - interval '50 days' AS at) m""",
        [redriven, redriven, rows],
    )
    kept = dead_letters_duty(redriven_days=60, waiting_days=0, actor="worker:1").run(conn)
    assert (kept.changed, kept.again_in_s) == (0, None)
    done = dead_letters_duty(redriven_days=40, waiting_days=40, actor="worker:1").run(conn)
    assert done.changed == first
    assert (done.again_in_s is not None) is more
    assert database.one("SELECT count(*) FROM pgqueue.dead_letter_jobs") == rows - first
