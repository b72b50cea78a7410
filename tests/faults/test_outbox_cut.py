"""The outbox cut at every message of its protocols: emit and its COMMIT, relay to task, to a sink, to another database.

What must hold: nothing lost; jobs and the other database exactly once; sinks with the same uid again, and in order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.receiver import Received, Receiver
from rig.wait import wait_for
from rig.wire import Wire

from pgqueue import App, DatabaseUnreachable, Message
from pgqueue.outbox.runtime import Relay
from pgqueue.storage.migrate import upgrade

MESSAGES_MAX = 60
SETTINGS = {
    "poll_min_s": 0.02,
    "poll_max_s": 0.05,
    "heartbeat_s": 0.3,
    "lease_s": 2,
    "tcp_user_timeout_s": 1,
    "wakeups": False,
}


@dataclass
class Site:
    """An App whose relay goes through the wire, and what came out at each end."""

    database: Database
    app: App
    wire: Wire
    conn: psycopg.Connection[Any]
    sent: list[tuple[str, int]] = field(default_factory=list)
    _running: tuple[Relay, threading.Thread] | None = None

    def start(self, app: App | None = None) -> None:
        relay = (app or self.app).relay()
        self._running = relay, threading.Thread(target=relay.run)
        self._running[1].start()
        wait_for(lambda: self.count("pgqueue.outbox_relays") == 1, 30, what="the relay")

    def stop(self) -> None:
        self.wire.disarm()
        if self._running is not None:
            relay, thread = self._running
            relay.stop()
            thread.join(30)
            assert not thread.is_alive()
        self.app.close()

    def count(self, table: str) -> int:
        row = self.conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        assert row is not None
        return int(row[0])

    def emit(self, number: int) -> None:
        """Past the wire."""
        self.conn.execute("SELECT pgqueue.emit('a', jsonb_build_object('n', %s::int), 'k')", [number])

    def jobs(self) -> list[int]:
        rows = self.conn.execute("SELECT (args->>'n')::int FROM pgqueue.jobs ORDER BY id").fetchall()
        return [number for (number,) in rows]

    def firsts(self) -> list[int]:
        """The numbers that came to the sink, each where it came first; every repetition under the same uid."""
        uids: dict[int, str] = {}
        for uid, number in list(self.sent):
            assert uids.setdefault(number, uid) == uid
        return list(uids)


@pytest.fixture
def site(database: Database) -> Iterator[Site]:
    with Wire(database.server.socket_dir, database.server.port) as wire:
        app = App(wire.dsn(database.name), direct_database_url=database.dsn, **SETTINGS)
        site = Site(database, app, wire, database.connect())

        @app.on("a")
        @app.task(name="t")
        def task(n: int) -> None: ...

        try:
            yield site
        finally:
            site.stop()


def cut_everywhere(site: Site, role: str, arrived: Callable[[int], bool], *, sent: bool, cuts: int) -> int:
    """Emit a message for each place to cut, and wait until it is everywhere; how many cuts there were."""
    fired = 0
    for number in range(1, cuts + 1):
        site.wire.arm(role, number % 24 + 1, sent=sent)
        site.emit(number)
        wait_for(lambda number=number: arrived(number), 40, what=f"message {number} at its receivers")  # type: ignore[misc]
        wait_for(site.wire.fired.is_set, 40, what=f"cut {number}")
        fired += 1
    wait_for(lambda: site.count("pgqueue.outbox") == 0, 40, what="an empty outbox")
    return fired


@pytest.mark.proves("P17", "F34", "F15")
@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_relay_cut_at_every_message_makes_one_job_and_loses_nothing_at_a_sink(site: Site, cut: str) -> None:
    @site.app.sink("s", topics="a")
    def sink(message: Message) -> None:
        site.sent.append((message.uid, message.payload["n"]))

    site.start()
    cuts = 48
    cut_everywhere(
        site,
        "pgqueue/relay",
        lambda number: number in site.jobs() and any(n == number for _, n in list(site.sent)),
        sent=cut == "after",
        cuts=cuts,
    )
    assert site.jobs() == list(range(1, cuts + 1))
    assert site.firsts() == list(range(1, cuts + 1))
    assert site.count("pgqueue.outbox_lanes") == 0


@pytest.mark.proves("P17", "F15")
@pytest.mark.parametrize("cut", ["before", "after"])
def test_another_database_cut_at_every_message_takes_each_one_once(
    site: Site, empty_database: Database, cut: str
) -> None:
    upgrade(empty_database.dsn)
    site.app.forward("there", site.wire.dsn(empty_database.name), topics="a")
    there = empty_database.connect()

    def arrived(number: int) -> bool:
        found = "SELECT FROM pgqueue.outbox WHERE payload = jsonb_build_object('n', %s::int)"
        return there.execute(found, [number]).rowcount > 0

    # Its own statements go past the wire: only the other database's connections are cut.
    relay = App(site.database.dsn, **SETTINGS)
    relay.forward("there", site.wire.dsn(empty_database.name), topics="a")
    site.start(relay)
    for number in range(1, 4):
        site.emit(-number)
        wait_for(lambda number=number: arrived(-number), 40, what="a message over there")  # type: ignore[misc]
    cuts = 10
    for number in range(1, cuts + 1):
        site.wire.arm("pgqueue/relay/forward", number % 3 + 1, sent=cut == "after")
        site.emit(number)
        wait_for(lambda number=number: arrived(number), 40, what=f"message {number} over there")  # type: ignore[misc]
        site.wire.disarm()
    wait_for(lambda: site.count("pgqueue.outbox WHERE state <> 'parked'") == 0, 40, what="an empty outbox")
    rows = there.execute("SELECT (payload->>'n')::int FROM pgqueue.outbox ORDER BY id").fetchall()
    assert [number for (number,) in rows] == [-1, -2, -3, *range(1, cuts + 1)]


@pytest.mark.proves("P17", "F34")
def test_a_webhooks_connection_cut_before_or_after_it_has_the_message(site: Site) -> None:
    """Every second answer never comes; the receiver has the message all the same, and gets it again."""
    calls = [0]

    def answer(request: Received) -> tuple[int, dict[str, str]]:
        calls[0] += 1
        site.sent.append((request.headers["webhook-id"], request.json["data"]["n"]))
        return (0 if calls[0] % 2 else 200), {}

    with Receiver(answer) as receiver:
        site.app.webhook("w", topics="a", url=receiver.url, secret="x" * 32)
        for number in range(1, 9):
            site.emit(number)
        site.start()
        wait_for(lambda: site.count("pgqueue.outbox") == 0, 60, what="an empty outbox")
    assert site.firsts() == list(range(1, 9))
    assert len(site.sent) > 8
    assert site.count("pgqueue.outbox_dead_letters") == 0


@pytest.mark.proves("P17", "P7", "F15")
@pytest.mark.parametrize("cut", ["before", "after"])
def test_an_emit_of_its_own_cut_at_every_message_is_there_once_or_refused(site: Site, cut: str) -> None:
    """A relay takes each message away at once: the truth about a lost COMMIT cannot be read from the row."""
    relay = App(site.database.dsn, **SETTINGS)

    @relay.on("a")
    @relay.task(name="t")
    def task(n: int) -> None: ...

    site.start(relay)
    site.app.outbox.emit(None, "a", {"n": 0}, key="k")
    refused = 0
    for number in range(1, MESSAGES_MAX):
        site.wire.arm("pgqueue/enqueue", number, sent=cut == "after")
        try:
            site.app.outbox.emit(None, "a", {"n": number}, key="k")
        except DatabaseUnreachable:
            refused += 1
        else:
            wait_for(lambda number=number: site.jobs().count(number) == 1, 40, what=f"job {number}")  # type: ignore[misc]
        if not site.wire.fired.is_set():
            break
    else:
        raise AssertionError("an emit sends ever more messages")
    assert number > 3
    wait_for(lambda: site.count("pgqueue.outbox") == 0, 40, what="an empty outbox")
    jobs = site.jobs()
    assert len(jobs) == len(set(jobs)) == number + 1 - refused
