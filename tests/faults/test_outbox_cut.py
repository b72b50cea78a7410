"""An emit of its own, cut at each message while a relay is at work: what was written may be gone before it is read back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.wait import wait_for
from rig.wire import Mode, Wire

from pgqueue import App, DatabaseUnreachable
from pgqueue.outbox.runtime import Relay

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
    """An App behind the wire, and a relay past it."""

    database: Database
    app: App
    wire: Wire
    conn: psycopg.Connection[Any]
    _running: tuple[Relay, threading.Thread] | None = None

    def start(self, app: App) -> None:
        relay = app.relay()
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

    def jobs(self) -> list[int]:
        rows = self.conn.execute("SELECT (args->>'n')::int FROM pgqueue.jobs ORDER BY id").fetchall()
        return [number for (number,) in rows]


@pytest.fixture
def site(database: Database) -> Iterator[Site]:
    with Wire(database.server.socket_dir, database.server.port) as wire:
        app = App(wire.dsn(database.name), direct_database_url=database.dsn, **SETTINGS)
        site = Site(database, app, wire, database.connect())
        try:
            yield site
        finally:
            site.stop()


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
        site.wire.arm("pgqueue/enqueue", number, Mode.AFTER if cut == "after" else Mode.BEFORE)
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
