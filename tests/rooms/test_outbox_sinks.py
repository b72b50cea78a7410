"""Sinks: functions, webhooks and other databases; order per key, dead letters, what a sink that is down costs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rig.database import Database
from rig.receiver import Receiver
from rig.wait import wait_for

from pgqueue import App, ConfigurationError, Message, Reject, Retry, SinkUnavailable
from pgqueue.core.events import OutboxDelivered, OutboxFailed, SinkChanged
from pgqueue.core.signing import verify
from pgqueue.outbox.runtime import Relay

from .conftest import Site

FAST = Retry(max_retries=2, initial_delay="10ms", max_delay="20ms")
SECRET = "a secret of sixteen bytes or more"


@pytest.fixture
def start(site: Site) -> Iterator[Callable[..., Relay]]:
    """Relays of an App, in threads that end with the test."""
    running: list[tuple[Relay, threading.Thread]] = []

    def begin(app: App | None = None) -> Relay:
        relay = (app or site.app).relay()
        thread = threading.Thread(target=relay.run)
        thread.start()
        running.append((relay, thread))
        return relay

    yield begin
    for relay, _ in running:
        relay.stop()
    for _, thread in running:
        thread.join(30)
        assert not thread.is_alive()


def drain(app: App) -> None:
    assert app.relay(drain=True).run() == 0


def numbers(messages: list[Message]) -> list[Any]:
    return [message.payload["n"] for message in messages]


@pytest.mark.proves("P17")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_function_gets_a_keys_messages_in_order(site: Site, kind: str) -> None:
    got: list[Message] = []

    def sync_sink(message: Message) -> None:
        got.append(message)

    async def async_sink(message: Message) -> None:
        await asyncio.sleep(0)
        got.append(message)

    site.app.sink("s", topics=["a.*"], concurrency=4)(async_sink if kind == "async" else sync_sink)
    for number in range(60):
        site.app.outbox.emit(site.conn, "a.b", {"n": number}, key=f"k{number % 3}", headers={"h": "x"})
    drain(site.app)
    assert len(got) == 60
    for key in ("k0", "k1", "k2"):
        mine = numbers([message for message in got if message.key == key])
        assert mine == sorted(mine)
    first = got[0]
    assert (first.topic, dict(first.headers), first.attempt) == ("a.b", {"h": "x"}, 1)
    assert first.emitted_at is not None
    assert site.one("SELECT count(*) FROM pgqueue.outbox") == 0
    assert site.one("SELECT count(*) FROM pgqueue.outbox_lanes") == 0
    assert len([event for event in site.events if isinstance(event, OutboxDelivered)]) == 60


@pytest.mark.proves("P17", "F34")
@pytest.mark.parametrize("policy", ["block", "skip"])
def test_a_poison_message_holds_its_key_for_its_tries_and_no_other(site: Site, policy: str) -> None:
    got: list[Message] = []

    @site.app.sink("s", topics="a", retry=FAST, on_poison=policy)
    def sink(message: Message) -> None:
        if message.payload["n"] == 0:
            raise ValueError("bad password=hunter2")
        got.append(message)

    poison = site.app.outbox.emit(site.conn, "a", {"n": 0}, key="k")
    for number in (1, 2):
        site.app.outbox.emit(site.conn, "a", {"n": number}, key="k")
    site.app.outbox.emit(site.conn, "a", {"n": 3}, key="other")
    site.app.outbox.emit(site.conn, "a", {"n": 4})
    drain(site.app)
    assert sorted(numbers(got)) == ([3, 4] if policy == "block" else [1, 2, 3, 4])
    (dead,) = site.app.outbox.list(state="dead")
    assert (dead.message_id, dead.attempts, dead.reason) == (poison, 3, "max_retries")
    assert dead.blocks == (policy == "block")
    assert "hunter2" not in (dead.error_message or "")
    failures = [event for event in site.events if isinstance(event, OutboxFailed)]
    assert [(event.attempt, event.outcome) for event in failures] == [(1, "retry"), (2, "retry"), (3, "dead")]
    if policy == "block":
        assert {row.state for row in site.app.outbox.list()} == {"blocked"}
        assert site.app.outbox.skip(poison) == {poison: "skipped"}
        drain(site.app)
        assert sorted(numbers(got)) == [1, 2, 3, 4]
        in_key = numbers([message for message in got if message.key == "k"])
        assert in_key == [1, 2]
    assert site.one("SELECT count(*) FROM pgqueue.outbox") == 0


@pytest.mark.proves("P17")
def test_a_replayed_message_goes_before_what_waited_behind_it(site: Site) -> None:
    got: list[int] = []
    mended = threading.Event()

    @site.app.sink("s", topics="a", retry=FAST)
    def sink(message: Message) -> None:
        if message.payload["n"] == 0 and not mended.is_set():
            raise Reject("not yet")
        got.append(message.payload["n"])

    first = site.app.outbox.emit(site.conn, "a", {"n": 0}, key="k")
    site.app.outbox.emit(site.conn, "a", {"n": 1}, key="k")
    drain(site.app)
    assert got == []
    mended.set()
    assert site.app.outbox.replay(first, sink="another") == {first: "unknown"}
    assert site.app.outbox.replay(first) == {first: "replayed"}
    site.app.outbox.emit(site.conn, "a", {"n": 2}, key="k")
    drain(site.app)
    assert got == [0, 1, 2]


def test_one_sinks_trouble_is_not_anothers(site: Site) -> None:
    got: list[int] = []

    @site.app.sink("bad", topics="a", retry=FAST)
    def bad(message: Message) -> None:
        raise ValueError

    @site.app.sink("good", topics="a")
    def good(message: Message) -> None:
        got.append(message.payload["n"])

    ids = [site.app.outbox.emit(site.conn, "a", {"n": number}, key="k") for number in range(3)]
    drain(site.app)
    assert got == [0, 1, 2]
    rows = site.app.outbox.list()
    assert {(row.message_id, row.sink, row.state) for row in rows} == {
        (ids[1], "bad", "blocked"),
        (ids[2], "bad", "blocked"),
    }


@pytest.mark.proves("P21")
def test_a_payload_that_cannot_be_read_harms_only_itself(site: Site) -> None:
    got: list[Message] = []
    site.app.sink("s", topics="a", retry=FAST)(got.append)
    drain(site.app)
    deep = '{"n":' + "[" * 600 + "]" * 600 + "}"
    site.conn.execute(
        "INSERT INTO pgqueue.outbox (id, emitted_at, topic, payload) VALUES (nextval('pgqueue.outbox_seq'), now(), 'a', %s)",
        [deep],
    )
    site.app.outbox.emit(site.conn, "a", {"n": 1})
    drain(site.app)
    assert numbers(got) == [1]
    assert [row.error_type for row in site.app.outbox.list(state="dead")] == [
        "pgqueue.errors.InvalidArguments"
    ]


@pytest.mark.proves("P17", "F34")
def test_a_sink_that_is_down_costs_no_tries_and_is_left_alone(
    site: Site, start: Callable[..., Relay]
) -> None:
    got: list[int] = []
    down = threading.Event()
    down.set()
    calls: list[float] = []

    @site.app.sink("s", topics="a", retry=FAST)
    def sink(message: Message) -> None:
        calls.append(time.monotonic())
        if down.is_set():
            raise SinkUnavailable("broker down")
        got.append(message.payload["n"])

    for number in range(12):
        site.app.outbox.emit(site.conn, "a", {"n": number}, key=f"k{number}")
    start()
    opened = lambda: [e for e in site.events if isinstance(e, SinkChanged) and e.open_s]
    wait_for(lambda: len(opened()) >= 2, 20, what="the breaker opening twice")
    assert site.app.outbox.list(state="dead") == []
    assert site.one("SELECT max(attempts) FROM pgqueue.outbox_lanes") == 0
    down.clear()
    wait_for(lambda: sorted(got) == list(range(12)), 30, what="everything delivered")
    assert [e for e in site.events if isinstance(e, SinkChanged) and e.open_s is None]


@pytest.mark.proves("P17")
def test_several_relays_share_the_work_and_keep_each_keys_order(
    site: Site, start: Callable[..., Relay], database: Database
) -> None:
    got: list[tuple[int, str, int]] = []

    def app_of(who: int) -> App:
        app = App(database.dsn, poll_max_s=0.1, poll_min_s=0.02)

        @app.sink("s", topics="a")
        def sink(message: Message) -> None:
            got.append((who, str(message.key), message.payload["n"]))

        return app

    apps = [app_of(who) for who in range(3)]
    for app in apps:
        start(app)
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.outbox_relays") == 3, 30, what="three relays")
    for number in range(300):
        site.app.outbox.emit(site.conn, "a", {"n": number}, key=f"k{number % 30}")
    wait_for(lambda: len(got) >= 300, 60, what="all messages")
    wait_for(lambda: site.one("SELECT count(*) FROM pgqueue.outbox") == 0, 30, what="an empty outbox")
    assert len(got) == 300
    for key in {key for _, key, _ in got}:
        mine = [number for _, one, number in got if one == key]
        assert mine == sorted(mine)
    assert len({who for who, _, _ in got}) > 1


@pytest.mark.proves("P10")
def test_a_sleeping_relay_is_woken(make_site: Callable[..., Site]) -> None:
    site = make_site(poll_min_s=15, poll_max_s=15, heartbeat_s=0.2)
    got: list[int] = []

    @site.app.sink("s", topics="a")
    def sink(message: Message) -> None:
        got.append(message.payload["n"])

    # Its own look comes each heartbeat; the notice is seen by what a listener hears.
    relay = site.app.relay()
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        asleep = "SELECT count(*) FROM pgqueue.outbox_relays WHERE asleep_until > clock_timestamp()"
        wait_for(lambda: site.one(asleep) == 1, 20, what="a relay that sleeps")
        ear = site.database.connect()
        ear.execute("LISTEN pgqueue_outbox")
        site.app.outbox.emit(site.conn, "a", {"n": 1})
        assert [notice.payload for notice in ear.notifies(timeout=20, stop_after=1)] == [""]
        wait_for(lambda: got == [1], 20, what="the message")
    finally:
        relay.stop()
        thread.join(30)
    assert site.one("SELECT count(*) FROM pgqueue.outbox_relays") == 0


@pytest.mark.proves("P17", "F34")
def test_a_webhook_gets_a_signed_request_and_2xx_alone_delivers(site: Site) -> None:
    answers = iter([500, 302, 204])

    def answer(request: Any) -> tuple[int, dict[str, str]]:
        status = next(answers)
        return status, {"location": "/elsewhere"} if status == 302 else {}

    with Receiver(answer) as receiver:
        site.app.webhook(
            "billing",
            topics="ride.*",
            url=receiver.url,
            secret=SECRET,
            headers={"x-from": "rides"},
            retry=FAST,
        )
        site.app.outbox.emit(
            site.conn,
            "ride.completed",
            {"ride_id": 7, "big": 9007199254740993},
            key="ride:7",
            headers={"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "correlation_id": "c-1"},
        )
        drain(site.app)
    assert [request.path for request in receiver.got] == ["/hook"] * 3, "no redirect is followed"
    assert len({request.body for request in receiver.got}) == 1
    assert len({request.headers["webhook-id"] for request in receiver.got}) == 1
    request = receiver.got[-1]
    assert verify(request.headers, request.body, SECRET, now=time.time()) == request.headers["webhook-id"]
    assert request.json["type"] == "ride.completed"
    assert request.json["key"] == "ride:7"
    assert request.json["data"] == {"ride_id": 7, "big": 9007199254740993}
    assert request.headers["traceparent"].startswith("00-aaa")
    assert request.headers["correlation-id"] == "c-1"
    assert request.headers["x-from"] == "rides"
    assert site.one("SELECT count(*) FROM pgqueue.outbox") == 0
    failures = [event.error_message for event in site.events if isinstance(event, OutboxFailed)]
    assert failures == ["HTTP 500", "HTTP 302: redirects are not followed; correct the URL"]


@pytest.mark.proves("F34")
def test_a_webhook_that_is_slow_busy_or_gone(site: Site) -> None:
    release = threading.Event()
    answers = iter(["slow", 503, 200])

    def answer(request: Any) -> tuple[int, dict[str, str]]:
        now = next(answers)
        if now == "slow":
            release.wait(10)
            return 200, {}
        return int(now), {"retry-after": "0"}

    with Receiver(answer) as receiver:
        site.app.webhook("w", topics="a", url=receiver.url, secret=SECRET, timeout="300ms", retry=FAST)
        site.app.outbox.emit(site.conn, "a", {})
        drain(site.app)
        release.set()
    failures = [event.error_message for event in site.events if isinstance(event, OutboxFailed)]
    assert failures == ["no answer within 0.3 s", "HTTP 503"]
    gone = App(site.database.dsn)
    failed: list[OutboxFailed] = []
    gone.events.listen(lambda event: failed.append(event) if isinstance(event, OutboxFailed) else None)
    gone.webhook("w", topics="a", url=receiver.url, secret=SECRET, retry=FAST)
    site.app.outbox.emit(site.conn, "a", {})
    relay = gone.relay()
    thread = threading.Thread(target=relay.run)
    thread.start()
    wait_for(lambda: len(failed) >= 3, 20, what="three tries")
    relay.stop()
    thread.join(30)
    assert {event.outcome for event in failed} == {"retry"}
    assert site.one("SELECT max(attempts) FROM pgqueue.outbox_lanes") == 0, (
        "who cannot be reached judges no message"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"secret": SECRET}, "has no http"),
        ({"url": "ftp://x", "secret": SECRET}, "has no http"),
        ({"url": "http://x"}, "has no secret"),
        ({"url": "http://x", "secret": "short"}, "secret: is too short"),
    ],
)
def test_a_webhook_without_url_or_secret_is_refused_at_the_start(
    site: Site, options: dict[str, Any], says: str
) -> None:
    site.app.webhook("w", topics="a", **options)
    with pytest.raises(ConfigurationError, match=says) as refused:
        drain(site.app)
    assert "short" not in str(refused.value).replace("too short", "")


def test_url_and_secret_may_come_from_the_settings(database: Database, site: Site) -> None:
    with Receiver() as receiver:
        app = App(database.dsn, webhooks={"w": {"url": receiver.url, "secret": SECRET}})
        app.webhook("w", topics="a")
        app.outbox.emit(site.conn, "a", {})
        drain(app)
        assert len(receiver.got) == 1
    assert SECRET not in repr(app.settings)
    assert receiver.url not in repr(app.settings)
    dump = site.rows("SELECT s::text FROM pgqueue.outbox_subscriptions s")
    assert SECRET not in str(dump)
    assert str(receiver.port) not in str(dump)


@pytest.mark.proves("P17")
def test_another_database_takes_each_message_once_and_in_order(
    site: Site, database: Database, empty_database: Database
) -> None:
    from pgqueue.storage.migrate import upgrade

    upgrade(empty_database.dsn)
    site.app.forward("analytics", empty_database.dsn, topics="ride.*")
    for number in range(30):
        site.app.outbox.emit(site.conn, "ride.completed", {"n": number}, key="k", headers={"h": "x"})
    before = site.rows("SELECT uid::text, payload FROM pgqueue.outbox ORDER BY id")
    drain(site.app)
    # All of it again, as after an answer that was lost.
    site.conn.execute("DELETE FROM pgqueue.outbox_subscriptions")
    with empty_database.connect() as there:
        rows = there.execute("SELECT uid::text, payload FROM pgqueue.outbox ORDER BY id").fetchall()
        assert rows == before
        row = there.execute(
            "SELECT topic, key, headers, payload::text FROM pgqueue.outbox LIMIT 1"
        ).fetchone()
        assert row is not None
        again = there.execute(
            "SELECT pgqueue.accept_message(%s, %s, %s, %s)", [before[0][0], row[0], row[3], row[1]]
        ).fetchone()
        assert again == (None,)
        assert row[:3] == ("ride.completed", "k", {"h": "x"})


def test_wrong_definitions_are_refused(site: Site) -> None:
    app = site.app
    app.sink("s", topics="a")(lambda message: None)
    for wrong, says in (
        (lambda: app.sink("s", topics="b")(lambda message: None), "defined twice"),
        (lambda: app.sink("t", topics=[])(lambda message: None), "wants no topic"),
        (lambda: app.sink("t", topics="a", on_poison="drop"), "on_poison"),
        (lambda: app.sink("t", topics="a", concurrency=0), "concurrency"),
        (lambda: app.on("a")(lambda: None), "not a task"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigurationError, match=says):
            wrong()
