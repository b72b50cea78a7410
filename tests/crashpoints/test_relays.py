"""A relay broken at every message it says to its own database and to another: each message becomes one job, arrives
over there once, comes to a sink at least once, and a key's messages stay in order. The twins are relays as people
write them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
import pytest
from rig.crashsite import Site, wrong_at_sink, wrong_jobs
from rig.database import Database
from rig.points import Scenario, play
from rig.wire import Mode

from pgqueue import App, Message, Retry
from pgqueue.errors import PgQueueError
from pgqueue.outbox.runtime import Relay
from pgqueue.storage.migrate import upgrade

RELAY = "pgqueue/relay"
PATIENT = Retry(max_retries=50, initial_delay="10ms", max_delay="20ms")


class RelayToTask(Scenario):
    """Two messages of one key, and a relay that drains the outbox."""

    role = RELAY

    def __init__(self, site: Site) -> None:
        self.site = site
        self.next = self.receivers(site.app(through=False))
        self.running: Relay | None = None

    def receivers(self, app: App) -> App:
        """What messages come to."""

        @app.on("a")
        @app.task(name="t")
        def task(n: int) -> None: ...

        return app

    def go(self, number: int) -> None:
        self.site.emit(2 * number, 2 * number + 1)
        self.relay()

    def relay(self) -> None:
        app = self.receivers(self.site.app(through=True))
        self.running = app.relay(drain=True)
        with contextlib.suppress(PgQueueError):
            self.running.run()
        app.close()

    def killed(self) -> None:
        assert self.running is not None
        self.running.stop()

    def after(self, number: int) -> list[str]:
        self.site.quiet(RELAY)
        self.site.relay(self.next)
        wrong = self.wrong([2 * number, 2 * number + 1])
        left = self.site.one("SELECT count(*) FROM pgqueue.outbox")
        dead = self.site.one("SELECT count(*) FROM pgqueue.outbox_dead_letters")
        return wrong + ([f"{left} messages left, {dead} dead"] if left or dead else [])

    def wrong(self, numbers: list[int]) -> list[str]:
        return wrong_jobs(self.site, numbers)


class SelectThenDelete(RelayToTask):
    """Naive: enqueues each message, and deletes it in a transaction of its own."""

    modes = (Mode.BEFORE, Mode.AFTER, Mode.HOLE)

    def relay(self) -> None:
        self.site.wire.hole_s = 0.1
        for _ in range(3):
            with contextlib.suppress(psycopg.Error), naive(self.site) as conn:
                for message_id, number in conn.execute(WAITING).fetchall():
                    conn.execute("SELECT pgqueue.enqueue('t', jsonb_build_object('n', %s::int))", [number])
                    conn.execute("DELETE FROM pgqueue.outbox WHERE id = %s", [message_id])


WAITING = "SELECT id, (payload->>'n')::int FROM pgqueue.outbox WHERE state = 'new' ORDER BY id"


def naive(
    site: Site, dbname: str | None = None, role: str = RELAY
) -> contextlib.closing[psycopg.Connection[Any]]:
    dsn = site.wire.dsn(dbname or site.database.name)
    return contextlib.closing(psycopg.connect(dsn, application_name=role, autocommit=True, connect_timeout=2))


class RelayToSink(RelayToTask):
    """The relay's own messages while it hands over to a sink that never fails."""

    def __init__(self, site: Site) -> None:
        self.got: list[tuple[str, int]] = []
        super().__init__(site)

    def receivers(self, app: App) -> App:
        @app.sink("s", topics="a", retry=PATIENT)
        def sink(message: Message) -> None:
            self.got.append((message.uid, message.payload["n"]))

        return app

    def wrong(self, numbers: list[int]) -> list[str]:
        return wrong_at_sink(list(self.got), numbers)


class MarkThenSend(RelayToSink):
    """Naive: takes the message away first, so that nobody sends it twice."""

    modes = SelectThenDelete.modes

    def relay(self) -> None:
        self.site.wire.hole_s = 0.1
        with contextlib.suppress(psycopg.Error), naive(self.site) as conn:
            for message_id, number in conn.execute(WAITING).fetchall():
                conn.execute("DELETE FROM pgqueue.outbox WHERE id = %s", [message_id])
                self.got.append((f"naive-{message_id}", number))


class RelayToDatabase(RelayToTask):
    """What the relay says to the other database."""

    role = "pgqueue/relay/forward"

    def __init__(self, site: Site, there: Database) -> None:
        self.there = there
        self.conn = there.connect()
        super().__init__(site)

    def receivers(self, app: App) -> App:
        # The App past the wire is the next process: so is its way over there.
        through = app.settings.database_url != self.site.database.dsn
        app.forward(
            "there",
            self.site.wire.dsn(self.there.name) if through else self.there.dsn,
            topics="a",
            retry=PATIENT,
        )
        return app

    def wrong(self, numbers: list[int]) -> list[str]:
        rows = self.conn.execute("SELECT (payload->>'n')::int FROM pgqueue.outbox ORDER BY id").fetchall()
        there = [n for (n,) in rows]
        wrong = [f"message {n} is {there.count(n)} times over there" for n in numbers if there.count(n) != 1]
        return wrong + (["messages of one key are out of order over there"] if there != sorted(there) else [])


class RelayBesideDatabase(RelayToDatabase):
    """What the relay says to its own database meanwhile."""

    role = RELAY

    def receivers(self, app: App) -> App:
        app.forward("there", self.there.dsn, topics="a", retry=PATIENT)
        return app


class EmitOverThere(RelayToDatabase):
    """Naive: emits the message anew over there, without saying which one it is."""

    def receivers(self, app: App) -> App:
        @app.sink("there", topics="a", retry=PATIENT)
        def sink(message: Message) -> None:
            with naive(self.site, self.there.name, self.role) as conn:
                conn.execute(
                    "SELECT pgqueue.emit('a', jsonb_build_object('n', %s::int), 'k')", [message.payload["n"]]
                )

        self.site.wire.hole_s = 0.1
        return app


@pytest.fixture
def there(empty_database: Database) -> Database:
    upgrade(empty_database.dsn)
    return empty_database


@pytest.mark.proves("P17", "P7", "F34", "F15a", "F15b", "F15c")
def test_each_message_becomes_one_job_wherever_the_relay_is_broken(site: Site) -> None:
    assert play(site.wire, RelayToTask(site), most=50).violations == []


@pytest.mark.proves("P17", "F34")
def test_each_message_becomes_one_job_on_the_oldest_server_too(site15: Site) -> None:
    assert play(site15.wire, RelayToTask(site15), most=20).violations == []


def test_twin_a_relay_that_deletes_afterwards_makes_jobs_twice(site: Site) -> None:
    assert play(site.wire, SelectThenDelete(site)).violations != []


@pytest.mark.proves("P17", "P7", "F34", "F15a", "F15b", "F15c")
def test_each_message_comes_to_a_sink_in_order_wherever_the_relay_is_broken(site: Site) -> None:
    assert play(site.wire, RelayToSink(site), most=50).violations == []


def test_twin_a_relay_that_marks_first_loses_messages(site: Site) -> None:
    assert play(site.wire, MarkThenSend(site)).violations != []


@pytest.mark.proves("P17", "P7", "F15a", "F15b", "F15c")
def test_another_database_has_each_message_once_wherever_the_way_is_broken(
    site: Site, there: Database
) -> None:
    assert play(site.wire, RelayToDatabase(site, there), most=24).violations == []


@pytest.mark.proves("P17", "F34")
def test_another_database_has_each_message_once_wherever_its_relay_is_broken(
    site: Site, there: Database
) -> None:
    assert play(site.wire, RelayBesideDatabase(site, there), most=25).violations == []


def test_twin_a_message_emitted_anew_over_there_is_there_twice(site: Site, there: Database) -> None:
    assert play(site.wire, EmitOverThere(site, there)).violations != []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RelayToTask, RelayToSink, RelayToDatabase, RelayBesideDatabase])
def test_the_same_at_each_message(site: Site, there: Database, kind: type[RelayToTask]) -> None:
    scenario = kind(site, there) if issubclass(kind, RelayToDatabase) else kind(site)
    assert play(site.wire, scenario).violations == []
