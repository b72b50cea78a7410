"""Recorded steps: a call is made once, its result stays, and only the newest run of a job can record one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from rig.wait import wait_for

from pgqueue import AsyncJobContext, ClaimLost, InvalidInput, JobContext, Retry, StepRefused
from pgqueue.upkeep.steps import steps_duty

QUICK = Retry(max_retries=3, initial_delay="10ms", max_delay="10ms")
pytestmark = pytest.mark.proves("P5")


def recorded(site: Any) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = site.rows(
        "SELECT name, result, attempt FROM pgqueue.job_steps ORDER BY job_id, name"
    )
    return rows


def test_a_retry_gets_what_was_recorded_and_calls_nobody(site: Any) -> None:
    keys: list[str] = []

    def charge(key: str) -> dict[str, Any]:
        keys.append(key)
        return {"receipt": len(keys), "lines": (1, 2.0, None)}

    @site.app.task(name="sync", retry=QUICK)
    def sync_one(ctx: JobContext) -> Any:
        answer = ctx.step("charge", charge)
        assert ctx.step("nothing", lambda: None) is None
        if ctx.job.attempt < 3:
            raise ValueError("after its step")
        return answer

    @site.app.task(name="async", retry=QUICK)
    async def async_one(ctx: AsyncJobContext) -> Any:
        async def charge_async(key: str) -> Any:
            return charge(key)

        answer = await ctx.step("charge", charge_async)
        assert await ctx.step("nothing", lambda: None) is None
        if ctx.job.attempt < 3:
            raise ValueError("after its step")
        return answer

    first, second = sync_one.enqueue(None), async_one.enqueue(None)
    site.drain()
    assert sorted(keys) == sorted([f"sync:{first.id}:charge", f"async:{second.id}:charge"])
    results = site.rows("SELECT attempts, result FROM pgqueue.job_history ORDER BY result ->> 'receipt'")
    assert results == [(3, {"receipt": n, "lines": [1, 2.0, None]}) for n in (1, 2)]
    assert [(name, attempt) for name, _, attempt in recorded(site)] == [("charge", 1), ("nothing", 1)] * 2


@pytest.mark.proves("P22")
def test_a_jobs_timeline_tells_of_its_steps_and_where_it_came_from(site: Any) -> None:
    @site.app.task(name="stepping", retry=QUICK)
    def stepping(ctx: JobContext) -> None:
        ctx.step("charge", lambda: 1)
        if ctx.job.attempt < 2:
            raise ValueError("after its step")

    headers = '{"pgqueue.message_id": "7", "pgqueue.topic": "ride.completed"}'
    job_id = site.rows("SELECT pgqueue.enqueue('stepping', headers => %s)", headers)[0][0]
    site.drain()
    life = site.app.timeline(job_id)
    assert [entry.event for entry in life if entry.event in {"enqueued", "step", "ended"}] == [
        "enqueued",
        "step",
        "ended",
    ]
    assert life[0].detail == "from message 7, ride.completed"
    (step,) = [entry for entry in life if entry.event == "step"]
    assert (step.reason, step.attempt) == ("charge", 1)
    assert step.detail.startswith("took ")


def test_the_key_is_the_jobs_own_or_the_one_given(site: Any) -> None:
    keys: list[str] = []

    @site.app.task(name="pay")
    def pay(ctx: JobContext) -> None:
        ctx.step("a", keys.append)
        ctx.step("b", keys.append, key="ride:7:b")
        ctx.step("c", lambda key="no": keys.append(key))

    pay.using(idempotency_key="ride:7").enqueue(None)
    site.drain()
    assert keys == ["ride:7:a", "ride:7:b", "no"]


def test_an_error_is_not_recorded_and_the_call_is_made_again(site: Any) -> None:
    calls: list[int] = []

    @site.app.task(name="pay", retry=QUICK)
    def pay(ctx: JobContext) -> None:
        def call() -> str:
            calls.append(ctx.job.attempt)
            if ctx.job.attempt == 1:
                raise ConnectionError("no answer")
            return "done"

        ctx.step("charge", call)

    pay.enqueue(None)
    site.drain()
    assert calls == [1, 2]
    assert recorded(site) == [("charge", "done", 2)]


@pytest.mark.parametrize("name", ["", "x" * 201, "line\nbreak", 7])
def test_a_name_that_cannot_stand_is_refused_before_the_call(site: Any, name: Any) -> None:
    @site.app.task(name="pay", retry=Retry(max_retries=0))
    def pay(ctx: JobContext) -> None:
        with pytest.raises(InvalidInput, match=r"^step: "):
            ctx.step(name, lambda: pytest.fail("called"))

    pay.enqueue(None)
    site.drain()
    assert site.one("SELECT state FROM pgqueue.job_history") == "succeeded"


def test_two_steps_of_one_name_in_a_run_are_a_mistake_that_is_told(site: Any) -> None:
    @site.app.task(name="pay", retry=Retry(max_retries=0))
    def pay(ctx: JobContext) -> None:
        for _ in range(2):
            ctx.step("charge", lambda: 1)

    pay.enqueue(None)
    site.drain()
    assert "'charge' is used twice in one run" in site.one(
        "SELECT error_message FROM pgqueue.dead_letter_jobs"
    )


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "$.result"),
        ({"a": [float("nan")]}, "$.result.a[0]"),
        ("x" * 70_000, "too large"),
        ({1: 2}, "$.result"),
    ],
    ids=["object", "nan", "large", "keys"],
)
def test_a_result_that_cannot_be_stored_ends_the_job_and_the_call_is_not_made_again(
    site: Any, value: Any, why: str
) -> None:
    calls: list[str] = []

    @site.app.task(name="pay", retry=QUICK)
    def pay(ctx: JobContext) -> None:
        def call(key: str) -> Any:
            calls.append(key)
            return value if len(calls) == 1 else "mended"

        try:
            ctx.step("charge", call)
        except StepRefused as told:
            if ctx.job.attempt == 1:
                raise ValueError("swallowed, and tried again") from told
            raise

    first = pay.enqueue(None)
    site.drain()
    assert len(calls) == 1
    reason, attempts, message = site.rows(
        "SELECT reason, attempts, error_message FROM pgqueue.dead_letter_jobs"
    )[0]
    assert (reason, attempts) == ("rejected", 2)
    assert why in message
    assert "its call was made" in message
    # A redrive is a person's decision, with the code mended: the call is made with the same key.
    site.app.dead_letters.redrive(first.id)
    site.drain()
    assert calls == [f"pay:{first.id}:charge"] * 2
    assert site.one("SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded'") == 1


def test_a_redrive_keeps_steps_and_keys(site: Any) -> None:
    calls: list[str] = []
    broken = [True]

    @site.app.task(name="pay", retry=Retry(max_retries=0))
    def pay(ctx: JobContext) -> None:
        ctx.step("charge", calls.append)
        if broken[0]:
            ctx.step("mail", _fails)
        ctx.step("mail", calls.append)

    job_id = first = pay.enqueue(None).id
    for turn in range(3):
        site.drain()
        assert site.state(job_id) == ("dead" if broken[0] else "succeeded")
        if turn == 1:
            broken.clear()
            broken.append(False)
        if turn < 2:
            done = site.app.dead_letters.redrive(job_id)
            job_id = done[job_id]
    assert calls == [f"pay:{first}:charge", f"pay:{first}:mail"]
    assert site.one("SELECT count(*) FROM pgqueue.job_steps WHERE name = 'charge'") == 3


def _fails() -> None:
    raise ValueError("the mail server is away")


def test_a_late_run_neither_calls_nor_records(site: Any) -> None:
    """Attempt 1 outlives its time in the middle of a call; attempt 2 makes the call itself; then 1 wakes up."""
    second_done, first_done = threading.Event(), threading.Event()
    calls: list[str] = []
    late: list[str] = []

    @site.app.task(name="slow", timeout="300ms", retry=QUICK)
    def slow(ctx: JobContext) -> None:
        def call() -> int:
            calls.append(f"charge {ctx.job.attempt}")
            if ctx.job.attempt == 1:
                assert second_done.wait(30)
            return ctx.job.attempt

        try:
            assert ctx.step("charge", call) == 2
        except ClaimLost:
            late.append("charge")
        if ctx.job.attempt == 1:
            with pytest.raises(ClaimLost, match="another run of the job is newer"):
                ctx.step("mail", lambda: calls.append("mail"))
            late.append("mail")
            first_done.set()

    job = slow.enqueue(None)
    site.start()
    site.wait_state(job.id, "succeeded", 30)
    second_done.set()
    assert first_done.wait(30)
    assert (calls, late) == (["charge 1", "charge 2"], ["charge", "mail"])
    assert recorded(site) == [("charge", 2, 2)]


def test_a_cancel_that_comes_while_a_result_is_recorded_does_not_lose_it(
    make_site: Callable[..., Any],
) -> None:
    site = make_site(heartbeat_s=0.1)

    @site.app.task(name="pay")
    async def pay(ctx: AsyncJobContext) -> None:
        await ctx.step("charge", lambda: "paid")
        pytest.fail("the cancel was not heard")

    with site.database.connect(autocommit=False) as locker:
        locker.execute("LOCK TABLE pgqueue.job_steps IN SHARE MODE")  # it may be read, not written
        job = pay.enqueue(None)
        site.start()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgqueue/step%%' AND wait_event_type = 'Lock'"
        wait_for(lambda: site.one(waits) == 1, 30, what="the record's wait")
        site.app.jobs.cancel(job.id)
        wait_for(lambda: _told(site, job.id), 30, what="the handler to hear of it")
        locker.rollback()
    site.wait_state(job.id, "cancelled", 30)
    assert recorded(site) == [("charge", "paid", 1)]


def _told(site: Any, job_id: int) -> bool:
    ((worker, _, _),) = site._running
    running = worker.state.running.get(job_id)
    return running is not None and running.context.cancelled


def test_a_batch_has_no_steps_and_the_members_of_a_group_have(site: Any) -> None:
    told: list[str] = []

    @site.app.task(name="batch", batch=10, retry=Retry(max_retries=0))
    def batch(ctx: JobContext, jobs: Any) -> None:
        with pytest.raises(InvalidInput, match=r"^step: is for single jobs"):
            ctx.step("charge", lambda: told.append("batch"))

    @site.app.task(name="group", group_commit=4)
    def group(ctx: JobContext, n: int) -> None:
        ctx.step("charge", lambda: told.append(f"group {n}"))

    batch.enqueue(None)
    for n in range(3):
        group.enqueue(None, n=n)
    site.drain()
    assert sorted(told) == ["group 0", "group 1", "group 2"]
    assert site.one("SELECT count(*) FROM pgqueue.job_history WHERE state = 'succeeded'") == 4


@pytest.mark.proves("P23")
def test_steps_stay_while_anything_is_known_of_their_job_and_go_after_it(site: Any) -> None:
    @site.app.task(name="pay")
    def pay(ctx: JobContext) -> None:
        ctx.step("charge", lambda: 1)

    known, gone = pay.enqueue(None).id, pay.enqueue(None).id
    site.drain()
    site.conn.execute("UPDATE pgqueue.job_steps SET recorded_at = recorded_at - interval '31 days'")
    site.conn.execute("DELETE FROM pgqueue.job_history WHERE job_id = %s", [gone])
    assert steps_duty(1.0, keep_days=32).run(site.conn).changed == 0, "not old enough"
    assert steps_duty(1.0, keep_days=30).run(site.conn).changed == 1
    assert site.rows("SELECT job_id FROM pgqueue.job_steps") == [(known,)]
