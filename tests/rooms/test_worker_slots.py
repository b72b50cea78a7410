"""What a worker may forget and what it must not: claims under a lapsed lease, slots of stuck handlers, forked children."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.wait import wait_for

from pgqueue import AsyncJobContext, JobContext, Retry, Worker

ONCE = Retry(max_retries=0)
SHORT_LEASE = {"heartbeat_s": 0.2, "lease_s": 1, "tcp_user_timeout_s": 0.5, "poll_max_s": 0.5}


@contextmanager
def no_beats(database: Database) -> Iterator[None]:
    """Somebody locks the workers' rows: no beat goes through, and nobody can declare anyone dead either."""
    with psycopg.connect(database.dsn) as admin:
        admin.execute("SELECT FROM pgqueue.workers FOR UPDATE")
        yield
        admin.rollback()


@pytest.mark.proves("P6", "F29")
@pytest.mark.parametrize("kind", ["sync", "async", "group"])
def test_jobs_not_started_because_the_lease_ran_out_are_given_back(
    make_site: Callable[..., Any], kind: str
) -> None:
    """They were once dropped: with the next good beat the worker lived on, and its forgotten jobs ran for ever."""
    site = make_site(buffer_s=30, **SHORT_LEASE)
    gate = threading.Event()
    at_gate = threading.Event()

    @site.app.task(name="gate", priority=4)
    def wait_at_gate() -> None:
        at_gate.set()
        gate.wait(30)

    def sync_plain() -> None:
        """Quick."""

    async def async_plain() -> None:
        """Quick."""

    plain = site.app.task(name="plain", group_commit=8 if kind == "group" else 1)(
        async_plain if kind == "async" else sync_plain
    )
    plain.using(priority=3).enqueue_many(None, [{}] * 200)
    worker = site.start(concurrency=1)
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.job_history") == 200, what="a known speed")
    wait_at_gate.enqueue(None)
    assert at_gate.wait(10)
    plain.using(priority=5).enqueue_many(None, [{}] * 50)
    wait_for(
        lambda: site.one("SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'") > 1,
        what="jobs in the buffer behind the one that runs",
    )
    with no_beats(site.database):
        wait_for(lambda: not worker.state.may_start(), what="the lease to run out")
        gate.set()
        wait_for(lambda: not worker.state.running, what="the slot to be free")
        wait_for(
            lambda: site.one("SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'") == 0,
            what="everything that did not start to be given back",
        )
        assert site.one("SELECT count(*) FROM pgqueue.jobs WHERE state = 'ready' AND attempt = 0") == 50
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.jobs") == 0, 20, what="the rest to be done")
    assert site.one("SELECT max(attempts) FROM pgqueue.job_history") == 1


@pytest.mark.proves("F6")
def test_handlers_that_are_late_but_return_do_not_wear_the_worker_out(site: Any) -> None:
    """Late ones were once counted for good, and the process left after a few of them."""

    @site.app.task(name="late", timeout="60ms", retry=ONCE)
    def late() -> None:
        time.sleep(0.2)

    @site.app.task(name="ok")
    def ok() -> None:
        """Needs a slot."""

    worker = site.start(concurrency=1)
    late.enqueue_many(None, [{}] * 8)
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.dead_letter_jobs") == 8, what="eight timeouts")
    wait_for(lambda: not worker.state.stuck, what="all of them to have returned")
    site.wait_state(ok.enqueue(None).id, "succeeded")
    assert site.stop() == [0]


@pytest.mark.proves("F6")
def test_a_worker_whose_slots_are_stuck_for_good_leaves_to_be_restarted(site: Any) -> None:
    release = threading.Event()

    @site.app.task(name="stuck", timeout="50ms", retry=ONCE)
    def stuck() -> None:
        release.wait(60)

    stuck.enqueue_many(None, [{}] * 4)
    try:
        assert site.app.worker(concurrency=1).run() == 1
    finally:
        release.set()
    assert site.one("SELECT count(*) FROM pgqueue.dead_letter_jobs") == 4


@pytest.mark.parametrize("options", [{}, {"batch": 4}, {"group_commit": 4}], ids=["single", "batch", "group"])
def test_a_timeout_that_comes_just_after_the_handlers_return_takes_nothing(
    site: Any, options: dict[str, int]
) -> None:
    """The slot was once given up a second time, and the worker then ran more handlers than it has slots."""
    seen: list[Any] = []
    worker: Worker | None = None

    def look(*_: Any) -> None:
        assert worker is not None
        seen.extend(worker.state.running.values())

    def handler(ctx: Any) -> None:
        look()

    def batch(ctx: Any, jobs: list[Any]) -> None:
        look()

    task = site.app.task(name="t", timeout="30s", **options)(batch if "batch" in options else handler)
    worker = site.start(concurrency=1)
    task.enqueue(None)
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.job_history") == 1, what="the run")
    (pool,) = worker._pools
    wait_for(lambda: not worker.state.running and pool.running == 0, what="the slot to be free")
    threads = threading.active_count()
    worker._time_out(seen[0])
    assert pool.running == 0
    assert threading.active_count() == threads
    assert not worker.state.stuck
    task.enqueue(None)
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.job_history") == 2, what="the slot at work again")


def test_a_halved_batch_keeps_its_slot(site: Any) -> None:
    """Each half is a run of its own inside the first one's; none of them was given up."""

    @site.app.task(name="b", batch=8, timeout="30s", retry=ONCE)
    def b(ctx: Any, jobs: list[Any]) -> None:
        if any(job.args["n"] == 3 for job in jobs):
            raise ValueError("poison")

    worker = site.start(concurrency=1)
    b.enqueue_many(None, [{"n": n} for n in range(8)])
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.jobs") == 0, what="the first batch")
    b.enqueue_many(None, [{"n": n} for n in range(10, 18)])
    wait_for(
        lambda: site.one("SELECT count(*) FROM pgqueue.jobs") == 0, what="the next batch, in the same slot"
    )
    assert site.one("SELECT count(*) FROM pgqueue.dead_letter_jobs") == 1
    (pool,) = worker._pools
    wait_for(lambda: pool.running == 0, what="the slot to be free")


@pytest.mark.proves("F6")
def test_a_batch_that_times_out_after_it_was_halved_frees_its_slot_once(site: Any) -> None:
    release = threading.Event()

    @site.app.task(name="b", batch=8, timeout="300ms", retry=ONCE)
    def b(ctx: Any, jobs: list[Any]) -> None:
        if len(jobs) > 1:
            raise ValueError("one of them")
        if jobs[0].args["n"] == 3:
            release.wait(30)

    worker = site.start(concurrency=1)
    b.enqueue_many(None, [{"n": n} for n in range(8)])
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.dead_letter_jobs") == 1, what="the timeout")
    release.set()
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.jobs") == 0, what="the others")
    (pool,) = worker._pools
    wait_for(lambda: not worker.state.stuck and not worker.state.running, what="the late one to return")
    assert pool.running == 0
    assert site.one("SELECT count(*) FROM pgqueue.job_history") == 7


def fork_and(child: Callable[[], None]) -> int:
    """Fork; the child does its part and comes back from the handler if it can. Its exit code."""
    pid = os.fork()
    if pid == 0:
        child()
        raise SystemExit(0)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("the child of a handler's fork lived on as a second worker")


@pytest.mark.proves("F7", "P3")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["sync", "async", "group"])
def test_a_child_that_a_handler_forks_touches_nothing_of_its_parents(site: Any, kind: str) -> None:
    """It came back from the handler, settled its parent's job over its parent's socket, and took the next one."""

    def sync_forks(ctx: JobContext) -> None:
        ctx.conn.execute("INSERT INTO effects VALUES (%s, 'fork')", (ctx.job.id,))
        assert fork_and(lambda: None) != 0
        assert fork_and(ctx.conn.close) != 0
        ctx.conn.execute("INSERT INTO effects VALUES (%s, 'after')", (ctx.job.id,))

    async def async_forks(ctx: AsyncJobContext) -> None:
        await ctx.conn.execute("INSERT INTO effects VALUES (%s, 'fork')", (ctx.job.id,))
        assert fork_and(lambda: None) != 0
        await ctx.conn.execute("INSERT INTO effects VALUES (%s, 'after')", (ctx.job.id,))

    task = site.app.task(name="forks", retry=ONCE, group_commit=4 if kind == "group" else 1)(
        async_forks if kind == "async" else sync_forks
    )
    task.enqueue_many(None, [{}] * 3)
    site.drain(concurrency=1)
    assert site.rows("SELECT error_message FROM pgqueue.dead_letter_jobs") == []
    assert site.one("SELECT count(*) FROM pgqueue.job_history") == 3
    assert site.rows("SELECT note, count(*) FROM effects GROUP BY 1 ORDER BY 1") == [
        ("after", 3),
        ("fork", 3),
    ]


def test_async_jobs_behind_a_sync_one_get_its_slot(make_site: Callable[..., Any]) -> None:
    """Nobody told the loop that the slot was free, and with the buffer full nothing new was claimed either."""
    site = make_site(buffer_s=30)
    gate, at_gate = threading.Event(), threading.Event()

    @site.app.task(name="gate", priority=4)
    def wait_at_gate() -> None:
        at_gate.set()
        gate.wait(30)

    @site.app.task(name="plain")
    async def plain() -> None:
        """Quick."""

    plain.using(priority=3).enqueue_many(None, [{}] * 100)
    site.start(concurrency=1)
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.job_history") == 100, what="a known speed")
    wait_at_gate.enqueue(None)
    assert at_gate.wait(10)
    plain.enqueue_many(None, [{}] * 20)
    wait_for(
        lambda: site.one("SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'") > 1,
        what="jobs in the buffer behind the one that runs",
    )
    gate.set()
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.jobs") == 0, what="the rest to be done")
