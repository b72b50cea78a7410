"""Messages become jobs: emitted with the business transaction or not at all, routed once, carried whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from pgqueue import App, AsyncJobContext, InvalidArguments, InvalidName, JobContext, Message

from .conftest import Site


@pytest.fixture
def rides(site: Site) -> list[tuple[Message | None, dict[str, Any]]]:
    """A task that listens to ride.completed; what it got."""
    got: list[tuple[Message | None, dict[str, Any]]] = []

    @site.app.on("ride.completed")
    @site.app.task(name="receipt", queue="mail")
    def receipt(ctx: JobContext, **payload: Any) -> None:
        got.append((ctx.message, payload))

    return got


def relay(site: Site) -> None:
    assert site.app.relay(app_reference="tests:app", drain=True).run() == 0


@pytest.mark.proves("P17")
def test_a_message_becomes_a_job_with_its_payload_and_everything_else(
    site: Site, rides: list[tuple[Message | None, dict[str, Any]]]
) -> None:
    number = site.app.outbox.emit(
        site.conn, "ride.completed", {"ride_id": 7}, key="ride:7", headers={"correlation_id": "c-1"}
    )
    relay(site)
    assert site.one("SELECT count(*) FROM pgqueue.outbox") == 0
    assert site.rows("SELECT queue, task FROM pgqueue.jobs") == [("mail", "receipt")]
    site.drain()
    ((message, payload),) = rides
    assert payload == {"ride_id": 7}
    assert message is not None
    assert (message.id, message.topic, message.key) == (number, "ride.completed", "ride:7")
    assert message.headers == {"correlation_id": "c-1"}
    assert len(message.uid) == 36


@pytest.mark.proves("P17")
def test_what_is_rolled_back_is_never_delivered(
    site: Site, rides: list[tuple[Message | None, dict[str, Any]]]
) -> None:
    with psycopg.connect(site.database.dsn) as conn:
        site.app.outbox.emit(conn, "ride.completed", {"ride_id": 1})
        conn.execute("SAVEPOINT s")
        site.app.outbox.emit(conn, "ride.completed", {"ride_id": 2}, key="k")
        conn.execute("ROLLBACK TO SAVEPOINT s")
        conn.commit()
        site.app.outbox.emit(conn, "ride.completed", {"ride_id": 3})
        conn.rollback()
    relay(site)
    assert site.rows("SELECT args FROM pgqueue.jobs") == [({"ride_id": 1},)]


@pytest.mark.proves("P17")
async def test_every_kind_of_connection_emits(site: Site) -> None:
    app, dsn = site.app, site.database.dsn
    engine = create_engine(site.database.sqlalchemy_url)
    with psycopg.connect(dsn) as conn, conn.cursor() as cursor, Session(engine) as session:
        app.outbox.emit(conn, "a.conn")
        app.outbox.emit(cursor, "a.cursor")
        app.outbox.emit(session, "a.session", {"n": 1}, key="k")
        session.commit()
    async with await psycopg.AsyncConnection.connect(dsn) as aconn:
        await app.outbox.emit_async(aconn, "a.async")
    app.outbox.emit(None, "a.own")
    await app.outbox.emit_async(None, "a.own_async")
    await app.own.close_async()
    site.conn.execute("SELECT pgqueue.emit('a.sql')")
    engine.dispose()
    topics = {row[0] for row in site.rows("SELECT topic FROM pgqueue.outbox")}
    assert topics == {"a.conn", "a.cursor", "a.session", "a.async", "a.own", "a.own_async", "a.sql"}


def test_a_refused_emit_leaves_the_transaction_usable(site: Site) -> None:
    with psycopg.connect(site.database.dsn) as conn:
        with pytest.raises(InvalidName, match="topic"):
            site.app.outbox.emit(conn, "ride completed")
        with pytest.raises(InvalidArguments, match="payload at"):
            site.app.outbox.emit(conn, "ride.completed", {"x": object()})
        with pytest.raises(InvalidName, match="key"):
            site.app.outbox.emit(conn, "ride.completed", key="")
        assert conn.info.transaction_status.name == "IDLE"
        site.app.outbox.emit(conn, "ride.completed")
    assert site.one("SELECT count(*) FROM pgqueue.outbox") == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("pgqueue.emit('no topic')", "topic: must be identifiers"),
        ("pgqueue.emit('t', '[]')", "payload: must be a JSON object"),
        ("pgqueue.emit('t', key => '')", "key: is empty"),
        ("pgqueue.emit('t', headers => '{\"a\": 1}')", "headers: must be a JSON object of text to text"),
    ],
)
def test_sql_refuses_what_python_refuses(site: Site, call: str, says: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=says):
        site.conn.execute(f"SELECT {call}".encode())


@pytest.mark.proves("P17", "P3")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_ctx_emit_is_part_of_the_job_and_carries_its_trace(site: Site, kind: str) -> None:
    def sync_handler(ctx: JobContext, fail: bool) -> None:
        ctx.emit("ride.completed", {"ok": not fail}, key="k", headers={"extra": "1"})
        if fail:
            raise RuntimeError

    async def async_handler(ctx: AsyncJobContext, fail: bool) -> None:
        await ctx.emit("ride.completed", {"ok": not fail}, key="k", headers={"extra": "1"})
        if fail:
            raise RuntimeError

    from pgqueue import Retry

    options = {"name": "h", "retry": Retry(max_retries=0)}
    task = site.app.task(**options)(async_handler if kind == "async" else sync_handler)
    trace = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "correlation_id": "c", "other": "x"}
    job = task.using(headers=trace).enqueue(site.conn, fail=False)
    task.enqueue(site.conn, fail=True)
    site.drain()
    expected = {"traceparent": trace["traceparent"], "correlation_id": "c", "extra": "1"}
    assert site.rows("SELECT payload, headers, job_id, key FROM pgqueue.outbox") == [
        ({"ok": True}, expected, job.id, "k")
    ]

    @site.app.on("ride.*")
    @site.app.task(name="next")
    def after(ctx: JobContext, ok: bool) -> None: ...

    relay(site)
    headers, parent = site.rows("SELECT headers, parent_id FROM pgqueue.jobs WHERE task = 'next'")[0]
    assert expected.items() <= headers.items()
    assert parent == job.id


def test_several_tasks_and_patterns_get_one_job_each(site: Site) -> None:
    for number, topics in enumerate([["ride.completed"], ["ride.*", "ride.completed"], ["*"], ["fare.*"]]):

        def handler(**payload: Any) -> None: ...

        task = site.app.task(name=f"t{number}")(handler)
        for topic in topics:
            site.app.on(topic)(task)
    site.app.outbox.emit(site.conn, "ride.completed")
    site.app.outbox.emit(site.conn, "rides.completed")
    relay(site)
    tasks = [row[0] for row in site.rows("SELECT task FROM pgqueue.jobs ORDER BY id")]
    assert tasks == ["t0", "t1", "t2", "t2"]


@pytest.mark.proves("P17")
def test_messages_nobody_wants_are_parked_and_come_back_with_the_first_subscriber(
    make_site: Callable[..., Site],
) -> None:
    site = make_site()
    site.app.outbox.emit(site.conn, "ride.completed", {"n": 1}, key="k")
    relay(site)
    assert site.rows("SELECT state FROM pgqueue.outbox") == [("parked",)]
    status = site.app.outbox.status()
    assert [(row.topic, row.pending, row.parked, row.oldest_at) for row in status] == [
        ("ride.completed", 1, 1, None)
    ]
    site.app.outbox.emit(site.conn, "ride.completed", {"n": 2}, key="k")

    @site.app.on("ride.completed")
    @site.app.task(name="late")
    def late(n: int) -> None: ...

    relay(site)
    assert site.rows("SELECT args FROM pgqueue.jobs ORDER BY id") == [({"n": 1},), ({"n": 2},)]


def test_subscriptions_follow_the_code_that_defines_them(site: Site, database: Any) -> None:
    def app_with(*topics: str) -> App:
        app = App(database.dsn)

        def handler(**payload: Any) -> None: ...

        task = app.task(name="t")(handler)
        for topic in topics:
            app.on(topic)(task)
        return app

    app_with("a.one", "a.two").relay(app_reference="x:app", drain=True).run()
    app_with("b.one").relay(app_reference="y:app", drain=True).run()
    site.conn.execute("SELECT pgqueue.subscribe('c.*', 't')")
    second = app_with("a.two", "a.three")
    warned: list[object] = []
    second.events.listen(warned.append)
    second.relay(app_reference="x:app", drain=True).run()
    app_with().relay(drain=True).run()  # without a name it takes nothing away
    rows = site.rows("SELECT pattern, defined_in FROM pgqueue.outbox_subscriptions ORDER BY 1")
    assert rows == [("a.three", "x:app"), ("a.two", "x:app"), ("b.one", "y:app"), ("c.*", "")]
    assert any("no longer subscribed to a.one" in getattr(event, "message", "") for event in warned)
    assert site.one("SELECT pgqueue.unsubscribe('c.*', 't')")
    assert not site.one("SELECT pgqueue.unsubscribe('b.one', 't')")


@pytest.mark.proves("P21")
def test_a_row_written_by_hand_that_no_job_can_be_made_of_harms_only_itself(site: Site) -> None:
    @site.app.on("a.b")
    @site.app.task(name="t")
    def handler(**payload: Any) -> None: ...

    relay(site)
    site.conn.execute("UPDATE pgqueue.tasks SET queue = '' WHERE name = 't'")
    site.conn.execute("SELECT pgqueue.subscribe('*', 'other')")
    site.app.outbox.emit(site.conn, "a.b", {"n": 1})
    site.app.outbox.emit(site.conn, "a.c", {"n": 2})
    from pgqueue.core.events import OutboxRouted

    # Straight to the statements: a relay would register the task anew, and so mend the row.
    from pgqueue.outbox.desk import RelayDesk
    from pgqueue.storage.connect import RELAY
    from pgqueue.storage.link import Link

    link = Link(site.database.dsn, RELAY)
    routed = RelayDesk(link, "00000000-0000-0000-0000-000000000001", lease_s=15).route()
    link.close()
    assert {(one.topic, one.jobs, one.unroutable) for one in routed} == {("a.b", 1, 1), ("a.c", 1, 0)}
    assert [row[0] for row in site.rows("SELECT task FROM pgqueue.jobs")] == ["other", "other"]
    (dead,) = site.app.outbox.list(state="dead")
    assert (dead.sink, dead.reason, dead.topic) == ("task:t", "unroutable", "a.b")
    site.conn.execute("UPDATE pgqueue.tasks SET queue = 'default' WHERE name = 't'")
    assert site.app.outbox.replay(dead.message_id) == {dead.message_id: "replayed"}
    assert (
        site.one("SELECT count(*) FROM pgqueue.jobs WHERE task = 't' AND headers->>'pgqueue.topic' = 'a.b'")
        == 1
    )
    assert OutboxRouted.__name__
