"""What becomes of a job: succeeded, retried, dead, snoozed, rejected, expired, held; with the rows that say why."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import AsyncJobContext, JobContext, Reject, Retry, RetryAfter, Snooze

QUICK = Retry(max_retries=2, initial_delay="10ms", max_delay="20ms")


def test_a_result_is_stored(site: Any) -> None:
    @site.app.task(name="t")
    def t(a: int) -> dict[str, int]:
        return {"double": a * 2}

    @site.app.task(name="ta")
    async def ta(ctx: AsyncJobContext, a: int) -> list[int]:
        return [a, ctx.job.attempt]

    jobs = [t.enqueue(None, a=4), ta.enqueue(None, a=5)]
    site.drain()
    rows = site.rows(
        "SELECT state, result, attempts, wait_s >= 0, run_s >= 0, claim_id IS NOT NULL FROM pgqueue.job_history ORDER BY job_id"
    )
    assert rows == [
        ("succeeded", {"double": 8}, 1, True, True, True),
        ("succeeded", [5, 1], 1, True, True, True),
    ]
    assert site.app.jobs.wait(jobs[0].id) == {"double": 8}
    assert site.one("SELECT count(*) FROM pgqueue.claims") == 0
    assert site.one("SELECT count(*) FROM pgqueue.job_transitions") == 0  # the plain path needs no rows


@pytest.mark.proves("I5")
def test_an_unstorable_result_leaves_a_marker_and_no_rerun(site: Any) -> None:
    runs = []

    @site.app.task(name="t")
    def t() -> object:
        runs.append(1)
        return {"x": {1, 2}}

    t.enqueue(None)
    site.drain()
    assert site.one("SELECT result ? 'pgqueue_unstorable' FROM pgqueue.job_history")
    assert len(runs) == 1


def test_retry_with_backoff_then_success(site: Any) -> None:
    @site.app.task(name="t", retry=QUICK)
    def t(ctx: JobContext) -> int:
        if ctx.job.attempt < 3:
            raise ValueError(f"attempt {ctx.job.attempt}")
        return ctx.job.attempt

    job = t.enqueue(None)
    site.drain()
    assert site.state(job.id) == "succeeded"
    errors = site.one("SELECT errors FROM pgqueue.job_history")
    assert [(e["attempt"], e["type"], e["message"]) for e in errors] == [
        (1, "ValueError", "attempt 1"),
        (2, "ValueError", "attempt 2"),
    ]
    moves = site.rows(
        "SELECT from_state, to_state, reason, attempt, run_s IS NOT NULL, next_run_at > at FROM pgqueue.job_transitions ORDER BY id"
    )
    assert moves == [
        ("running", "scheduled", "retry", 1, True, True),
        ("running", "scheduled", "retry", 2, True, True),
    ]


@pytest.mark.proves("P6", "P22", "I6")
def test_a_dead_letter_says_everything(site: Any) -> None:
    @site.app.task(name="t", retry=QUICK)
    def t(ride_id: int) -> None:
        raise RuntimeError(f"ride {ride_id}\0 failed at postgresql://u:hunter2@h/db \ud800")

    first, second = t.enqueue(None, ride_id=1), t.enqueue(None, ride_id=2)
    site.drain()
    rows = site.rows(
        "SELECT job_id, reason, error_type, error_message, error_fingerprint, traceback LIKE '%%test_worker_outcomes%%', attempts, max_attempts,"
        " first_failed_at < failed_at, created_at >= failed_at, jsonb_array_length(errors) FROM pgqueue.dead_letter_jobs ORDER BY 1"
    )
    assert [row[0] for row in rows] == [first.id, second.id]
    assert rows[0][1:3] == ("max_retries", "RuntimeError")
    assert "ride 1" in rows[0][3]
    assert "hunter2" not in rows[0][3]
    assert rows[0][4] == rows[1][4]  # the same fault at another id
    assert rows[0][5:] == (True, 3, 3, True, True, 3)
    assert (
        site.one(
            "SELECT count(*) FROM pgqueue.job_transitions WHERE to_state = 'dead' AND actor LIKE 'worker:%%'"
        )
        == 2
    )


def test_handlers_choose_their_fate(site: Any) -> None:
    @site.app.task(name="t", retry=QUICK)
    def t(ctx: JobContext, how: str) -> str:
        seen = site.one("SELECT count(*) FROM effects WHERE note = %s", how)
        site.conn.execute("INSERT INTO effects VALUES (%s, %s)", (ctx.job.id, how))
        if how == "reject":
            raise Reject("card declined")
        if how == "snooze" and seen < 4:
            raise Snooze(0.01)
        if how == "after" and seen < 1:
            raise RetryAfter(0.01)
        return f"{how} {ctx.job.attempt}"

    jobs = {how: t.enqueue(None, how=how).id for how in ("reject", "snooze", "after")}
    site.drain(concurrency=1)
    assert site.rows("SELECT job_id, reason, error_message, attempts FROM pgqueue.dead_letter_jobs") == [
        (jobs["reject"], "rejected", "card declined", 1)
    ]
    results = dict(site.rows("SELECT job_id, result FROM pgqueue.job_history"))
    assert results == {jobs["snooze"]: "snooze 1", jobs["after"]: "after 2"}  # a snooze costs no attempt


@pytest.mark.proves("I13", "I14", "P21")
def test_bad_arguments_harm_only_their_job(site: Any) -> None:
    @site.app.task(name="t")
    def t(ride_id: int) -> int:
        return ride_id

    good = t.enqueue_many(None, [{"ride_id": i} for i in range(20)])
    bad = site.one("SELECT pgqueue.enqueue('t', '{\"nope\": 1}')")
    deep = "[" * 100 + "]" * 100
    deep_id = site.one("SELECT pgqueue.enqueue('t', '{\"ride_id\": 1}')")
    site.conn.execute(
        "UPDATE pgqueue.jobs SET args = jsonb_build_object('ride_id', %s::jsonb) WHERE id = %s",
        (deep, deep_id),
    )
    array = site.one("SELECT pgqueue.enqueue('t', '{\"ride_id\": 1}')")
    site.conn.execute("UPDATE pgqueue.jobs SET args = '[1]' WHERE id = %s", (array,))
    site.drain()
    assert site.one("SELECT count(*) FROM pgqueue.job_history") == len(good)
    dead = dict(site.rows("SELECT job_id, reason || ' ' || attempts FROM pgqueue.dead_letter_jobs"))
    assert dead == {bad: "bad_args 1", deep_id: "bad_args 1", array: "bad_args 1"}


@pytest.mark.proves("I24", "F55", "S5")
def test_an_unknown_task_is_held_and_freed_by_a_worker_that_knows_it(make_site: Any) -> None:
    site = make_site()
    site.conn.execute(
        "SELECT pgqueue.enqueue('os.system', '{\"command\": \"true\"}') FROM generate_series(1, 700)"
    )
    worker = site.start("default")
    from rig.wait import wait_for

    wait_for(
        lambda: (
            site.one(
                "SELECT count(*) FROM pgqueue.jobs WHERE state = 'held' AND hold_reason = 'unknown_task' AND attempt = 0"
            )
            == 700
        ),
        what="held",
    )
    worker.stop()
    site.stop()
    knowing = make_site()

    @knowing.app.task(name="os.system")
    def harmless(command: str) -> None:
        """Never what its name says."""

    knowing.start("default")
    wait_for(
        lambda: site.one("SELECT count(*) FROM pgqueue.job_history WHERE attempts = 1") == 700,
        30,
        what="freed and done",
    )


def test_an_expired_job_is_not_started(site: Any) -> None:
    ran = []

    @site.app.task(name="t")
    def t() -> None:
        ran.append(1)

    job = t.using(expires_at=datetime.now(UTC) - timedelta(minutes=1)).enqueue(None)
    site.drain()
    assert site.one("SELECT reason FROM pgqueue.dead_letter_jobs WHERE job_id = %s", job.id) == "expired"
    assert ran == []


@pytest.mark.proves("I7")
@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        BaseExceptionGroup("many", [ValueError("a"), SystemExit()]),
        GeneratorExit(),
    ],
)
def test_no_exception_leaves_the_executor(site: Any, error: BaseException) -> None:
    @site.app.task(name="t", retry=Retry(max_retries=0))
    def t() -> None:
        raise error

    @site.app.task(name="ok")
    def ok() -> None:
        """A neighbour."""

    jobs = [t.enqueue(None), ok.enqueue(None)]
    site.drain(concurrency=1)
    assert [site.state(j.id) for j in jobs] == ["dead", "succeeded"]


def test_policies_from_files_win_without_a_deploy(
    make_site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pgqueue.toml").write_text(
        '[retry.tasks.pay]\nmax_retries = 1\ninitial_delay = "10ms"\n[retry.queues.mail]\nmax_retries = 0\n[retry.default]\nmax_retries = 2\ninitial_delay = "10ms"\n'
    )
    monkeypatch.chdir(tmp_path)
    site = make_site()
    runs: dict[str, int] = {}

    def fail(name: str) -> None:
        runs[name] = runs.get(name, 0) + 1
        raise ValueError(name)

    for name, options in {
        "pay": {"retry": Retry(max_retries=9)},
        "mail": {"queue": "mail"},
        "other": {},
        "code": {"queue": "mail", "retry": Retry(max_retries=1, initial_delay="10ms")},
    }.items():
        site.app.task(name=name, **options)(lambda name=name: fail(name)).enqueue(None)
    site.drain()
    assert runs == {"pay": 2, "mail": 1, "other": 3, "code": 2}


def test_a_callers_own_policy_wins(site: Any) -> None:
    runs = []

    @site.app.task(name="t", retry=Retry(max_retries=9))
    def t() -> None:
        runs.append(1)
        raise ValueError

    t.using(retry=Retry(max_retries=1, initial_delay="10ms")).enqueue(None)
    site.drain()
    assert len(runs) == 2


@pytest.mark.proves("P11")
def test_priorities_come_first_and_then_the_order_of_enqueueing(site: Any) -> None:
    order: list[int] = []

    @site.app.task(name="t")
    def t(n: int) -> None:
        order.append(n)

    for n, priority in enumerate([5, 9, 0, 5, 0, 9, 5]):
        t.using(priority=priority).enqueue(None, n=n)
    site.drain(concurrency=1)
    assert order == [2, 4, 0, 3, 6, 1, 5]


@pytest.mark.proves("I38")
def test_a_raising_listener_changes_nothing(site: Any) -> None:
    def broken(event: object) -> None:
        raise ValueError(event)

    site.app.events.listen(broken)

    @site.app.task(name="t")
    def t() -> None:
        logging.getLogger("t").debug("ran")

    job = t.enqueue(None)
    site.drain()
    assert site.state(job.id) == "succeeded"
    assert site.app.events.failures > 0
    assert isinstance(site.conn, psycopg.Connection)
