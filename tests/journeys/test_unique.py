"""How long a key is held, what a second use of it means, and the short ways to say both: from Python and from SQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.hands import Hand, row_of, transitions
from rig.wait import wait_for
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from pgqueue import App, DuplicateKey, InvalidOption, Task
from pgqueue.storage.statements import statement

TIMES = ["time", "forever", "live", "waiting"]


@pytest.fixture
def app(database: Database) -> Iterator[App]:
    app = App(database.dsn)
    yield app
    app.close()


@pytest.fixture
def pay(app: App) -> Task[..., Any]:
    @app.task(name="pay")
    def pay(ride_id: int, cents: int = 0) -> None:
        """Pay a ride."""

    return pay


@pytest.fixture
def conn(database: Database) -> psycopg.Connection[Any]:
    return database.connect()


@pytest.fixture
def hand(conn: psycopg.Connection[Any]) -> Hand:
    hand = Hand(conn)
    hand.register()
    return hand


def jobs(conn: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return conn.execute("SELECT id, state, args FROM pgqueue.jobs ORDER BY id").fetchall()


def overdue(conn: psycopg.Connection[Any]) -> int:
    """Let the time of every key pass, and upkeep look at them; how many keys are left."""
    conn.execute(
        "UPDATE pgqueue.dedup_keys SET expires_at = clock_timestamp() - interval '1 s' WHERE isfinite(expires_at)"
    )
    conn.execute(statement("expire_keys"), {"batch": 100})
    return int(conn.execute("SELECT count(*) FROM pgqueue.dedup_keys").fetchone()[0])  # type: ignore[index]


@pytest.mark.proves("P13", "DD1")
@pytest.mark.parametrize(
    ("scope", "held"),
    [  # while it waits · runs · waits for its retry · after it succeeded · when the key's time is over
        ("time", "yes yes yes yes no"),
        ("forever", "yes yes yes yes yes"),
        ("live", "yes yes yes no no"),
        ("waiting", "yes no no no no"),
    ],
)
def test_a_key_is_held_as_long_as_its_scope_says(
    conn: psycopg.Connection[Any], hand: Hand, scope: str, held: str
) -> None:
    def second() -> bool:
        """Whether the key is still the first job's; what a second use makes is taken back."""
        with conn.transaction(force_rollback=True):
            sql = "SELECT job_id, created FROM pgqueue.enqueue_job('pay', idempotency_key => 'k', key_scope => %s)"
            job_id, created = conn.execute(sql, [scope]).fetchone()  # type: ignore[misc]
            assert created == (job_id != first)
            return not created

    first = conn.execute(
        "SELECT pgqueue.enqueue('pay', idempotency_key => 'k', key_scope => %s)", [scope]
    ).fetchone()[0]  # type: ignore[index]
    seen = [second()]
    job = hand.claim()[0]
    seen.append(second())
    hand.settle("retry", job)
    seen.append(second())
    hand.promote()
    hand.succeed(*hand.claim())
    seen.append(second())
    left = overdue(conn)
    seen.append(second())
    assert ["yes" if one else "no" for one in seen] == held.split()
    assert left == (scope == "forever")


@pytest.mark.proves("P13", "P23")
def test_upkeep_keeps_the_keys_of_jobs_that_live_or_may_be_redriven(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    enqueue = "SELECT pgqueue.enqueue('pay', idempotency_key => %s, key_scope => 'live')"
    for key in ("dies", "ends", "waits"):
        conn.execute(enqueue, [key])
    dies, ends = hand.claim(2)
    hand.settle("dead", dies, reason="rejected")
    hand.succeed(ends)
    assert overdue(conn) == 2
    assert {row[0] for row in conn.execute("SELECT key FROM pgqueue.dedup_keys").fetchall()} == {
        "dies",
        "waits",
    }
    conn.execute("SELECT pgqueue.discard(%s)", [dies.id])
    assert overdue(conn) == 1


@pytest.mark.proves("P13", "DD1")
@pytest.mark.parametrize("scope", TIMES)
def test_a_redrive_takes_the_key_along(conn: psycopg.Connection[Any], hand: Hand, scope: str) -> None:
    enqueue = (
        "SELECT job_id, created FROM pgqueue.enqueue_job('pay', idempotency_key => 'k', key_scope => %s)"
    )
    first = conn.execute(enqueue, [scope]).fetchone()[0]  # type: ignore[index]
    hand.settle("dead", *hand.claim(), reason="rejected")
    again = conn.execute("SELECT pgqueue.redrive(%s)", [first]).fetchone()[0]  # type: ignore[index]
    assert again != first
    assert conn.execute(enqueue, [scope]).fetchone() == (again, False)
    assert transitions(conn, again) == [("dead", "ready", "redriven")]


@pytest.mark.proves("P13")
def test_a_redrive_whose_key_has_another_job_by_now_makes_no_second_one(
    conn: psycopg.Connection[Any], hand: Hand
) -> None:
    enqueue = "SELECT pgqueue.enqueue('pay', idempotency_key => 'k', key_scope => 'live')"
    first = conn.execute(enqueue).fetchone()[0]  # type: ignore[index]
    hand.settle("dead", *hand.claim(), reason="rejected")
    other = conn.execute(enqueue).fetchone()[0]  # type: ignore[index]
    assert other != first
    for _ in range(2):
        assert conn.execute("SELECT pgqueue.redrive(%s)", [first]).fetchone() == (other,)
    assert [row[0] for row in jobs(conn)] == [other]
    audit = conn.execute("SELECT target, changed, detail FROM pgqueue.operator_audit").fetchall()
    assert audit == [(f"dead letter {first}", 0, {"redriven_as": other, "its_key_had_a_job": True})]


@pytest.mark.proves("P2", "P13", "DD3")
@pytest.mark.parametrize("kind", ["psycopg", "sqlalchemy", "own"])
def test_raise_names_the_other_job_and_leaves_the_transaction_usable(
    database: Database, conn: psycopg.Connection[Any], pay: Task[..., Any], kind: str
) -> None:
    strict = pay.using(idempotency_key="k", on_conflict="raise")
    first = strict.enqueue(conn, ride_id=1)

    def twice(where: Any) -> None:
        for call in (
            lambda: strict.enqueue(where, ride_id=2),
            lambda: pay.using(idempotency_key=lambda args: "k", on_conflict="raise").enqueue_many(where, [{"ride_id": 3}]),
            lambda: pay.using(
                idempotency_key=lambda args: f"n{args['ride_id'] // 2}", on_conflict="raise"
            ).enqueue_many(where, [{"ride_id": n} for n in (10, 12, 13)]),
        ):  # fmt: skip
            with pytest.raises(
                DuplicateKey, match=r"^task pay: job \d+ has this idempotency key already"
            ) as told:
                call()
            assert told.value.exit_code == 4
        with pytest.raises(DuplicateKey) as told:
            strict.enqueue(where, ride_id=2)
        assert told.value.job_id == first.id

    if kind == "own":
        twice(None)
        pay.enqueue(None, ride_id=9)
    elif kind == "psycopg":
        with psycopg.connect(database.dsn) as own:
            twice(own)
            pay.enqueue(own, ride_id=9)
    else:
        engine = create_engine(database.sqlalchemy_url)
        with Session(engine) as session:
            twice(session)
            pay.enqueue(session, ride_id=9)
            session.commit()
        engine.dispose()
    assert [args["ride_id"] for _, _, args in jobs(conn)] == [1, 9]


@pytest.mark.proves("DD3")
def test_raise_in_sql_is_an_error_with_a_code_of_its_own(conn: psycopg.Connection[Any]) -> None:
    first = conn.execute("SELECT pgqueue.enqueue('pay', idempotency_key => 'k')").fetchone()[0]  # type: ignore[index]
    with pytest.raises(
        psycopg.Error, match=f"task pay: job {first} has this idempotency key already"
    ) as told:
        conn.execute("SELECT pgqueue.enqueue('pay', idempotency_key => 'k', on_conflict => 'raise')")
    assert told.value.sqlstate == "PQ013"


@pytest.mark.proves("DD3")
def test_replace_gives_a_waiting_job_the_newest_arguments_and_time(
    conn: psycopg.Connection[Any], pay: Task[..., Any]
) -> None:
    newest = pay.using(idempotency_key="k", on_conflict="replace")
    first = newest.using(delay="1h").enqueue(conn, ride_id=1)
    assert (first.created, first.replaced) == (True, False)
    second = newest.using(delay="2h", headers={"h": "2"}).enqueue(conn, ride_id=2)
    assert (second.id, second.created, second.replaced) == (first.id, False, True)
    row = row_of(conn, "jobs", first.id)
    assert row is not None
    assert (row["state"], row["args"], row["headers"]) == ("scheduled", {"ride_id": 2}, {"h": "2"})
    assert 7100 < (row["run_at"] - row["created_at"]).total_seconds() < 7300
    assert newest.enqueue(conn, ride_id=3).replaced
    assert newest.using(delay="1h").enqueue(conn, ride_id=4).replaced
    assert jobs(conn) == [(first.id, "scheduled", {"ride_id": 4})]
    assert transitions(conn, first.id) == [
        ("scheduled", "ready", "rescheduled"),
        ("ready", "scheduled", "rescheduled"),
    ]


@pytest.mark.proves("DD3")
def test_replace_leaves_a_job_alone_that_has_begun_or_ended(
    conn: psycopg.Connection[Any], hand: Hand, pay: Task[..., Any]
) -> None:
    newest = pay.using(idempotency_key="k", on_conflict="replace")
    first = newest.enqueue(conn, ride_id=1)

    def is_left_alone() -> bool:
        answer = newest.enqueue(conn, ride_id=2)
        return (answer.id, answer.created, answer.replaced) == (first.id, False, False)

    job = hand.claim()[0]
    assert is_left_alone()
    hand.settle("retry", job)
    assert is_left_alone(), "its first attempt may have left traces of the old arguments"
    hand.promote()
    hand.succeed(*hand.claim())
    assert is_left_alone()
    history = row_of(conn, "job_history", first.id)
    assert history is not None
    assert history["args"] == {"ride_id": 1}


@pytest.mark.proves("DD3")
def test_replace_leaves_a_held_job_held(
    conn: psycopg.Connection[Any], hand: Hand, pay: Task[..., Any]
) -> None:
    newest = pay.using(idempotency_key="k", on_conflict="replace")
    first = newest.enqueue(conn, ride_id=1)
    hand.settle("held", *hand.claim(), reason="unknown_task")
    assert newest.enqueue(conn, ride_id=2).replaced
    assert jobs(conn) == [(first.id, "held", {"ride_id": 2})]
    assert hand.free_held(tasks=["pay"]) == 1


@pytest.mark.proves("DD5")
def test_debounce_ten_calls_one_run_with_the_last_arguments_then_the_next_round(
    conn: psycopg.Connection[Any], hand: Hand, app: App
) -> None:
    @app.task(name="rank", unique=("city",), debounce="1h")
    def rank(city: str, n: int) -> None:
        """Rank a city's drivers."""

    told = [rank.enqueue(conn, city="Bridgetown", n=n) for n in range(10)]
    other = rank.enqueue(conn, city="Holetown", n=0)
    assert [one.created for one in told] == [True] + [False] * 9
    assert {one.id for one in told} == {told[0].id} != {other.id}
    assert [(state, args["n"]) for _, state, args in jobs(conn)] == [("scheduled", 9), ("scheduled", 0)]
    conn.execute("UPDATE pgqueue.jobs SET run_at = clock_timestamp()")
    hand.promote()
    assert len(hand.claim()) == 2
    again = rank.enqueue(conn, city="Bridgetown", n=10)
    assert again.created, "the one that runs may have read its data already"


@pytest.mark.proves("DD5")
def test_throttle_one_job_in_its_time(conn: psycopg.Connection[Any], app: App) -> None:
    @app.task(name="greet", unique="user", unique_for="1h")
    def greet(user: int, text: str) -> None:
        """Greet."""

    first = greet.enqueue(conn, user=1, text="a")
    assert greet.enqueue(conn, user=1, text="b").id == first.id
    assert greet.enqueue(conn, user=2, text="b").created
    assert greet.using(unique=True, unique_for="1h").enqueue(conn, user=1, text="b").created
    life = conn.execute(
        "SELECT extract(epoch FROM expires_at - created_at) FROM pgqueue.dedup_keys"
    ).fetchall()
    assert {float(row[0]) for row in life} == {3600.0}


@pytest.mark.proves("DD4")
def test_unique_in_bulk_and_by_name(conn: psycopg.Connection[Any], app: App, pay: Task[..., Any]) -> None:
    rides = [{"ride_id": n % 3} for n in range(6)]
    told = pay.using(unique="ride_id").enqueue_many(conn, rides)
    assert [one.created for one in told] == [True] * 3 + [False] * 3
    assert [one.id for one in told[:3]] == [one.id for one in told[3:]]
    assert not app.enqueue("pay", {"ride_id": 1}, where=conn, unique=("ride_id",)).created
    newest = pay.using(unique="ride_id", on_conflict="replace", key_scope="waiting")
    told = newest.enqueue_many(
        conn, [{"ride_id": n, "cents": c} for n, c in [(5, 1), (0, 2), (5, 3), (0, 4)]]
    )
    assert [(one.created, one.replaced) for one in told] == [
        (False, False),
        (False, True),
        (True, False),
        (False, True),
    ]
    assert [args for _, _, args in jobs(conn)] == [
        {"ride_id": 0, "cents": 4}, {"ride_id": 1}, {"ride_id": 2}, {"ride_id": 5, "cents": 3}
    ]  # fmt: skip


def test_a_misspelt_argument_is_found_where_it_is_written(app: App, pay: Task[..., Any]) -> None:
    with pytest.raises(InvalidOption, match=r"^unique: task pay has no argument 'ride'"):
        pay.using(unique="ride")
    with pytest.raises(InvalidOption, match=r"^unique: task bad has no argument 'x'"):
        app.task(name="bad", unique="x")(lambda y: None)
    with pytest.raises(TypeError, match="unexpected option 'colour'"):
        app.task(name="bad", colour="red")(lambda y: None)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("idempotency_key => 'k', key_scope => 'always'", "key_scope: unknown; there are"),
        ("idempotency_key => 'k', on_conflict => 'ignore'", "on_conflict: unknown; there are"),
        ("key_scope => 'live'", "key_scope: is given without idempotency_key"),
        ("on_conflict => 'raise'", "on_conflict: is given without idempotency_key"),
        ("idempotency_key => 'k', key_scope => 'live', key_ttl => '1 h'", "key_ttl: is given together with key_scope live"),
    ],
)  # fmt: skip
def test_sql_refuses_what_python_refuses(
    conn: psycopg.Connection[Any], arguments: str, complaint: str
) -> None:
    many = arguments.replace("idempotency_key => 'k'", "idempotency_keys => '{k}'")
    for call in (
        f"pgqueue.enqueue('t', {arguments})",
        f"pgqueue.enqueue_many('t', ARRAY['{{}}'::jsonb], {many})",
    ):
        with pytest.raises(psycopg.Error, match=complaint) as told:
            conn.execute(f"SELECT {call}".encode())
        assert told.value.sqlstate == "22023"


@pytest.mark.proves("P13", "F53")
@pytest.mark.parametrize(
    ("scope", "before"),
    [*((scope, "free") for scope in TIMES), ("time", "over"), ("live", "over"), ("waiting", "over")],
)
def test_a_hundred_producers_make_one_job_whatever_the_scope(
    database: Database, conn: psycopg.Connection[Any], hand: Hand, scope: str, before: str
) -> None:
    """`over`: the key was used before and its life has just ended, so all of them want to take it over."""
    sql = "SELECT job_id, created FROM pgqueue.enqueue_job('pay', idempotency_key => 'k', key_scope => %s)"
    if before == "over":
        conn.execute(sql, [scope])
        hand.succeed(*hand.claim())
        conn.execute("UPDATE pgqueue.dedup_keys SET expires_at = clock_timestamp() - interval '1 s'")
    start = threading.Barrier(10)

    def produce(number: int) -> list[tuple[int, bool]]:
        told = []
        with psycopg.connect(database.dsn) as own:
            start.wait(60)
            for turn in range(10):
                told.append(own.execute(sql, [scope]).fetchone())
                if (number + turn) % 4 == 0:
                    own.rollback()
                    told.pop()
                else:
                    own.commit()
        return told  # type: ignore[return-value]  # one row each

    with ThreadPoolExecutor(10) as threads:
        told = [answer for answers in threads.map(produce, range(10)) for answer in answers]
    assert sum(created for _, created in told) == 1
    assert {job_id for job_id, _ in told} == {job_id for job_id, _, _ in jobs(conn)}
    assert len(jobs(conn)) == 1


@pytest.mark.proves("P13")
def test_producers_and_workers_at_once_never_two_live_jobs_of_a_live_key(
    database: Database, conn: psycopg.Connection[Any], app: App
) -> None:
    overlapping: list[int] = []
    done = threading.Event()

    @app.task(name="lone", unique=True)
    def lone() -> None:
        """Does nothing."""

    def watch() -> None:
        with psycopg.connect(database.dsn, autocommit=True) as own:
            while not done.is_set():
                row = own.execute("SELECT count(*) FROM pgqueue.jobs").fetchone()
                if row is not None and row[0] > 1:
                    overlapping.append(row[0])

    worker = app.worker("default", concurrency=4)
    threads = [threading.Thread(target=worker.run), threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    made: set[int] = set()
    try:
        with ThreadPoolExecutor(4) as producers:
            for batch in producers.map(lambda _: [lone.enqueue(None) for _ in range(25)], range(4)):
                made |= {one.id for one in batch if one.created}
        wait_for(lambda: not jobs(conn), 30, what="the last job's end")
    finally:
        done.set()
        worker.stop()
        for thread in threads:
            thread.join(30)
    assert overlapping == []
    assert made == {row[0] for row in conn.execute("SELECT job_id FROM pgqueue.job_history").fetchall()}


@pytest.mark.proves("P2", "F59", "ST14")
@pytest.mark.parametrize("scope", TIMES)
def test_from_repeatable_read_up_a_concurrent_use_is_a_serialization_failure(
    database: Database, pay: Task[..., Any], scope: str
) -> None:
    keyed = pay.using(idempotency_key="k", key_scope=scope)
    with psycopg.connect(database.dsn) as old:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("SELECT")
        keyed.enqueue(database.connect(), ride_id=1)
        with pytest.raises(psycopg.errors.SerializationFailure) as told:
            keyed.enqueue(old, ride_id=2)
        assert "from REPEATABLE READ up" in told.value.__notes__[0]
        old.rollback()
        assert not keyed.enqueue(old, ride_id=2).created


@pytest.mark.proves("P13")
def test_a_producer_that_met_a_waiting_job_commits_before_the_job_starts(
    database: Database, conn: psycopg.Connection[Any], hand: Hand, pay: Task[..., Any]
) -> None:
    waiting = pay.using(idempotency_key="k", key_scope="waiting")
    first = waiting.enqueue(conn, ride_id=1)
    with psycopg.connect(database.dsn) as producer:
        assert waiting.enqueue(producer, ride_id=1).id == first.id
        assert hand.claim() == [], "what the producer wrote could not be seen yet"
    assert [job.id for job in hand.claim()] == [first.id]
