"""The job exists iff the caller's transaction commits: every kind of connection and session, with commit, rollback and savepoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from rig.database import Database
from sqlalchemy import URL, create_engine, text
from sqlalchemy.engine import Connection as SAConnection
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from pgqueue import App, ConflictError, InvalidArguments, InvalidOption, Retry

pytestmark = pytest.mark.proves("P2")


class MySession(Session):
    """A subclass, as applications have."""


@pytest.fixture
def app(database: Database) -> Any:
    app = App(database.dsn)
    yield app
    app.close()


@pytest.fixture
def pay(app: App) -> Any:
    @app.task(name="pay", queue="critical")
    def pay(ctx: Any, ride_id: int, amount: int = 5) -> None:
        """Never run here."""

    return pay


def jobs(database: Database) -> list[int]:
    rows = (
        database.connect().execute("SELECT (args->>'ride_id')::int FROM pgqueue.jobs ORDER BY 1").fetchall()
    )
    return [row[0] for row in rows]


def outcomes(begin: Callable[[], Any], pay: Any, execute: Callable[[Any, str], Any]) -> None:
    """One job committed, one rolled back, one rolled back to a savepoint inside a commit."""
    kept = begin()
    pay.enqueue(kept, ride_id=1)
    kept.commit()
    gone = begin()
    pay.enqueue(gone, ride_id=2)
    gone.rollback()
    partly = begin()
    pay.enqueue(partly, ride_id=3)
    execute(partly, "SAVEPOINT here")
    pay.enqueue(partly, ride_id=4)
    pay.enqueue_many(partly, [{"ride_id": 40 + i} for i in range(3)])
    execute(partly, "ROLLBACK TO SAVEPOINT here")
    pay.enqueue_many(partly, [{"ride_id": 50 + i} for i in range(2)])
    partly.commit()
    for one in (kept, gone, partly):
        one.close()


def test_psycopg_connection_and_cursor(database: Database, pay: Any) -> None:
    outcomes(lambda: psycopg.connect(database.dsn), pay, lambda c, sql: c.execute(sql))
    with psycopg.connect(database.dsn, row_factory=psycopg.rows.dict_row) as conn, conn.cursor() as cursor:
        assert pay.enqueue(cursor, ride_id=9).created
    assert jobs(database) == [1, 3, 9, 50, 51]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize("kind", ["connection", "session", "subclass", "scoped"])
def test_sqlalchemy(database: Database, pay: Any, driver: str, kind: str) -> None:
    url = (
        database.sqlalchemy_url.set(drivername=f"postgresql+{driver}")
        if hasattr(database.sqlalchemy_url, "set")
        else database.sqlalchemy_url.replace("+psycopg", f"+{driver}")
    )
    engine = create_engine(url)
    makers: dict[str, Callable[[], Any]] = {
        "connection": engine.connect,
        "session": lambda: Session(engine),
        "subclass": lambda: MySession(engine),
        "scoped": scoped_session(sessionmaker(engine)),
    }

    def execute(where: Any, sql: str) -> None:
        where.execute(text(sql))

    outcomes(makers[kind], pay, execute)
    engine.dispose()
    assert jobs(database) == [1, 3, 50, 51]


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_async_kinds(database: Database, pay: Any, driver: str) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await pay.enqueue_async(conn, ride_id=1)
        await pay.enqueue_many_async(conn.cursor(), [{"ride_id": 2}, {"ride_id": 3}])
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await pay.enqueue_async(conn, ride_id=4)
        await conn.rollback()
    place = {"host": str(database.server.socket_dir), "port": str(database.server.port)}
    engine = create_async_engine(
        URL.create(f"postgresql+{driver}", username="postgres", database=database.name, query=place)
    )
    async with AsyncSession(engine) as session:
        await pay.enqueue_async(session, ride_id=5)
        async with session.begin_nested() as savepoint:
            await pay.enqueue_async(session, ride_id=6)
            await savepoint.rollback()
        await session.commit()
    async with engine.connect() as connection:
        await pay.enqueue_async(connection, ride_id=7)
        await connection.rollback()
    await engine.dispose()
    assert jobs(database) == [1, 2, 3, 5]


def test_a_session_flushes_its_pending_rows_first(database: Database, pay: Any) -> None:
    class Base(DeclarativeBase):
        pass

    class Ride(Base):
        __tablename__ = "rides"
        id: Mapped[int] = mapped_column(primary_key=True)

    engine = create_engine(database.sqlalchemy_url)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        ride = Ride()
        session.add(ride)
        with pytest.raises(InvalidArguments, match="flush the session first"):
            pay.enqueue(session, ride_id=ride.id)
        pay.enqueue(session, ride_id=0)
        assert ride.id is not None
        pay.enqueue(session, ride_id=ride.id)
        session.commit()
    engine.dispose()
    assert jobs(database) == [0, 1]


def test_own_transaction_from_threads_and_inside_a_loop(database: Database, app: App, pay: Any) -> None:
    assert pay.enqueue(None, ride_id=1).created

    async def main() -> None:
        await pay.enqueue_async(None, ride_id=2)
        await asyncio.to_thread(pay.enqueue, None, ride_id=3)
        assert len(await pay.enqueue_many_async(None, [{"ride_id": 4}])) == 1
        await app.own.close_async()

    asyncio.run(main())
    assert [job.created for job in pay.enqueue_many(None, [])] == []
    assert jobs(database) == [1, 2, 3, 4]


def test_a_refused_enqueue_leaves_the_transaction_usable(database: Database, pay: Any) -> None:
    refusals: list[tuple[type[Exception], Callable[[Any], Any]]] = [
        (InvalidArguments, lambda c: pay.enqueue(c, ride=1)),
        (InvalidArguments, lambda c: pay.enqueue(c, ride_id=float("nan"))),
        (InvalidArguments, lambda c: pay.enqueue(c, ride_id="a\0b")),
        (InvalidArguments, lambda c: pay.enqueue(c, ride_id="\ud800")),
        (InvalidArguments, lambda c: pay.enqueue(c, ride_id={1, 2})),
        (InvalidArguments, lambda c: pay.enqueue(c, ride_id="x" * 300_000)),
        (InvalidArguments, lambda c: pay.enqueue_many(c, [{"ride_id": 1}] * 1500 + [{"nope": 1}])),
        (InvalidOption, lambda c: pay.using(prio=1).enqueue(c, ride_id=1)),
        (ValueError, lambda c: pay.using(priority=10).enqueue(c, ride_id=1)),
        (ValueError, lambda c: pay.using(delay="-1s").enqueue(c, ride_id=1)),
        (TypeError, lambda c: pay.enqueue("dsn", ride_id=1)),
        (TypeError, lambda c: pay.enqueue(c, 1)),
    ]
    with psycopg.connect(database.dsn) as conn:
        conn.execute("CREATE TABLE mine (x int)")
        for kind, call in refusals:
            with pytest.raises(kind):
                call(conn)
            conn.execute("INSERT INTO mine VALUES (1)")
        pay.enqueue(conn, ride_id=1)
    assert jobs(database) == [1]
    assert database.connect().execute("SELECT count(*) FROM mine").fetchone() == (len(refusals),)


def test_a_failed_or_closed_connection_is_refused_before_any_statement(database: Database, pay: Any) -> None:
    conn = psycopg.connect(database.dsn)
    with pytest.raises(psycopg.errors.DivisionByZero):
        conn.execute("SELECT 1/0")
    with pytest.raises(ConflictError, match="failed before"):
        pay.enqueue(conn, ride_id=1)
    conn.close()
    with pytest.raises(ConflictError, match="closed"):
        pay.enqueue(conn, ride_id=1)


def test_a_generator_is_sent_in_chunks_all_or_none(database: Database, pay: Any) -> None:
    with psycopg.connect(database.dsn) as conn:
        done = pay.enqueue_many(conn, ({"ride_id": i} for i in range(2500)))
        with pytest.raises(InvalidArguments, match=r"args\[1200\]"):
            pay.enqueue_many(conn, ({"ride_id": i} if i != 1200 else {} for i in range(1300)))
    assert len({job.id for job in done}) == 2500
    assert jobs(database) == list(range(2500))


def test_options_are_stored(database: Database, pay: Any) -> None:
    with psycopg.connect(database.dsn) as conn:
        pay.using(
            delay="5m",
            priority=2,
            queue="mail",
            tags=["a", 'b"\\c'],
            headers={"k": "v"},
            timeout="3s",
            retry=Retry(max_retries=1, initial_delay="1s"),
            concurrency_key="city:1",
        ).enqueue(conn, ride_id=1)
    row = (
        database.connect()
        .execute(
            "SELECT state, queue, priority, tags, headers, timeout_s, max_attempts, concurrency_key,"
            " run_at - created_at = interval '5 minutes' FROM pgqueue.jobs"
        )
        .fetchone()
    )
    assert row == ("scheduled", "mail", 2, ["a", 'b"\\c'], {"k": "v"}, 3.0, 2, "city:1", True)


def test_by_name_the_database_knows_the_queue(database: Database, app: App) -> None:
    conn = database.connect()
    conn.execute("INSERT INTO pgqueue.tasks VALUES ('elsewhere', 'mail', 3, 9)")
    app.enqueue("elsewhere", {"x": 1})
    conn.execute("SELECT pgqueue.enqueue('elsewhere', '{\"x\": 2}')")
    rows = conn.execute("SELECT queue, priority, max_attempts FROM pgqueue.jobs").fetchall()
    assert rows == [("mail", 3, 9)] * 2


@pytest.mark.parametrize(
    "call",
    [
        "pgqueue.enqueue('a b')",
        "pgqueue.enqueue('t', '[]')",
        "pgqueue.enqueue('t', 'null')",
        "pgqueue.enqueue('t', NULL)",
        "pgqueue.enqueue('t', '{}', queue => 'Not A Queue')",
        "pgqueue.enqueue('t', '{}', priority => 10)",
        "pgqueue.enqueue('t', '{}', delay => '-1 s')",
        "pgqueue.enqueue('t', '{}', delay => '1 s', run_at => now())",
        "pgqueue.enqueue('t', '{}', run_at => 'infinity')",
        "pgqueue.enqueue('t', '{}', idempotency_key => '')",
        "pgqueue.enqueue_many('t', ARRAY['{}', '[]']::jsonb[])",
    ],
)
@pytest.mark.proves("I41")
def test_sql_refuses_what_python_refuses(database: Database, call: str) -> None:
    conn = database.connect()
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(f"SELECT {call}")
    assert caught.value.sqlstate == "22023"
    assert isinstance(SAConnection, type)
