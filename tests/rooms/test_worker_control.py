"""Time, cancel, pause, timeout, stop: what a running worker hears of and how soon."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rig.proc import Proc
from rig.wait import wait_for

from pgqueue import AsyncJobContext, JobContext, Retry

ONCE = Retry(max_retries=0)


@pytest.mark.proves("P8")
def test_deferred_jobs_start_on_time_and_never_early(site: Any) -> None:
    @site.app.task(name="t")
    def t() -> None:
        """Runs late enough."""

    site.start()
    jobs = [t.using(delay=delay).enqueue(None).id for delay in (0.3, 0.9, 1.5)]
    for job_id in jobs:
        site.wait_state(job_id, "succeeded")
    late = site.rows(
        "SELECT date_part('epoch', started_at - due_at) FROM pgqueue.job_history ORDER BY job_id"
    )
    assert all(0 <= row[0] < 2 for row in late), late


@pytest.mark.proves("P10")
def test_without_wake_ups_polling_finds_the_job(make_site: Any) -> None:
    site = make_site(wakeups=False, poll_min_s=0.05, poll_max_s=0.2)

    @site.app.task(name="t")
    def t() -> None:
        """Found by looking."""

    site.start()
    job = t.enqueue(None)
    site.wait_state(job.id, "succeeded", 5)
    assert site.one("SELECT count(*) FROM pgqueue.sleepers") == 0


@pytest.mark.proves("P10", "F28")
def test_an_idle_worker_asks_for_wake_ups_and_survives_its_listener(site: Any) -> None:
    @site.app.task(name="t")
    def t() -> None:
        """Woken."""

    site.start()
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.sleepers") == 1, what="a sleeper")
    site.wait_state(t.enqueue(None).id, "succeeded")
    site.conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pgqueue/listen%%'"
    )
    site.wait_state(t.enqueue(None).id, "succeeded", 10)
    site.stop()
    assert site.one("SELECT count(*) FROM pgqueue.sleepers") == 0


@pytest.mark.proves("P10")
def test_a_slow_steady_flow_is_heard_of_and_not_looked_for(make_site: Any) -> None:
    """A job comes before the longest pause between two looks is over, over and over; the worker asks for wake-ups all the same."""
    site = make_site(poll_min_s=10, poll_max_s=10)

    @site.app.task(name="t")
    def t() -> None:
        """One of many."""

    site.start()
    for _ in range(40):
        t.enqueue(None)

    def flows() -> bool:
        site.wait_state(t.enqueue(None).id, "succeeded")
        return bool(site.one("SELECT count(*) FROM pgqueue.sleepers"))

    wait_for(flows, 30, "a sleeper while jobs come")


@pytest.mark.proves("F10")
@pytest.mark.parametrize("room", ["claim", "settle", "heart", "upkeep", "job"])
def test_each_room_reconnects(site: Any, room: str) -> None:
    @site.app.task(name="t", retry=Retry(max_retries=5, initial_delay="20ms"))
    def t(ctx: JobContext) -> None:
        ctx.conn.execute("INSERT INTO effects VALUES (%s, 't')", (ctx.job.id,))

    @site.app.task(name="plain")
    def plain() -> None:
        """Touches no transaction, so the settler settles it."""

    site.start()
    site.wait_state(plain.enqueue(None).id, "succeeded")
    t.enqueue_many(None, [{}] * 30)
    wait_for(
        lambda: site.one("SELECT count(*) FROM pgqueue.job_history WHERE task = 't'") > 0,
        what="work under way",
    )
    ended = site.one(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE %s AND datname = current_database()",
        f"pgqueue/{room}%",
    )
    assert ended > 0
    t.enqueue_many(None, [{}] * 30)
    plain.enqueue_many(None, [{}] * 30)
    wait_for(
        lambda: site.one("SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded'") == 91,
        30,
        what="all done",
    )
    assert site.one("SELECT count(*) FROM effects") == 60


@pytest.mark.proves("F54")
def test_a_living_worker_that_loses_its_lock_connection_takes_the_lock_again(site: Any) -> None:
    release = threading.Event()

    @site.app.task(name="t")
    def t(ctx: JobContext) -> None:
        ctx.conn.execute("INSERT INTO effects VALUES (%s, 't')", (ctx.job.id,))
        release.wait(30)

    site.start()
    job = t.enqueue(None)
    site.wait_state(job.id, "running")
    assert (
        site.one(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'pgqueue/heart%%' AND datname = current_database()"
        )
        == 1
    )
    cut_at = site.one("SELECT clock_timestamp()")
    wait_for(
        lambda: site.one(
            "SELECT min(beat_at) > %s + interval '3 s' FROM pgqueue.workers WHERE status = 'live'", cut_at
        ),
        15,
        what="a beat well after the cut",
    )
    assert site.one("SELECT count(*) FROM pgqueue.workers") == 1  # nobody declared it dead
    assert (
        site.one(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        == 1
    )
    release.set()
    site.wait_state(job.id, "succeeded")
    assert site.one("SELECT attempts FROM pgqueue.job_history") == 1


@pytest.mark.proves("P19")
def test_cancel_while_running(make_site: Any) -> None:
    site = make_site(heartbeat_s=0.2, lease_s=8)
    started = threading.Event()

    @site.app.task(name="sync", retry=ONCE)
    def sync(ctx: JobContext) -> None:
        ctx.conn.execute("INSERT INTO effects VALUES (%s, 'sync')", (ctx.job.id,))
        started.set()
        wait_for(lambda: ctx.cancelled, what="to be told")
        raise RuntimeError(ctx.cancel_reason)

    @site.app.task(name="loop", retry=ONCE)
    async def loop(ctx: AsyncJobContext) -> None:
        await ctx.conn.execute("INSERT INTO effects VALUES (%s, 'loop')", (ctx.job.id,))
        started.set()
        await asyncio.sleep(60)

    site.start()
    for task in (sync, loop):
        started.clear()
        job = task.enqueue(None)
        assert started.wait(10)
        assert site.app.jobs.cancel(job.id, reason="rider changed her mind") == {job.id: "requested"}
        site.wait_state(job.id, "cancelled")
    assert site.one("SELECT count(*) FROM effects") == 0


@pytest.mark.proves("P19")
def test_a_cancelled_waiting_job_never_starts(site: Any) -> None:
    ran = []

    @site.app.task(name="t")
    def t() -> None:
        ran.append(1)

    job = t.using(delay="1h").enqueue(None)
    assert site.app.jobs.cancel(job.id) == {job.id: "cancelled"}
    assert site.app.jobs.cancel(job.id) == {job.id: "ended"}
    site.drain()
    assert ran == []
    assert site.state(job.id) == "cancelled"


@pytest.mark.proves("P20")
def test_after_pause_returns_nothing_starts(make_site: Any) -> None:
    site = make_site(heartbeat_s=0.2, lease_s=8)

    @site.app.task(name="t")
    def t() -> None:
        time.sleep(0.01)

    site.start(concurrency=2)
    t.enqueue_many(None, [{}] * 2000)
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.job_history") > 10, what="work under way")
    site.app.queues.pause("default", reason="deploy")
    paused_at = site.one("SELECT clock_timestamp()")
    wait_for(
        lambda: site.one(
            "SELECT min(beat_at) > %s + interval '400 ms' FROM pgqueue.workers WHERE status = 'live'",
            paused_at,
        ),
        what="time in which something could have started",
    )
    later = site.one(
        "SELECT count(*) FROM pgqueue.job_history WHERE finished_at - run_s * interval '1 s' > %s + interval '5 ms'",
        paused_at,
    )
    assert later == 0
    assert site.one("SELECT count(*) FROM pgqueue.jobs WHERE state = 'ready' AND attempt = 0") > 100
    assert site.app.queues.resume("default")
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.jobs") == 0, 40, what="the rest")


@pytest.mark.proves("F6")
def test_a_timeout_ends_the_claim_of_sync_and_async_handlers(site: Any) -> None:
    release = threading.Event()

    @site.app.task(name="stuck", timeout="300ms", retry=ONCE)
    def stuck(ctx: JobContext) -> None:
        ctx.conn.execute("INSERT INTO effects VALUES (%s, 'stuck')", (ctx.job.id,))
        release.wait(30)

    @site.app.task(name="asleep", timeout="300ms", retry=ONCE)
    async def asleep(ctx: AsyncJobContext) -> None:
        await asyncio.sleep(60)

    @site.app.task(name="ok")
    def ok() -> None:
        """Needs the slot."""

    site.start(concurrency=1)
    jobs = [stuck.enqueue(None), asleep.enqueue(None)]
    for job in jobs:
        site.wait_state(job.id, "dead")
    assert {row[0] for row in site.rows("SELECT error_type FROM pgqueue.dead_letter_jobs")} <= {
        "JobTimeout",
        "pgqueue.core.decide.JobTimeout",
    }
    site.wait_state(ok.enqueue(None).id, "succeeded")  # a fresh thread has the slot
    release.set()
    site.stop()
    assert site.one("SELECT count(*) FROM effects") == 0


APP = """
import os, time
from pgqueue import App, Retry
app = App()

@app.task(name="slow", retry=Retry(max_retries=0))
def slow(seconds: float) -> None:
    open(os.environ["STARTED"], "a").write("x")
    time.sleep(seconds)
"""


@contextlib.contextmanager
def process(site: Any, folder: Path, *options: str, **env: str) -> Iterator[Proc]:
    (folder / "slowapp.py").write_text(APP)
    with Proc(
        [sys.executable, "-m", "pgqueue", "worker", "-A", "slowapp:app", *options],
        env={
            "PGQUEUE_DATABASE_URL": site.database.dsn,
            "PYTHONPATH": str(folder),
            "STARTED": str(folder / "started"),
            **env,
        },
    ) as worker:
        yield worker


def enqueue_slow(site: Any, seconds: float, count: int) -> None:
    site.conn.execute(
        "SELECT pgqueue.enqueue('slow', jsonb_build_object('seconds', %s::float8)) FROM generate_series(1, %s)",
        (seconds, count),
    )


@pytest.mark.proves("P18", "F8")
def test_sigterm_finishes_what_runs_and_gives_the_rest_back(site: Any, tmp_path: Path) -> None:
    enqueue_slow(site, 1.0, 6)
    with process(site, tmp_path, "-c", "2") as worker:
        wait_for(
            lambda: (tmp_path / "started").exists() and len((tmp_path / "started").read_text()) == 2,
            20,
            what="two at work",
        )
        worker.popen.send_signal(signal.SIGTERM)
        assert worker.popen.wait(20) == 0, worker.stderr
    assert site.one("SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded'") == 2
    assert site.rows("SELECT state, attempt, count(*) FROM pgqueue.jobs GROUP BY 1, 2") == [("ready", 0, 4)]
    assert site.rows("SELECT status FROM pgqueue.workers") == [("stopped",)]
    assert (
        site.one(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgqueue/%%' AND datname = current_database()"
        )
        == 0
    )


@pytest.mark.proves("P18", "F8")
def test_a_job_that_outlasts_the_grace_is_given_back_without_an_attempt(site: Any, tmp_path: Path) -> None:
    enqueue_slow(site, 60, 1)
    with process(site, tmp_path, PGQUEUE_GRACE_S="1s") as worker:
        wait_for((tmp_path / "started").exists, 20, what="at work")
        worker.popen.send_signal(signal.SIGTERM)
        assert worker.popen.wait(20) == 0, worker.stderr
    assert site.rows("SELECT state, attempt FROM pgqueue.jobs") == [("ready", 0)]


@pytest.mark.proves("P18", "F8")
def test_a_second_signal_stops_now(site: Any, tmp_path: Path) -> None:
    enqueue_slow(site, 60, 1)
    with process(site, tmp_path) as worker:
        wait_for((tmp_path / "started").exists, 20, what="at work")
        worker.popen.send_signal(signal.SIGTERM)
        wait_for(
            lambda: (
                site.one(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgqueue/claim%%'"
                )
                == 0
            ),
            10,
            what="the first to be heard",
        )
        worker.popen.send_signal(signal.SIGTERM)
        assert worker.popen.wait(5) == 128 + signal.SIGTERM
    assert site.one("SELECT state FROM pgqueue.jobs") == "running"


def test_drain_leaves_when_nothing_is_left(site: Any, tmp_path: Path) -> None:
    enqueue_slow(site, 0, 5)
    site.conn.execute("SELECT pgqueue.enqueue('slow', '{\"seconds\": 0}', delay => '1 hour')")
    with process(site, tmp_path, "--drain") as worker:
        assert worker.popen.wait(30) == 0, worker.stderr
    assert site.one("SELECT count(*) FROM pgqueue.job_history") == 5
    assert site.one("SELECT count(*) FROM pgqueue.jobs WHERE state = 'scheduled'") == 1


@pytest.mark.proves("I26", "F37")
def test_a_worker_refuses_another_schema(site: Any, tmp_path: Path) -> None:
    site.conn.execute(
        "UPDATE pgqueue.alembic_version SET version_num = 'pgqueue_9999', code_from = 'pgqueue_9998'"
    )
    with process(site, tmp_path) as worker:
        assert worker.popen.wait(20) == 6
        assert "pgqueue_9999" in worker.stderr
        assert "Traceback" not in worker.stderr
