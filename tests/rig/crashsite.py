"""What all scenarios of tests/crashpoints need: a database behind a wire, and what stands in it after each go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from rig.database import Database
from rig.wait import wait_for
from rig.wire import Wire

from pgqueue import App

SETTINGS: dict[str, Any] = {
    "poll_min_s": 0.01,
    "poll_max_s": 0.02,
    "heartbeat_s": 0.5,
    "lease_s": 20,
    "connect_timeout_s": 2,
    "promote_interval_s": 0.01,
    "wakeups": False,
}


@dataclass
class Site:
    """A database, the wire before it, and what stood where after each go."""

    database: Database
    wire: Wire
    conn: psycopg.Connection[Any]
    apps: list[App] = field(default_factory=list)

    def app(self, *, through: bool, **settings: Any) -> App:
        """An App behind the wire, or past it; closed with the test."""
        dsn = self.wire.dsn(self.database.name) if through else self.database.dsn
        app = App(dsn, direct_database_url=self.database.dsn, **{**SETTINGS, **settings})
        self.apps.append(app)
        return app

    def rows(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        return self.conn.execute(statement, params).fetchall()

    def one(self, statement: str, *params: Any) -> Any:
        return self.rows(statement, *params)[0][0]

    def quiet(self, role: str) -> None:
        """Wait until no backend of `role` is left: one whose client is gone may still be at its COMMIT."""
        left = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND starts_with(application_name, %s)"
        wait_for(lambda: not self.rows(left, role), 30, what=f"the backends of {role} to end")

    def emit(self, *numbers: int) -> None:
        """Past the wire, all with one key."""
        for number in numbers:
            self.conn.execute("SELECT pgqueue.emit('a', jsonb_build_object('n', %s::int), 'k')", [number])

    def relay(self, app: App) -> None:
        """Drain the outbox with a relay of `app`, as the next process after a crash: all leases have run out."""
        self.conn.execute(
            "UPDATE pgqueue.outbox_lanes SET due_at = clock_timestamp() WHERE claim_id IS NOT NULL"
        )
        if self.rows(
            "SELECT FROM pgqueue.outbox WHERE state = 'new' UNION ALL SELECT FROM pgqueue.outbox_lanes LIMIT 1"
        ):
            assert app.relay(drain=True).run() == 0

    def jobs(self) -> list[int]:
        """The numbers of all jobs there are, in the order they were made."""
        return [number for (number,) in self.rows("SELECT (args->>'n')::int FROM pgqueue.jobs ORDER BY id")]


def site_on(database: Database) -> Iterator[Site]:
    with Wire(database.server.socket_dir, database.server.port) as wire:
        site = Site(database, wire, database.connect())
        try:
            yield site
        finally:
            wire.disarm()
            for app in site.apps:
                app.close()


def wrong_jobs(site: Site, numbers: list[int], *, allowed: tuple[int, ...] = (1,)) -> list[str]:
    """What is wrong about the jobs of these numbers, and about the order of all."""
    jobs = site.jobs()
    wrong = [f"job {n} exists {jobs.count(n)} times" for n in numbers if jobs.count(n) not in allowed]
    if jobs != sorted(jobs):
        wrong.append("jobs of one key are out of order")
    return wrong


def wrong_at_sink(got: list[tuple[str, int]], numbers: list[int]) -> list[str]:
    """What is wrong about what came to a sink: each at least once, under one uid, where it came first in order."""
    uids: dict[int, str] = {}
    wrong = [f"message {n} came under two uids" for uid, n in got if uids.setdefault(n, uid) != uid]
    wrong += [f"message {n} never came" for n in numbers if n not in uids]
    if list(uids) != sorted(uids):
        wrong.append(f"messages of one key came out of order: {list(uids)[-4:]}")
    return wrong
