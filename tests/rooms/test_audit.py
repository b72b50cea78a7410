"""`audit="full"`: the plain path of a job is written row by row, in the transactions of its moves, and only where asked for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from rig.hands import Hand, transitions

from pgqueue import AsyncJobContext, ConfigurationError, Job, JobContext, Retry
from pgqueue.core.states import is_legal
from pgqueue.storage.statements import statement

QUICK = Retry(max_retries=3, initial_delay="10ms", max_delay="10ms")
PLAIN = [(None, "ready", "enqueued"), ("ready", "running", "claimed"), ("running", "succeeded", "succeeded")]
LATER = [(None, "scheduled", "enqueued"), ("scheduled", "ready", "promoted"), *PLAIN[1:]]

pytestmark = pytest.mark.proves("P22")


@pytest.mark.parametrize("style", ["plain", "touch", "async", "async touch", "group", "group touch", "batch"])
def test_every_move_of_the_plain_path_is_a_row(site: Any, style: str) -> None:
    options: dict[str, Any] = {"group_commit": 4} if "group" in style else {}

    if style == "batch":

        @site.app.task(name="pay", audit="full", batch=10)
        def pay_batch(ctx: Any, jobs: list[Job]) -> None:
            ctx.conn.execute("SELECT 1")

        pay: Any = pay_batch
    elif "async" in style:

        @site.app.task(name="pay", audit="full")
        async def pay_async(ctx: AsyncJobContext, n: int = 0) -> None:
            if "touch" in style:
                await ctx.conn.execute("SELECT 1")

        pay = pay_async
    else:

        @site.app.task(name="pay", audit="full", **options)
        def pay_sync(ctx: JobContext, n: int = 0) -> None:
            if "touch" in style:
                ctx.conn.execute("SELECT 1")

        pay = pay_sync
    site.app.task(name="quiet")(lambda: None)
    now = [pay.enqueue(site.conn).id, pay.using(idempotency_key="k").enqueue(None).id]
    now += [job.id for job in pay.enqueue_many(site.conn, [{"n": n} for n in range(3)])]
    later = pay.using(delay="50ms").enqueue(site.conn).id
    assert not pay.using(idempotency_key="k").enqueue(site.conn).created
    site.app.enqueue("quiet")
    site.start()
    for job_id in (*now, later):
        site.wait_state(job_id, "succeeded", 30)
    site.stop()
    assert all(transitions(site.conn, job_id) == PLAIN for job_id in now)
    assert transitions(site.conn, later) == LATER
    assert site.one("SELECT count(*) FROM pgqueue.job_transitions WHERE task <> 'pay'") == 0
    assert site.one(
        "SELECT bool_and(t.claim_id = h.claim_id AND t.worker_id = h.worker_id AND t.attempt = 1)"
        " FROM pgqueue.job_transitions t JOIN pgqueue.job_history h USING (job_id) WHERE t.to_state = 'succeeded'"
    )
    events = [entry.event for entry in site.app.timeline(now[0])]
    assert events == ["enqueued", "claimed", "ended"], "told once, with all there is"


def test_the_rows_of_a_troubled_life_are_one_chain(site: Any) -> None:
    @site.app.task(name="pay", audit="full", retry=QUICK)
    def pay(ctx: JobContext) -> None:
        if ctx.job.attempt < 3:
            raise ValueError("not yet")

    job = pay.using(delay="20ms").enqueue(None)
    site.start()
    site.wait_state(job.id, "succeeded", 30)
    site.stop()
    rows = transitions(site.conn, job.id)
    assert [reason for _, _, reason in rows] == [
        "enqueued",
        *("promoted", "claimed", "retry") * 2,
        "promoted",
        "claimed",
        "succeeded",
    ]
    assert all(is_legal(*row) for row in rows)
    assert all(before[1] == after[0] for before, after in pairwise(rows))
    claimed = [entry.attempt for entry in site.app.timeline(job.id) if entry.event == "claimed"]
    assert claimed == [1, 2, 3]


def test_a_window_is_told_from_its_holding_to_its_call(site: Any) -> None:
    @site.app.task(name="cells", audit="full", batch_window="200ms")
    def cells(ctx: Any, jobs: list[Job]) -> None:
        ctx.conn.execute("SELECT 1")

    ids = [job.id for job in cells.enqueue_many(site.conn, [{}, {}, {}])]
    site.start()
    for job_id in ids:
        site.wait_state(job_id, "succeeded", 30)
    site.stop()
    held = (None, "held", "enqueued")
    led = [held, ("held", "ready", "promoted"), *PLAIN[1:]]
    along = [held, ("held", "running", "claimed"), PLAIN[2]]
    told = [transitions(site.conn, job_id) for job_id in ids]
    assert sorted(told, key=len) == [along, along, led], "one leads, the others are claimed along with it"


def test_the_setting_is_for_all_tasks_and_a_task_says_it_better(make_site: Callable[..., Any]) -> None:
    site = make_site(audit="full")
    loud = site.app.task(name="loud")(lambda: None)
    quiet = site.app.task(name="quiet", audit="changes")(lambda: None)
    loud.enqueue(None)
    quiet.enqueue(None)
    site.drain()
    # From SQL, once a worker has registered the task; what is rolled back leaves no row.
    by_sql = site.one("SELECT pgqueue.enqueue('loud')")
    many = site.rows("SELECT pgqueue.enqueue_many('loud', ARRAY['{}'::jsonb, '{}'], delay => '1 hour')")
    with site.conn.transaction(force_rollback=True):
        site.one("SELECT pgqueue.enqueue('loud')")
        loud.enqueue(site.conn)
    assert transitions(site.conn, by_sql) == PLAIN[:1]
    assert transitions(site.conn, many[1][0]) == LATER[:1]
    assert site.rows("SELECT task, count(*) FROM pgqueue.job_transitions GROUP BY 1") == [("loud", 6)]
    with pytest.raises(ConfigurationError, match="audit is unknown"):
        site.app.task(name="other", audit="all")(lambda: None)


def test_a_success_is_counted_once(site: Any) -> None:
    loud = site.app.task(name="loud", audit="full")(lambda: None)
    loud.enqueue(None)
    site.drain()
    counted = "SELECT outcome, sum(n) FROM pgqueue.count_attempts(now() - interval '1 hour', now() + interval '1 hour') GROUP BY 1"
    assert site.rows(counted) == [("succeeded", 1)]


@pytest.mark.proves("P7")
@pytest.mark.parametrize("twin", [False, True])
def test_a_claim_that_begins_is_not_taken_for_one_that_ended(database: Any, twin: bool) -> None:
    """The read-back of a lost answer looks for the claim in the audit: the twin's row would lie to it."""
    conn = database.connect()
    hand = Hand(conn)
    hand.register()
    conn.execute("SELECT pgqueue.enqueue('t')")
    (job,) = hand.claim()
    named = f', "claim_id": "{job.claim_id}"' if twin else ""
    row = f'{{"job_id": {job.id}, "from_state": "ready", "to_state": "running", "reason": "claimed", "queue": "default", "task": "t"'
    conn.execute(statement("note_moves"), {"rows": f'[{row}, "worker_id": "{hand.worker_id}"{named}}}]'})
    assert hand.one("find_settled", id=job.id, claim_id=job.claim_id) is twin


def test_without_it_no_hot_statement_names_the_table() -> None:
    for name in (
        "claim_batch",
        "settle_succeeded",
        "settle_in_transaction",
        "settle_many_in_transaction",
        "enqueue_now",
    ):
        assert b"job_transitions" not in statement(name)
        assert b"note_moves" not in statement(name)
