"""A handler enqueues many: in its transaction, as its children, all or none, a generator never held whole."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from pgqueue import AsyncJobContext, EnqueuedMany, InvalidArguments, JobContext, Retry

ONCE = Retry(max_retries=0)
CHILDREN = "SELECT count(*) FROM pgqueue.jobs WHERE task = 'child' AND parent_id = %s"


@pytest.fixture
def child(site: Any) -> Any:
    @site.app.task(name="child", queue="other")
    def child(n: int) -> None:
        """Not run here: its queue is served by nobody."""

    return child


def parent(site: Any, child: Any, kind: str, source: Any, after: Any = None) -> int:
    """Run one job that fans out over `source()`; its id. `after(ctx)` looks at what the fan-out raised or returned."""

    @site.app.task(name=f"parent_{kind}", retry=ONCE)
    def sync_parent(ctx: JobContext) -> int:
        try:
            done: Any = ctx.enqueue_many(child.using(priority=7), source())
        except Exception as error:
            done = error
        if after is not None:
            after(ctx.job.id, done)
        if isinstance(done, Exception):
            ctx.conn.execute("INSERT INTO effects VALUES (%s, 'goes on')", (ctx.job.id,))
            return -1
        return len(done)

    @site.app.task(name=f"parent_a{kind}", retry=ONCE)
    async def async_parent(ctx: AsyncJobContext) -> int:
        try:
            done: Any = await ctx.enqueue_many(child.using(priority=7), source())
        except Exception as error:
            done = error
        if after is not None:
            after(ctx.job.id, done)
        if isinstance(done, Exception):
            await ctx.conn.execute("INSERT INTO effects VALUES (%s, 'goes on')", (ctx.job.id,))
            return -1
        return len(done)

    job = (async_parent if kind == "async" else sync_parent).enqueue(None)
    site.drain("default")
    assert site.rows("SELECT error_message FROM pgqueue.dead_letter_jobs") == []
    return int(job.id)


@pytest.mark.proves("I23", "P2")
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("count", [0, 1, 1_000, 2_500])
def test_a_fan_out_is_part_of_the_jobs_transaction(site: Any, child: Any, kind: str, count: int) -> None:
    seen: list[Any] = []

    def after(job_id: int, done: Any) -> None:
        # Another connection sees none of them before the handler's job is settled.
        seen.append((done, site.one(CHILDREN, job_id)))

    job_id = parent(site, child, kind, lambda: ({"n": n} for n in range(count)), after)
    ((done, seen_before),) = seen
    assert isinstance(done, EnqueuedMany)
    assert (len(done), seen_before, site.one(CHILDREN, job_id)) == (count, 0, count)
    assert site.one("SELECT result FROM pgqueue.job_history") == count
    rows = site.rows("SELECT id, (args->>'n')::int, priority, queue FROM pgqueue.jobs ORDER BY id")
    assert rows == [(job.id, n, 7, "other") for n, job in enumerate(done)]


@pytest.mark.proves("P3", "I23")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_handler_that_fails_after_its_fan_out_leaves_no_child(site: Any, child: Any, kind: str) -> None:
    @site.app.task(name="sync", retry=ONCE)
    def sync_parent(ctx: JobContext) -> None:
        ctx.enqueue_many(child, ({"n": n} for n in range(1_500)))
        raise ValueError("too late")

    @site.app.task(name="async", retry=ONCE)
    async def async_parent(ctx: AsyncJobContext) -> None:
        await ctx.enqueue_many(child, ({"n": n} for n in range(1_500)))
        raise ValueError("too late")

    (async_parent if kind == "async" else sync_parent).enqueue(None)
    site.drain("default")
    assert site.one("SELECT count(*) FROM pgqueue.jobs") == 0
    assert site.rows("SELECT error_message FROM pgqueue.dead_letter_jobs") == [("too late",)]


class Upset(Exception):
    pass


def bad_at(index: int) -> Iterator[dict[str, Any]]:
    for n in range(3_000):
        yield {"n": n} if n != index else {"m": n}


def upset_at(index: int) -> Iterator[dict[str, Any]]:
    for n in range(3_000):
        if n == index:
            raise Upset
        yield {"n": n}


@pytest.mark.proves("I23", "P2")
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("index", [0, 999, 1_000, 2_999])
def test_one_bad_inside_or_a_generator_that_raises_leaves_none_and_the_handler_may_go_on(
    site: Any, child: Any, kind: str, index: int
) -> None:
    seen: list[Any] = []
    for source, what in ((bad_at, InvalidArguments), (upset_at, Upset)):
        for as_list in (False, True):
            if as_list and source is upset_at:
                continue
            site.app._tasks.pop(f"parent_{kind}", None), site.app._tasks.pop(f"parent_a{kind}", None)

            def make(source: Any = source, as_list: bool = as_list) -> Any:
                return list(source(index)) if as_list else source(index)

            job_id = parent(site, child, kind, make, lambda _, done: seen.append(done))
            assert isinstance(seen[-1], what)
            assert site.rows("SELECT note FROM effects WHERE job_id = %s", job_id) == [("goes on",)]
    assert site.one("SELECT count(*) FROM pgqueue.jobs") == 0
    assert seen[0].field == f"args[{index}]"
    assert f"args[{index}]" in str(seen[0])


def fan_out_in_bounded_memory(site: Any, child: Any, kind: str, count: int, bytes_max: int) -> None:
    alive = most = 0

    class Row(dict[str, Any]):
        def __init__(self, n: int) -> None:
            nonlocal alive, most
            super().__init__(n=n)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    tracemalloc.start()
    try:
        job_id = parent(site, child, kind, lambda: map(Row, range(count)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert site.one(CHILDREN, job_id) == count
    assert most <= 2
    assert peak < bytes_max, peak


@pytest.mark.proves("P23", "I23")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_generator_is_never_held_whole(site: Any, child: Any, kind: str) -> None:
    fan_out_in_bounded_memory(site, child, kind, 60_000, 8_000_000)


@pytest.mark.slow
@pytest.mark.proves("P23", "I23")
def test_a_million_children_take_little_memory(site: Any, child: Any) -> None:
    # Their ids, 8 bytes each and as text on their way; never the million arguments, some 200 MB as mappings.
    fan_out_in_bounded_memory(site, child, "sync", 1_000_000, 40_000_000)


def test_the_answer_reads_as_a_list_does(site: Any, child: Any) -> None:
    done = child.enqueue_many(None, [{"n": n} for n in range(5)])
    assert done == list(done)
    assert done != list(done)[1:]
    assert [job.id for job in done[1:3]] == [done[1].id, done[2].id]
    assert done[-1] in done
    assert done[:2] == done[0:2]
    assert done == done[:]
    assert done != 5
    assert repr(done) == "<5 jobs of child>"
    with pytest.raises(IndexError):
        done[5]
    assert child.enqueue_many(None, []) == []
