"""Tasks with `batch_window=`: the jobs of a window and key go to one call, whichever workers look on; and who fails alone."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from rig.wait import wait_for

from pgqueue import App, AsyncJobContext, ConfigurationError, InvalidInput, Reject, Retry, Snooze
from pgqueue.core.events import Warned

ONCE = Retry(max_retries=0)
EFFECT = "INSERT INTO effects VALUES (%s, pg_current_xact_id()::text)"
LEFT = "SELECT count(*) FROM pgqueue.jobs"


def end_windows(site: Any) -> None:
    """The windows end now: times are moved in the table, the clock is never faked."""
    site.conn.execute(
        "UPDATE pgqueue.jobs SET run_at = date_trunc('second', clock_timestamp()) - interval '1 s' WHERE hold_reason = 'window'"
    )


class Calls:
    """Which jobs came together."""

    def __init__(self) -> None:
        self.seen: list[list[Any]] = []

    def sizes(self) -> list[int]:
        return sorted(map(len, self.seen), reverse=True)


def cells(site: Any, calls: Calls, kind: str = "sync", **options: Any) -> Any:
    """A task that collects by cell for an hour, and writes down what came together and in which transaction."""

    def sync_cells(ctx: Any, jobs: list[Any]) -> None:
        calls.seen.append(jobs)
        ctx.conn.cursor().executemany(EFFECT, [(job.id,) for job in jobs])

    async def async_cells(ctx: AsyncJobContext, jobs: list[Any]) -> None:
        calls.seen.append(jobs)
        for job in jobs:
            await ctx.conn.execute(EFFECT, (job.id,))

    given = {"batch_window": "1h", "batch_key": "cell", "retry": ONCE, **options}
    return site.app.task(name="cells", **given)(async_cells if kind == "async" else sync_cells)


@pytest.mark.proves("P3", "P6")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_each_window_and_key_is_one_call_in_one_transaction_whoever_looks_on(site: Any, kind: str) -> None:
    calls = Calls()
    task = cells(site, calls, kind)
    jobs = task.enqueue_many(None, [{"cell": f"c{n % 3}"} for n in range(120)])
    alone = task.enqueue(None, cell="c9")
    for _ in range(3):
        site.start(concurrency=2)
    assert site.state(jobs[0].id) == site.state(alone.id) == "held"
    end_windows(site)
    wait_for(lambda: site.one(LEFT) == 0, 30, what="the windows' calls")
    assert calls.sizes() == [40, 40, 40, 1]
    assert all(len({job.args["cell"] for job in call}) == 1 for call in calls.seen)
    assert site.rows(
        "SELECT h.args->>'cell', count(*), count(DISTINCT e.note), max(h.attempts) FROM pgqueue.job_history h"
        " JOIN effects e USING (job_id) GROUP BY 1 ORDER BY 1"
    ) == [("c0", 40, 1, 1), ("c1", 40, 1, 1), ("c2", 40, 1, 1), ("c9", 1, 1, 1)]
    assert site.one("SELECT count(*) FROM effects") == 121
    assert site.one("SELECT count(*) FROM pgqueue.job_transitions") == 0, "the plain path needs no rows"


@pytest.mark.proves("P8")
def test_nothing_of_a_window_starts_before_its_end(site: Any) -> None:
    calls = Calls()
    task = cells(site, calls, batch_window="1s")
    site.start(concurrency=1)
    task.enqueue_many(None, [{"cell": "c"}] * 50)
    wait_for(lambda: site.one(LEFT) == 0, 30, what="the window's call")
    assert site.one("SELECT bool_and(started_at >= due_at AND due_at > enqueued_at) FROM pgqueue.job_history")
    # One statement enqueued them, so one window has them all, and it ended at a whole second.
    assert calls.sizes() == [50]
    assert site.one("SELECT count(DISTINCT due_at) FROM pgqueue.job_history") == 1
    assert site.one("SELECT bool_and(date_trunc('second', due_at) = due_at) FROM pgqueue.job_history")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_window_larger_than_the_batch_comes_in_several_calls(site: Any, kind: str) -> None:
    calls = Calls()
    cells(site, calls, kind, batch=40).enqueue_many(None, [{"cell": "c"}] * 100)
    end_windows(site)
    site.drain(concurrency=2)
    assert calls.sizes() == [40, 40, 20]
    assert site.one("SELECT count(DISTINCT job_id) FROM effects") == 100


@pytest.mark.proves("F60", "P3", "P6")
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("opens", [True, False], ids=["transaction", "no transaction"])
def test_a_bad_member_is_singled_out_and_alone_uses_its_attempts_up(
    site: Any, kind: str, opens: bool
) -> None:
    sizes: list[int] = []

    def look(jobs: list[Any]) -> None:
        sizes.append(len(jobs))
        if any(job.args["n"] == 13 for job in jobs):
            raise ValueError("poison")

    def sync_batch(ctx: Any, jobs: list[Any]) -> None:
        if opens:
            ctx.conn.cursor().executemany(EFFECT, [(job.id,) for job in jobs])
        look(jobs)

    async def async_batch(ctx: AsyncJobContext, jobs: list[Any]) -> None:
        for job in jobs if opens else ():
            await ctx.conn.execute(EFFECT, (job.id,))
        look(jobs)

    task = site.app.task(
        name="b", batch_window="1h", retry=Retry(max_retries=2, initial_delay="10ms", max_delay="20ms")
    )(async_batch if kind == "async" else sync_batch)
    jobs = task.enqueue_many(None, [{"n": n} for n in range(32)])
    end_windows(site)
    site.drain(concurrency=1)
    assert site.rows("SELECT job_id, reason, attempts, error_message FROM pgqueue.dead_letter_jobs") == [
        (jobs[13].id, "max_retries", 3, "poison")
    ]
    assert site.rows("SELECT count(*), max(attempts) FROM pgqueue.job_history") == [(31, 1)]
    # 32, then each level of halves, then the two retries of the one.
    assert Counter(sizes) == {32: 1, 16: 2, 8: 2, 4: 2, 2: 2, 1: 4}
    if opens:
        assert site.one("SELECT count(*) FROM effects e JOIN pgqueue.job_history h USING (job_id)") == 31
        assert site.one("SELECT count(*) FROM effects") == 31


@pytest.mark.proves("P6")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_members_may_end_differently(site: Any, kind: str) -> None:
    def judge(ctx: Any, jobs: list[Any]) -> None:
        for job in jobs:
            how = job.args["how"]
            if how == "reject":
                ctx.fail(job, Reject("no such cell"))
            elif how == "retry" and job.attempt == 1:
                ctx.fail(job, "not yet")
            elif how == "snooze" and job.wait_s > -1 and not snoozed:
                snoozed.append(job.id)
                ctx.fail(job, Snooze(0.01))

    async def async_judge(ctx: Any, jobs: list[Any]) -> None:
        judge(ctx, jobs)

    snoozed: list[int] = []
    task = site.app.task(name="b", batch_window="1h", retry=Retry(max_retries=3, initial_delay="10ms"))(
        async_judge if kind == "async" else judge
    )
    jobs = dict(
        zip(
            ("ok", "reject", "retry", "snooze"),
            task.enqueue_many(None, [{"how": how} for how in ("ok", "reject", "retry", "snooze")]),
            strict=True,
        )
    )
    end_windows(site)
    site.drain()
    assert site.rows("SELECT job_id, reason, error_message FROM pgqueue.dead_letter_jobs") == [
        (jobs["reject"].id, "rejected", "no such cell")
    ]
    assert dict(site.rows("SELECT job_id, attempts FROM pgqueue.job_history")) == {
        jobs["ok"].id: 1,
        jobs["retry"].id: 2,
        jobs["snooze"].id: 1,
    }


def test_jobs_that_failed_together_come_together_again(site: Any) -> None:
    """On a later attempt they have left their window, and are an ordinary batch."""
    sizes: list[int] = []
    down = threading.Event()
    down.set()

    @site.app.task(name="b", batch=64, batch_window="1h", retry=Retry(max_retries=5, initial_delay=0.01))
    def b(ctx: Any, jobs: list[Any]) -> None:
        if down.is_set():
            for job in jobs:
                ctx.fail(job, "the service is down")
            return
        sizes.append(len(jobs))

    ids = [job.id for job in b.enqueue_many(None, [{}] * 64)]
    end_windows(site)
    worker = site.start(concurrency=1)
    wait_for(
        lambda: site.one("SELECT count(*) FROM pgqueue.job_transitions WHERE reason = 'retry'") >= 64,
        what="failures",
    )
    worker.stop()
    assert site.stop() == [0]
    down.clear()
    site.conn.execute("UPDATE pgqueue.jobs SET run_at = clock_timestamp() WHERE state = 'scheduled'")
    site.drain(concurrency=1)
    assert sum(sizes) == len(ids) == 64
    assert len(sizes) < 64


@pytest.mark.proves("F60")
def test_a_cancelled_member_never_starts_and_the_others_are_handed_over(site: Any) -> None:
    calls = Calls()
    jobs = cells(site, calls).enqueue_many(None, [{"cell": "c"}] * 10)
    assert site.app.jobs.cancel(jobs[4].id) == {jobs[4].id: "cancelled"}
    assert site.app.jobs.reschedule(jobs[5].id, delay="1h") == {jobs[5].id: "rescheduled"}
    assert site.app.jobs.run_now(jobs[6].id) == {jobs[6].id: "freed"}
    end_windows(site)
    site.drain()
    assert calls.sizes() == [7, 1]
    assert site.state(jobs[5].id) == "scheduled"
    assert site.state(jobs[6].id) == "succeeded"


@pytest.mark.proves("F60", "P1")
def test_what_commits_after_its_windows_call_comes_in_a_further_one(site: Any) -> None:
    calls = Calls()
    task = cells(site, calls, batch_window="1s")
    site.start(concurrency=1)
    with psycopg.connect(site.database.dsn) as slow:
        late = task.enqueue_many(slow, [{"cell": "c"}] * 3)
        prompt = task.enqueue_many(None, [{"cell": "c"}] * 2)
        wait_for(
            lambda: site.state(prompt[0].id) == "succeeded", 30, what="the call of those that were there"
        )
        # Theirs may be the window before; either way it has ended, and nobody can see them yet.
    wait_for(lambda: site.one(LEFT) == 0, 30, what="a call for the late ones")
    assert [len(call) for call in calls.seen] == [2, 3]
    assert {job.id for job in calls.seen[1]} == {job.id for job in late}


@pytest.mark.proves("P18", "F60")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_worker_that_stops_gives_its_windows_back_whole(make_site: Callable[..., Any], kind: str) -> None:
    site = make_site(grace_s=0.2)
    calls = Calls()
    task = cells(site, calls, kind)
    release = threading.Event()
    at_work = threading.Event()

    @site.app.task(name="slow", batch_window="1h", batch_key="cell")
    def slow(ctx: Any, jobs: list[Any]) -> None:
        ctx.conn.cursor().executemany(EFFECT, [(job.id,) for job in jobs])
        calls.seen.append(jobs)
        if not at_work.is_set():
            at_work.set()
            release.wait(30)

    slow.using(priority=0).enqueue_many(None, [{"cell": "c"}] * 5)
    task.enqueue_many(None, [{"cell": f"c{n % 4}"} for n in range(20)])
    end_windows(site)
    site.start(concurrency=1)
    assert at_work.wait(20)
    try:
        # One call runs, with what it gathered; leaders of the others may wait behind it.
        assert site.stop() == [0]
    finally:
        release.set()
    assert site.rows(
        "SELECT state, hold_reason, attempt, count(*) FROM pgqueue.jobs WHERE state <> 'ready' GROUP BY 1, 2, 3"
    ) == [("held", "window", 0, site.one("SELECT count(*) FROM pgqueue.jobs WHERE state <> 'ready'"))]
    assert site.one("SELECT count(*) FROM effects") == 0
    calls.seen.clear()
    site.drain(concurrency=2)
    assert calls.sizes() == [5, 5, 5, 5, 5]
    assert site.rows("SELECT count(*), count(DISTINCT job_id) FROM effects") == [(25, 25)]
    assert site.one("SELECT max(attempts) FROM pgqueue.job_history") == 1


def test_a_drain_does_not_wait_for_a_window_but_ends_what_has_ended(site: Any) -> None:
    calls = Calls()
    task = cells(site, calls)
    waits = task.enqueue(None, cell="c")
    site.drain()
    assert site.state(waits.id) == "held"
    end_windows(site)
    more = task.enqueue(None, cell="c")
    site.drain()
    assert (site.state(waits.id), site.state(more.id)) == ("succeeded", "held")


def test_a_paused_queue_keeps_its_windows_whole(site: Any) -> None:
    calls = Calls()
    cells(site, calls).enqueue_many(None, [{"cell": "c"}] * 20)
    site.start(concurrency=1)
    site.app.queues.pause("default")
    end_windows(site)
    wait_for(
        lambda: site.one("SELECT count(*) FROM pgqueue.jobs WHERE state = 'ready'") == 1, what="a leader"
    )
    site.app.queues.resume("default")
    wait_for(lambda: site.one(LEFT) == 0, what="the window's call")
    assert calls.sizes() == [20]


def test_a_producer_without_the_code_fills_the_same_window(site: Any) -> None:
    calls = Calls()
    task = cells(site, calls)
    site.drain()  # a worker that knows the task has started once
    stranger = App(site.database.dsn)
    options = {"queue": "default", "priority": 5, "retry": ONCE}
    stranger.enqueue("cells", {"cell": "c"}, **options)
    stranger.enqueue("cells", {"cell": "c"}, idempotency_key="k")
    stranger.close()
    site.conn.execute("SELECT pgqueue.enqueue('cells', '{\"cell\": \"c\"}')")
    with psycopg.connect(site.database.dsn) as conn:
        task.enqueue(conn, cell="c")
        task.using(headers={"h": "v"}).enqueue(conn, cell="c")
        task.enqueue_many(conn, [{"cell": "c"}] * 2)
    assert site.one("SELECT count(*) FROM pgqueue.jobs WHERE hold_reason = 'window' AND batch_key = 'c'") == 7
    end_windows(site)
    site.drain()
    assert calls.sizes() == [7]


def test_without_an_answer_the_leader_runs_alone_and_the_others_come_in_another_call(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgqueue.worker import windows

    calls = Calls()
    real = windows.statement
    failures = iter([b"SELECT 1 / 0"])
    monkeypatch.setattr(windows, "statement", lambda name: next(failures, None) or real(name))
    monkeypatch.setattr(
        windows, "_parameters", lambda *a, real=windows._parameters: real(*a) if calls.seen else {}
    )
    cells(site, calls).enqueue_many(None, [{"cell": "c"}] * 10)
    end_windows(site)
    site.drain(concurrency=1)
    assert calls.sizes() == [9, 1]
    (warned,) = [e for e in site.events if isinstance(e, Warned) and e.key == "gather_failed"]
    assert "22012" in warned.message


def test_a_batch_of_one_is_handed_over_as_a_list(site: Any) -> None:
    seen: list[Any] = []

    @site.app.task(name="sync_one", batch=1)
    def sync_one(ctx: Any, jobs: list[Any]) -> None:
        seen.append([job.args for job in jobs])

    @site.app.task(name="async_one", batch=1, batch_window="1h")
    async def async_one(jobs: list[Any]) -> None:
        seen.append([job.args for job in jobs])

    sync_one.enqueue(None, n=1)
    async_one.enqueue_many(None, [{"n": 2}, {"n": 2}])
    end_windows(site)
    site.drain()
    assert sorted(args["n"] for (args,) in seen) == [1, 2, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_window": "5"}, "batch_window: has no unit"),
        ({"batch_window": "50ms"}, "batch_window: is too short"),
        ({"batch_window": "32d"}, "batch_window: is too long"),
        ({"batch_window": 0}, "batch_window: is too short"),
        ({"batch_window": "5m", "group_commit": 4}, "give one of them"),
        ({"batch_window": "5m", "batch_key": lambda job: job}, "batch_key is not a name"),
        ({"batch_window": "5m", "batch": 5_001}, "out of range"),
        ({"batch_key": "cell"}, "needs batch= or batch_window="),
    ],
)
def test_a_window_that_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    def task(jobs: list[Any]) -> None:
        """Never run."""

    register: Callable[..., Any] = App("postgresql://nowhere").task(**options)
    with pytest.raises((ConfigurationError, InvalidInput), match=words):
        register(task)
