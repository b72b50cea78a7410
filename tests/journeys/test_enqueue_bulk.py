"""Many jobs in one call: chunks, keys, order, all or none, bounded memory."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from rig.database import Database

from pgqueue import App, Enqueued, InvalidArguments, InvalidName, InvalidOption
from pgqueue.producer.enqueue import enqueue_many
from pgqueue.producer.plan import CHUNK_BYTES, CHUNK_JOBS, JobOptions, TaskDefaults, plan_many


@pytest.fixture
def app(database: Database) -> Iterator[App]:
    app = App(database.dsn)
    yield app
    app.close()


@pytest.fixture
def pay(app: App) -> Any:
    @app.task(name="pay", queue="critical")
    def pay(ctx: Any, ride_id: int, note: str = "") -> None:
        """Never run here."""

    return pay


def rides(database: Database) -> list[int]:
    rows = (
        database.connect().execute("SELECT (args->>'ride_id')::int FROM pgqueue.jobs ORDER BY id").fetchall()
    )
    return [row[0] for row in rows]


def keyed(jobs: list[dict[str, Any]], keys: Any) -> Any:
    return plan_many(
        "pay", jobs, JobOptions(), defaults=TaskDefaults(), signature=None, idempotency_keys=keys
    )


@pytest.mark.parametrize("count", [0, 1, CHUNK_JOBS - 1, CHUNK_JOBS, CHUNK_JOBS + 1, 3 * CHUNK_JOBS])
@pytest.mark.proves("EQ5", "I23")
def test_results_are_in_order_and_complete(database: Database, pay: Any, count: int) -> None:
    with psycopg.connect(database.dsn) as conn:
        done = pay.enqueue_many(conn, [{"ride_id": n} for n in range(count)])
    assert [job.created for job in done] == [True] * count
    assert [job.id for job in done] == sorted({job.id for job in done})
    assert rides(database) == list(range(count))
    if count:
        assert done[0] == Enqueued(done[0].id, True, "pay", "critical")


@pytest.mark.proves("EQ5", "P23")
def test_a_generator_of_a_hundred_thousand_is_never_held_in_memory(database: Database, pay: Any) -> None:
    alive = 0
    most = 0

    class Row(dict[str, Any]):
        def __init__(self, **values: Any) -> None:
            nonlocal alive, most
            super().__init__(**values)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    with psycopg.connect(database.dsn) as conn:
        tracemalloc.start()
        done = pay.enqueue_many(conn, (Row(ride_id=n, note="x" * 100) for n in range(100_000)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(done) == 100_000
    assert database.one("SELECT count(DISTINCT args) FROM pgqueue.jobs") == 100_000
    assert most <= 2
    # The results, about 130 bytes each, and a few chunks: never the 14 MB of the arguments beside them.
    assert peak < 25_000_000, peak


@pytest.mark.proves("EQ5", "I23", "P2")
def test_one_bad_job_leaves_none_and_is_named(database: Database, pay: Any) -> None:
    def jobs(count: int, bad: int) -> Iterator[dict[str, Any]]:
        for n in range(count):
            yield {"ride_id": n} if n != bad else {"ride_id": float("nan")}

    with psycopg.connect(database.dsn) as conn:
        conn.execute("CREATE TABLE mine (n int)")
        for count, bad in ((3, 0), (3, 2), (2_500, 1_000), (2_500, 2_499), (11_000, 10_999)):
            for source in (jobs(count, bad), list(jobs(count, bad))):
                with pytest.raises(InvalidArguments, match=rf"^args\[{bad}\] at \$\.ride_id: ") as caught:
                    pay.enqueue_many(conn, source)
                assert caught.value.field == f"args[{bad}]"
                conn.execute("INSERT INTO mine VALUES (1)")
        with pytest.raises(InvalidArguments, match=r"^args\[1\]: must be a mapping"):
            pay.enqueue_many(conn, [{"ride_id": 1}, [1]])
        with pytest.raises(InvalidArguments, match=r"^args\[1\]: missing argument 'ride_id'"):
            pay.enqueue_many(conn, [{"ride_id": 1}, {}])
    assert rides(database) == []
    assert database.one("SELECT count(*) FROM mine") == 10


@pytest.mark.proves("I23", "P2")
def test_a_generator_that_raises_leaves_none_and_the_transaction_usable(database: Database, pay: Any) -> None:
    def jobs(conn: psycopg.Connection[Any]) -> Iterator[dict[str, Any]]:
        yield from ({"ride_id": n} for n in range(1_200))
        conn.execute("SELECT * FROM no_such_table")

    class Upset(Exception):
        pass

    def upset() -> Iterator[dict[str, Any]]:
        yield from ({"ride_id": n} for n in range(1_200))
        raise Upset

    with psycopg.connect(database.dsn) as conn:
        pay.enqueue(conn, ride_id=7)
        with pytest.raises(Upset):
            pay.enqueue_many(conn, upset())
        pay.enqueue(conn, ride_id=8)
    # An error of the generator's own statement stays what it is: it says nothing of our schema.
    with psycopg.connect(database.dsn) as conn:
        with pytest.raises(psycopg.errors.UndefinedTable):
            pay.enqueue_many(conn, jobs(conn))
        conn.rollback()
        with pytest.raises(psycopg.errors.UndefinedTable):
            pay.enqueue_many(None, jobs(conn))
        conn.rollback()
    assert rides(database) == [7, 8]
    with pytest.raises(Upset):
        pay.enqueue_many(None, upset())
    assert rides(database) == [7, 8]


@pytest.mark.proves("DD1", "P13", "EQ5")
def test_keys_beside_the_jobs_answer_with_the_first_job(database: Database, app: App, pay: Any) -> None:
    first = pay.using(idempotency_key="b").enqueue(database.connect(), ride_id=0)
    jobs = [{"ride_id": n} for n in range(1, 6)]
    with psycopg.connect(database.dsn) as conn:
        done = enqueue_many(conn, keyed(jobs, ["a", "b", None, "a", 'c"\\,{}']), own=app.own)
        again = enqueue_many(conn, keyed(jobs, ["a", "b", None, "a", 'c"\\,{}']), own=app.own)
    assert [job.created for job in done] == [True, False, True, False, True]
    assert done[1].id == first.id
    assert done[3].id == done[0].id
    assert [job.created for job in again] == [False, False, True, False, False]
    assert [again[n].id for n in (0, 1, 3, 4)] == [done[n].id for n in (0, 1, 3, 4)]
    keys = database.connect().execute("SELECT idempotency_key FROM pgqueue.jobs ORDER BY id").fetchall()
    assert sorted(keys, key=str) == sorted([("b",), ("a",), (None,), ('c"\\,{}',), (None,)], key=str)


@pytest.mark.proves("DD1", "DD4")
def test_a_function_of_the_arguments_makes_the_keys(database: Database, pay: Any) -> None:
    bound = pay.using(idempotency_key=lambda args: f"ride:{args['ride_id'] // 2}", key_ttl="1h")
    with psycopg.connect(database.dsn) as conn:
        done = bound.enqueue_many(conn, ({"ride_id": n} for n in range(2_002)))
        one = bound.enqueue(conn, ride_id=1)
    assert [job.created for job in done] == [True, False] * 1_001
    assert one == Enqueued(done[0].id, False, "pay", "critical")
    assert database.one("SELECT count(*) FROM pgqueue.jobs") == 1_001
    assert database.one("SELECT max(expires_at - created_at)::text FROM pgqueue.dedup_keys") == "01:00:00"


@pytest.mark.proves("I21", "I23")
def test_bad_keys_are_named_before_anything_is_sent(database: Database, app: App, pay: Any) -> None:
    jobs = [{"ride_id": n} for n in range(3)]
    with psycopg.connect(database.dsn) as conn:
        for keys, kind, message in (
            (["a", ""], InvalidName, r"^idempotency_keys\[1\]: is empty"),
            (["a", "b", "c\n"], InvalidName, r"^idempotency_keys\[2\]: holds the control character"),
            (["a", 7, "c"], InvalidName, r"^idempotency_keys\[1\]: must be text, not int"),
            (["a"], InvalidOption, r"^idempotency_keys: end before job 1"),
            (["a"] * 4, InvalidOption, r"^idempotency_keys: go on after 3 jobs"),
        ):
            with pytest.raises(kind, match=message):
                enqueue_many(conn, keyed(jobs, keys), own=app.own)
        with pytest.raises(InvalidOption, match="would make them one"):
            pay.using(idempotency_key="k").enqueue_many(conn, jobs)
        with pytest.raises(InvalidName, match=r"^idempotency_keys\[0\]: the key builder raised KeyError"):
            pay.using(idempotency_key=lambda args: args["nope"]).enqueue_many(conn, jobs)
        with pytest.raises(InvalidName, match=r"^idempotency_key: must be text, not int"):
            pay.using(idempotency_key=lambda args: args["ride_id"]).enqueue(conn, ride_id=1)
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert rides(database) == []


@pytest.mark.proves("ST12", "P13")
def test_overlapping_bulks_with_keys_in_opposite_orders_do_not_deadlock(database: Database, app: App) -> None:

    keys = [f"k{n}" for n in range(200)]
    jobs: list[dict[str, Any]] = [{} for _ in keys]

    def produce(order: int) -> list[int]:
        with psycopg.connect(database.dsn) as conn:
            mine = keys if order % 2 else keys[::-1]
            return [job.id for job in enqueue_many(conn, keyed(jobs, mine), own=app.own)][
                :: 1 if order % 2 else -1
            ]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(produce, range(24)))
    assert all(answer == answers[0] for answer in answers)
    assert database.one("SELECT count(*) FROM pgqueue.jobs") == len(keys)


@pytest.mark.proves("EQ5", "P23")
def test_large_jobs_make_smaller_chunks() -> None:
    big = {"note": "x" * 200_000}
    plans = plan_many(
        "pay", itertools.repeat(big, 100), JobOptions(), defaults=TaskDefaults(), signature=None
    )
    sizes = [len(plan.parameters["args"]) for plan in plans]
    assert sum(sizes) > 20_000_000
    assert max(sizes) <= CHUNK_BYTES + 200
