"""Every kind of connection and session that an application may hold: the job exists iff its transaction commits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from rig.database import Database
from sqlalchemy import URL, create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from pgqueue import App, ConflictError, InvalidArguments, SchemaMismatch

LONG = 1_001  # one more than a statement takes: the second chunk is a statement of its own


class OurConnection(psycopg.Connection[Any]):
    """A subclass, as applications have."""


class OurSession(Session):
    """A subclass, as applications have."""


class OurAsyncSession(AsyncSession):
    """A subclass, as applications have."""


@pytest.fixture
def app(database: Database) -> Iterator[App]:
    app = App(database.dsn)
    yield app
    app.close()


@pytest.fixture
def pay(app: App) -> Any:
    @app.task(name="pay", queue="critical")
    def pay(ctx: Any, ride_id: int, amount: int = 5) -> None:
        """Never run here."""

    return pay


def url(database: Database, driver: str) -> URL:
    place = {"host": str(database.server.socket_dir), "port": str(database.server.port)}
    return URL.create(
        f"postgresql+{driver}", username=database.server.user, database=database.name, query=place
    )


def found(database: Database) -> dict[int, int]:
    """Jobs per ride."""
    rows = database.connect().execute("SELECT (args->>'ride_id')::int, count(*) FROM pgqueue.jobs GROUP BY 1")
    return dict(rows.fetchall())


@dataclass
class Door:
    """A `where`, and how its owner ends what it began."""

    where: Any
    execute: Callable[[str], Any]
    commit: Callable[[], Any]
    rollback: Callable[[], Any]
    close: Callable[[], Any]


def psycopg_doors(database: Database) -> dict[str, Callable[[], Door]]:
    def connection(cls: Any = psycopg.Connection, **options: Any) -> Door:
        conn = cls.connect(database.dsn, **options)
        return Door(conn, conn.execute, conn.commit, conn.rollback, conn.close)

    def cursor(**options: Any) -> Door:
        door = connection()
        door.where = door.where.cursor(**options)
        return door

    return {
        "connection": connection,
        "subclass": lambda: connection(OurConnection),
        "dict_row": lambda: connection(row_factory=dict_row),
        "raw cursor factory": lambda: connection(cursor_factory=psycopg.RawCursor),
        "client cursor factory": lambda: connection(cursor_factory=psycopg.ClientCursor),
        "cursor": cursor,
        "dict_row cursor": lambda: cursor(row_factory=dict_row),
        "no prepared statements": lambda: connection(prepare_threshold=None),
    }


def sqlalchemy_door(database: Database, driver: str, kind: str) -> Door:
    engine = create_engine(url(database, driver), poolclass=NullPool)
    where: Any = {
        "Connection": engine.connect,
        "Session": lambda: Session(engine),
        "subclass": lambda: OurSession(engine),
        "scoped_session": lambda: scoped_session(sessionmaker(engine)),
    }[kind]()
    return Door(where, lambda sql: where.execute(text(sql)), where.commit, where.rollback, where.close)


WAYS: dict[str, Callable[[Any, Any, int], Any]] = {
    "one": lambda task, where, ride: task.enqueue(where, ride_id=ride),
    "list": lambda task, where, ride: task.enqueue_many(where, [{"ride_id": ride}] * LONG),
    "generator": lambda task, where, ride: task.enqueue_many(where, ({"ride_id": ride} for _ in range(LONG))),
}
WAYS_ASYNC: dict[str, Callable[[Any, Any, int], Awaitable[Any]]] = {
    "one": lambda task, where, ride: task.enqueue_async(where, ride_id=ride),
    "list": lambda task, where, ride: task.enqueue_many_async(where, [{"ride_id": ride}] * LONG),
    "generator": lambda task, where, ride: task.enqueue_many_async(
        where, ({"ride_id": ride} for _ in range(LONG))
    ),
}


def play(door: Door, put: Callable[[Any, Any, int], Any], task: Any) -> None:
    """Committed: rides 1, 3, 5. Rolled back: 2 as a whole, 4 to a savepoint."""
    put(task, door.where, 1)
    door.commit()
    put(task, door.where, 2)
    door.rollback()
    put(task, door.where, 3)
    door.execute("SAVEPOINT here")
    put(task, door.where, 4)
    door.execute("ROLLBACK TO SAVEPOINT here")
    put(task, door.where, 5)
    door.commit()
    door.close()


async def play_async(door: Door, put: Callable[[Any, Any, int], Awaitable[Any]], task: Any) -> None:
    await put(task, door.where, 1)
    await door.commit()
    await put(task, door.where, 2)
    await door.rollback()
    await put(task, door.where, 3)
    await door.execute("SAVEPOINT here")
    await put(task, door.where, 4)
    await door.execute("ROLLBACK TO SAVEPOINT here")
    await put(task, door.where, 5)
    await door.commit()
    await door.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.proves("P2", "EQ1")
def test_psycopg(database: Database, pay: Any, way: str) -> None:
    each = 1 if way == "one" else LONG
    for count, make in enumerate(psycopg_doors(database).values(), start=1):
        play(make(), WAYS[way], pay)
        assert found(database) == {1: each * count, 3: each * count, 5: each * count}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.proves("P2", "EQ2")
def test_sqlalchemy(database: Database, pay: Any, driver: str, way: str) -> None:
    each = 1 if way == "one" else LONG
    kinds = ("Connection", "Session", "subclass", "scoped_session")
    for count, kind in enumerate(kinds, start=1):
        play(sqlalchemy_door(database, driver, kind), WAYS[way], pay)
        assert found(database) == {1: each * count, 3: each * count, 5: each * count}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.proves("P2", "EQ1")
async def test_psycopg_async(database: Database, pay: Any, way: str) -> None:
    each = 1 if way == "one" else LONG
    for count, cursor in enumerate((False, True), start=1):
        conn = await psycopg.AsyncConnection.connect(database.dsn, row_factory=dict_row)
        where: Any = conn.cursor() if cursor else conn
        await play_async(
            Door(where, conn.execute, conn.commit, conn.rollback, conn.close), WAYS_ASYNC[way], pay
        )
        assert found(database) == {1: each * count, 3: each * count, 5: each * count}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.proves("P2", "EQ2", "SA1")
async def test_sqlalchemy_async(database: Database, pay: Any, driver: str, way: str) -> None:
    each = 1 if way == "one" else LONG
    engine = create_async_engine(url(database, driver), poolclass=NullPool)
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: None)
    async with engine.connect() as connection:
        kinds: list[Any] = [connection, AsyncSession(engine), OurAsyncSession(engine), scoped]
        for count, where in enumerate(kinds, start=1):

            async def execute(sql: str, where: Any = where) -> None:
                await where.execute(text(sql))

            door = Door(where, execute, where.commit, where.rollback, where.close)
            await play_async(door, WAYS_ASYNC[way], pay)
            assert found(database) == {1: each * count, 3: each * count, 5: each * count}
    await engine.dispose()


@pytest.mark.proves("P2", "EQ2")
def test_a_session_inside_run_sync_of_an_async_one(database: Database, pay: Any) -> None:
    async def main() -> None:
        engine = create_async_engine(url(database, "asyncpg"), poolclass=NullPool)
        async with AsyncSession(engine) as session:
            await session.run_sync(lambda sync: pay.enqueue(sync, ride_id=1))
            await session.commit()

    asyncio.run(main())
    assert found(database) == {1: 1}


@pytest.mark.proves("P2", "EQ1")
def test_a_cut_link_before_commit_leaves_no_job(database: Database, pay: Any) -> None:
    conn = psycopg.connect(database.dsn)
    pay.enqueue(conn, ride_id=1)
    database.connect().execute("SELECT pg_terminate_backend(%s, 5000)", (conn.info.backend_pid,))
    with pytest.raises(psycopg.OperationalError):
        conn.commit()
    conn.close()
    with pytest.raises(ConflictError, match="closed or lost"):
        pay.enqueue(conn, ride_id=2)
    assert found(database) == {}


@pytest.mark.proves("P2", "SA2")
def test_autocommit_connections_enqueue_at_once_and_bulks_all_or_none(database: Database, pay: Any) -> None:
    conn = database.connect()
    pay.enqueue(conn, ride_id=1)
    bad = ({"ride_id": 2} if n != 1_500 else {"ride": 2} for n in range(1_600))
    with pytest.raises(InvalidArguments, match=r"args\[1500\]"):
        pay.enqueue_many(conn, bad)
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    pay.enqueue_many(conn, ({"ride_id": 3} for _ in range(LONG)))
    with conn.transaction(), pytest.raises(InvalidArguments):
        pay.enqueue_many(conn, ({"ride_id": 4} if n < LONG else {} for n in range(LONG + 1)))
    assert found(database) == {1: 1, 3: LONG}


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.proves("SA2")
def test_an_engine_in_autocommit_mode_is_told_once(database: Database, pay: Any, driver: str) -> None:
    engine = create_engine(url(database, driver), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with Session(engine) as session:
        with pytest.warns(UserWarning, match="AUTOCOMMIT"):
            pay.enqueue(session, ride_id=1)
        pay.enqueue(session, ride_id=1)
        bad = ({"ride_id": 2} if n != 1_500 else {"ride": 2} for n in range(1_600))
        with pytest.raises(InvalidArguments):
            pay.enqueue_many(session, bad)
        pay.enqueue_many(session, ({"ride_id": 3} for _ in range(LONG)))
        session.rollback()
    assert found(database) == {1: 2, 3: LONG}


@pytest.mark.parametrize("kind", ["psycopg", "psycopg2", "asyncpg"])
@pytest.mark.proves("I40", "F59", "P2")
async def test_a_transaction_that_has_failed_is_told_so(database: Database, pay: Any, kind: str) -> None:
    if kind == "asyncpg":
        engine = create_async_engine(url(database, kind), poolclass=NullPool)
        async with engine.connect() as connection:
            with pytest.raises(DBAPIError):
                await connection.execute(text("SELECT 1/0"))
            with pytest.raises(ConflictError, match="failed before"):
                await pay.enqueue_async(connection, ride_id=1)
            await connection.rollback()
            await pay.enqueue_async(connection, ride_id=2)
            await connection.commit()
    else:
        with Session(create_engine(url(database, kind), poolclass=NullPool)) as session:
            with pytest.raises(DBAPIError):
                session.execute(text("SELECT 1/0"))
            with pytest.raises(ConflictError, match="failed before"):
                pay.enqueue(session, ride_id=1)
            session.rollback()
            pay.enqueue(session, ride_id=2)
            session.commit()
    assert found(database) == {2: 1}


@pytest.mark.proves("I40")
def test_what_is_closed_failed_or_read_only_is_refused_before_any_statement(
    database: Database, pay: Any
) -> None:
    sent: list[str] = []
    engine = create_engine(url(database, "psycopg"), poolclass=NullPool)
    event.listen(engine, "before_cursor_execute", lambda c, cu, statement, *_: sent.append(statement))
    closed = engine.connect()
    closed.close()
    failed = psycopg.connect(database.dsn)
    with pytest.raises(psycopg.errors.DivisionByZero):
        failed.execute("SELECT 1/0")
    cursor = psycopg.connect(database.dsn).cursor()
    cursor.close()
    reader = psycopg.connect(database.dsn)
    reader.read_only = True
    sent.clear()
    refused: list[tuple[Any, str]] = [
        (closed, "closed"),
        (failed, "failed before"),
        (cursor, "cursor is closed"),
        (reader, "read-only"),
    ]
    for where, reason in refused:
        with pytest.raises(ConflictError, match=reason):
            pay.enqueue(where, ride_id=1)
    assert sent == []
    for conn in (failed, cursor.connection, reader):
        conn.close()
    assert found(database) == {}


@pytest.mark.proves("F59")
def test_a_transaction_that_turns_out_read_only_is_told_so(database: Database, pay: Any) -> None:
    with psycopg.connect(database.dsn) as conn:
        conn.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(ConflictError, match="read-only"):
            pay.enqueue(conn, ride_id=1)
        conn.rollback()
        pay.enqueue(conn, ride_id=2)
    assert found(database) == {2: 1}


@pytest.mark.proves("I40", "SA3")
async def test_the_wrong_kind_is_a_type_error_that_names_the_right_ones(database: Database, pay: Any) -> None:
    engine = create_engine(url(database, "psycopg"))
    async_engine = create_async_engine(url(database, "psycopg"))
    conn = psycopg.connect(database.dsn)
    async_conn = await psycopg.AsyncConnection.connect(database.dsn)
    for foreign in ("postgresql://x", 7, object(), engine, sessionmaker(engine), async_engine):
        with pytest.raises(TypeError, match=r"psycopg Connection or Cursor, .*scoped_session, or None"):
            pay.enqueue(foreign, ride_id=1)
        with pytest.raises(
            TypeError, match=r"AsyncConnection or AsyncCursor, .*async_scoped_session, or None"
        ):
            await pay.enqueue_async(foreign, ride_id=1)
    for where in (async_conn, async_conn.cursor(), AsyncSession(async_engine), async_engine.connect()):
        with pytest.raises(TypeError, match="is async; call the method whose name ends in _async"):
            pay.enqueue(where, ride_id=1)
    for sync in (conn, conn.cursor(), Session(engine)):
        with pytest.raises(TypeError, match="is not async"):
            await pay.enqueue_async(sync, ride_id=1)
    with pytest.raises(ConflictError, match="not opened yet"):
        await pay.enqueue_async(async_engine.connect(), ride_id=1)
    conn.close()
    await async_conn.close()
    await async_engine.dispose()
    engine.dispose()
    assert found(database) == {}


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.proves("F59", "ST14")
def test_at_higher_isolation_a_concurrent_duplicate_is_the_callers_serialization_failure(
    database: Database, pay: Any, level: str
) -> None:
    keyed = pay.using(idempotency_key="k", headers={"canary": "hunter2"})
    with psycopg.connect(database.dsn) as late:
        late.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        late.execute("SELECT 1 FROM pgqueue.queues")
        keyed.enqueue(database.connect(), ride_id=1)
        with pytest.raises(psycopg.errors.SerializationFailure) as caught:
            keyed.enqueue(late, ride_id=1)
        assert "repeat the transaction" in "".join(caught.value.__notes__)
    engine = create_engine(url(database, "psycopg"), isolation_level=level, poolclass=NullPool)
    with Session(engine) as session:
        session.execute(text("SELECT 1 FROM pgqueue.queues"))
        database.connect().execute("DELETE FROM pgqueue.dedup_keys")
        keyed.enqueue(database.connect(), ride_id=1)
        with pytest.raises(DBAPIError) as through:
            keyed.enqueue(session, ride_id=1)
        assert getattr(through.value.orig, "sqlstate", None) == "40001"
        assert "hunter2" not in str(through.value)
    assert found(database) == {1: 2}


@pytest.mark.proves("F59", "P2")
def test_two_phase_commit_holds_the_job_until_it_is_committed(database: Database, pay: Any) -> None:
    with psycopg.connect(database.dsn) as conn:
        conn.tpc_begin("one")
        pay.enqueue(conn, ride_id=1)
        conn.tpc_prepare()
        assert found(database) == {}
        conn.tpc_commit()
        conn.tpc_begin("two")
        pay.enqueue(conn, ride_id=2)
        conn.tpc_prepare()
        conn.tpc_rollback()
    assert found(database) == {1: 1}


@pytest.mark.proves("P2", "F59")
def test_nothing_is_set_on_the_callers_connection(database: Database, pay: Any) -> None:
    with psycopg.connect(database.dsn, row_factory=dict_row) as conn:
        conn.execute("SET search_path = pg_temp")
        state = "SELECT name, setting FROM pg_catalog.pg_settings WHERE source = 'session' ORDER BY 1"
        before = conn.execute(state).fetchall()
        pay.using(idempotency_key="k", delay="1m", tags=["t"]).enqueue(conn, ride_id=1)
        pay.enqueue_many(conn, ({"ride_id": 2} for _ in range(LONG)))
        assert conn.execute(state).fetchall() == before
        assert conn.row_factory is dict_row
        assert conn.execute(
            "SELECT count(*) AS n FROM pg_catalog.pg_locks WHERE locktype = 'advisory'"
        ).fetchall() == [{"n": 0}]
    assert found(database) == {1: 1, 2: LONG}


@pytest.mark.proves("S3", "P2")
def test_a_hostile_search_path_changes_nothing(database: Database, pay: Any) -> None:
    with psycopg.connect(database.dsn) as conn:
        conn.execute(
            """CREATE SCHEMA evil;
            CREATE DOMAIN evil.text AS pg_catalog.text CHECK (false);
            CREATE DOMAIN evil.jsonb AS pg_catalog.jsonb CHECK (false);
            CREATE FUNCTION evil.make_interval(secs double precision) RETURNS interval
              LANGUAGE sql AS $$ SELECT '99 years'::interval $$;
            CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT '-infinity'::timestamptz $$;
            CREATE TABLE evil.jobs (id int);
            SET search_path = evil, pg_catalog"""
        )
        pay.using(idempotency_key="k", delay="1m", tags=["t"]).enqueue(conn, ride_id=1)
        pay.enqueue(conn, ride_id=2)
        pay.enqueue_many(conn, [{"ride_id": 3}])
    assert found(database) == {1: 1, 2: 1, 3: 1}
    assert database.one("SELECT max(run_at - created_at)::text FROM pgqueue.jobs") == "00:01:00"


@pytest.mark.proves("I26")
def test_a_database_without_the_schema_says_what_to_do(empty_database: Database, pay: Any) -> None:
    with psycopg.connect(empty_database.dsn) as conn:
        with pytest.raises(SchemaMismatch, match="pgqueue db upgrade"):
            pay.enqueue(conn, ride_id=1)
        conn.rollback()
    with (
        Session(create_engine(url(empty_database, "psycopg2"), poolclass=NullPool)) as session,
        pytest.raises(SchemaMismatch, match="pgqueue db upgrade"),
    ):
        pay.enqueue(session, ride_id=1)


def test_an_error_of_the_users_own_pending_row_stays_the_users_own(database: Database, pay: Any) -> None:
    class Base(DeclarativeBase):
        pass

    class Ride(Base):
        __tablename__ = "rides"
        id: Mapped[int] = mapped_column(primary_key=True)

    engine = create_engine(url(database, "psycopg"), poolclass=NullPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Ride(id=1))
        session.commit()
    with Session(engine) as session:
        session.add(Ride(id=1))
        with pytest.raises(IntegrityError):
            pay.enqueue(session, ride_id=1)
        with pytest.raises(ConflictError, match="failed before"):
            pay.enqueue(session, ride_id=1)
        session.rollback()
        with session.no_autoflush:
            session.add(Ride(id=1))
            pay.enqueue(session, ride_id=2)
            session.rollback()
    assert found(database) == {}
