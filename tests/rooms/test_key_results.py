"""What a job returned is stored with its idempotency key, in its settlement and never without it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from rig.hands import Hand
from rig.wait import wait_for

from pgqueue import AsyncJobContext, InvalidOption, JobContext, Retry
from pgqueue.core.events import ClaimLostSeen
from pgqueue.storage.settling import NOTHING
from pgqueue.storage.statements import statement
from pgqueue.worker.along import along

QUICK = Retry(max_retries=3, initial_delay="10ms", max_delay="10ms")
# What a literal in a message of text could lose or break out with.
VALUE = {"note": "100%% of 'it' \\ $1 %(rows)s ü \"", "n": [1, 2.5, None]}

pytestmark = pytest.mark.proves("P13")


def register(site: Any, style: str, value: Any = VALUE, **options: Any) -> Any:
    """A task that returns `value`, with its transaction opened or not, alone or in company, sync or async."""
    touches = "touch" in style

    if "async" in style:

        @site.app.task(name="pay", retry=QUICK, **options)
        async def pay_async(ctx: AsyncJobContext, ride_id: int = 0) -> Any:
            if touches:
                await ctx.conn.execute("INSERT INTO effects VALUES (%s, 'paid')", (ctx.job.id,))
            return value

        return pay_async

    @site.app.task(name="pay", retry=QUICK, **options)
    def pay(ctx: JobContext, ride_id: int = 0) -> Any:
        if touches:
            ctx.conn.execute("INSERT INTO effects VALUES (%s, 'paid')", (ctx.job.id,))
        return value

    return pay


@pytest.mark.parametrize("scope", ["time", "forever"])
@pytest.mark.parametrize(
    "style", ["plain", "touch", "async", "async touch", "group touch", "group async touch", "group"]
)
def test_a_later_caller_of_the_key_gets_what_the_job_returned(site: Any, style: str, scope: str) -> None:
    pay = register(site, style, group_commit=4 if "group" in style else 0)
    keyed = [pay.using(idempotency_key=f"ride:{n}", key_scope=scope) for n in range(3)]
    first = [one.enqueue(site.conn, ride_id=7) for one in keyed]
    pay.enqueue(site.conn)
    assert all(job.result(site.conn, "none yet") == "none yet" for job in first)
    site.drain()
    site.conn.execute("DELETE FROM pgqueue.job_history")
    for one, before in zip(keyed, first, strict=True):
        again = one.enqueue(site.conn, ride_id=7)
        assert (again.created, again.id) == (False, before.id)
        assert again.result(site.conn) == VALUE
    assert site.app.jobs.result_of("pay", "ride:0") == VALUE
    assert site.app.jobs.result_of("pay", "ride:9", "nothing") == "nothing"
    assert site.one("SELECT pgqueue.key_result('pay', 'ride:1')") == VALUE


def test_it_can_be_asked_in_an_event_loop_and_by_a_caller_with_its_own_rows(site: Any) -> None:
    pay = register(site, "plain")
    keyed = pay.using(idempotency_key="ride:7")
    keyed.enqueue(None)
    site.drain()

    async def ask() -> Any:
        async with await psycopg.AsyncConnection.connect(site.database.dsn) as conn:
            return await (await keyed.enqueue_async(conn)).result_async(conn)

    assert asyncio.run(ask()) == VALUE
    strange = site.database.connect(row_factory=psycopg.rows.dict_row, autocommit=False)
    assert keyed.enqueue(strange).result(strange) == VALUE
    with pytest.raises(InvalidOption, match="no key"):
        pay.enqueue(site.conn).result(site.conn)


@pytest.mark.parametrize("scope", ["live", "waiting"])
def test_a_key_that_ends_with_its_job_keeps_nothing(site: Any, scope: str) -> None:
    register(site, "touch").using(idempotency_key="k", key_scope=scope).enqueue(None)
    site.drain()
    assert site.rows("SELECT result FROM pgqueue.dedup_keys") == [(None,)]


@pytest.mark.parametrize("style", ["plain", "touch"])
def test_a_job_without_a_key_or_a_result_costs_nothing(site: Any, style: str) -> None:
    pay = register(site, style, None)
    pay.using(idempotency_key="k").enqueue(None)
    site.drain()
    versions = "SELECT xmin::text, result FROM pgqueue.dedup_keys"
    ((_, result),) = site.rows(versions)
    assert result is None
    assert site.one("SELECT pgqueue.key_result('pay', 'k') IS NULL")
    assert along([]) is NOTHING


def test_a_rolled_back_attempt_leaves_nothing_and_the_last_one_counts(site: Any) -> None:
    seen: list[Any] = []

    @site.app.task(name="pay", retry=QUICK)
    def pay(ctx: JobContext) -> int:
        ctx.conn.execute("INSERT INTO effects VALUES (%s, 'paid')", (ctx.job.id,))
        seen.append(site.app.jobs.result_of("pay", "k"))
        if ctx.job.attempt < 3:
            raise ValueError("not yet")
        return ctx.job.attempt

    pay.using(idempotency_key="k", key_scope="forever").enqueue(None)
    site.drain()
    assert seen == [None, None, None]
    assert site.app.jobs.result_of("pay", "k") == 3
    assert site.one("SELECT count(*) FROM effects") == 1


def test_a_dead_job_keeps_nothing_until_its_redrive_succeeds(site: Any) -> None:
    broken = True

    @site.app.task(name="pay", retry=Retry(max_retries=0))
    def pay() -> str:
        if broken:
            raise ValueError("not yet")
        return "paid"

    keyed = pay.using(idempotency_key="k", key_scope="forever")
    first = keyed.enqueue(None)
    site.drain()
    assert keyed.enqueue(site.conn).result(site.conn) is None
    broken = False
    second = site.app.dead_letters.redrive(first.id)
    site.drain()
    again = keyed.enqueue(site.conn)
    assert (again.created, again.result(site.conn)) == (False, "paid")
    assert again.id != first.id, second


@pytest.mark.proves("P4")
@pytest.mark.parametrize("style", ["plain", "touch", "async", "async touch"])
def test_a_run_that_lost_its_job_stores_nothing(site: Any, style: str) -> None:
    """Two jobs end at once and one of them belongs to a newer claim by then: only the other's result is stored."""
    inside, go = threading.Barrier(3, timeout=30), threading.Event()

    if "async" in style:

        @site.app.task(name="pay")
        async def pay_async(ctx: AsyncJobContext) -> str:
            if "touch" in style:
                await ctx.conn.execute("SELECT 1")
            await asyncio.to_thread(inside.wait)
            assert await asyncio.to_thread(go.wait, 30)
            return "late"

        pay: Any = pay_async
    else:

        @site.app.task(name="pay")
        def pay_sync(ctx: JobContext) -> str:
            if "touch" in style:
                ctx.conn.execute("SELECT 1")
            inside.wait()
            assert go.wait(30)
            return "late"

        pay = pay_sync
    lost, kept = (pay.using(idempotency_key=key).enqueue(None).id for key in ("lost", "kept"))
    site.start()
    inside.wait()
    site.conn.execute(
        "UPDATE pgqueue.jobs SET claim_id = gen_random_uuid(), worker_id = gen_random_uuid() WHERE id = %s",
        [lost],
    )
    go.set()
    wait_for(
        lambda: any(isinstance(event, ClaimLostSeen) for event in site.events), 30, what="the lost claim"
    )
    site.wait_state(kept, "succeeded", 30)
    assert site.rows("SELECT key, job_id, result FROM pgqueue.dedup_keys ORDER BY key") == [
        ("kept", kept, "late"),
        ("lost", lost, None),
    ]


@pytest.mark.proves("P4")
def test_the_twin_that_stores_before_it_asks_for_the_claim_lets_a_late_run_answer(database: Any) -> None:
    conn = database.connect()
    job_id = conn.execute("SELECT pgqueue.enqueue('pay', idempotency_key => 'k')").fetchone()[0]
    hand = Hand(conn)
    hand.register()
    (late,) = hand.claim()
    conn.execute("UPDATE pgqueue.jobs SET claim_id = gen_random_uuid()")
    kept = f'[{{"task": "pay", "key": "k", "job_id": {job_id}, "result": "late"}}]'
    conn.execute(statement("keep_results"), {"rows": kept})
    assert hand.succeed(late) == set()
    assert conn.execute("SELECT pgqueue.key_result('pay', 'k')").fetchone() == ("late",)


def test_an_expired_key_is_somebody_elses(database: Any) -> None:
    conn = database.connect()
    keep: Callable[[int], Any] = lambda job_id: conn.execute(
        statement("keep_results"),
        {"rows": f'[{{"task": "pay", "key": "k", "job_id": {job_id}, "result": 1}}]'},
    ).fetchone()[0]
    take = "SELECT pgqueue.enqueue('pay', idempotency_key => 'k', key_ttl => '1 hour')"
    past = "UPDATE pgqueue.dedup_keys SET expires_at = clock_timestamp() - interval '1 s'"
    old = conn.execute(take).fetchone()[0]
    assert keep(old) == 1
    conn.execute(past)
    assert conn.execute("SELECT pgqueue.key_result('pay', 'k')").fetchone() == (None,)
    assert keep(old) == 0
    new = conn.execute(take).fetchone()[0]
    assert new != old
    assert conn.execute("SELECT job_id, result FROM pgqueue.dedup_keys").fetchall() == [(new, None)]
    assert keep(old) == 0
    assert keep(new) == 1


def test_results_are_stored_by_key_however_many_keys_there_are(database: Any) -> None:
    conn = database.connect()
    conn.execute(
        "INSERT INTO pgqueue.dedup_keys (task, key, job_id, created_at, expires_at)"
        " SELECT 'pay', 'k' || i, i, now(), now() + interval '1 day' FROM generate_series(1, 20000) i"
    )
    conn.execute("VACUUM ANALYZE pgqueue.dedup_keys")
    conn.execute("SET plan_cache_mode = force_generic_plan")
    conn.execute("SELECT pg_stat_reset_single_table_counters('pgqueue.dedup_keys'::regclass)")
    rows = ", ".join(f'{{"task": "pay", "key": "k{n}", "job_id": {n}, "result": {n}}}' for n in range(1, 257))
    assert conn.execute(statement("keep_results"), {"rows": f"[{rows}]"}).fetchone() == (256,)
    conn.execute("SELECT pg_stat_force_next_flush()")
    conn.execute("SELECT 1")
    scans = "SELECT seq_scan, idx_scan >= 256 FROM pg_stat_user_tables WHERE relname = 'dedup_keys'"
    assert conn.execute(scans).fetchone() == (0, True)


def test_a_hundred_producers_get_one_job_and_one_answer(site: Any) -> None:
    began = threading.Event()

    @site.app.task(name="pay")
    def pay(ctx: JobContext) -> float:
        ctx.conn.execute("INSERT INTO effects VALUES (%s, 'paid')", (ctx.job.id,))
        assert began.wait(30)
        return time.time()

    keyed = pay.using(idempotency_key="ride:7", key_scope="forever")
    site.start()
    gate = threading.Barrier(25, timeout=60)

    def produce(_: int) -> list[Any]:
        gate.wait()
        return [keyed.enqueue(None) for _ in range(4)]

    with ThreadPoolExecutor(25) as pool:
        made = [job for jobs in pool.map(produce, range(25)) for job in jobs]
    assert len({job.id for job in made}) == 1
    assert sum(job.created for job in made) == 1
    began.set()
    site.wait_state(made[0].id, "succeeded", 30)
    answers = {job.result(site.conn) for job in made}
    assert len(answers) == 1
    assert answers != {None}
    assert site.one("SELECT count(*) FROM effects") == 1
