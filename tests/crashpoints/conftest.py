"""The database behind a wire, on the newest and the oldest server, and deadlines short enough for black holes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rig.crashsite import Site, site_on
from rig.database import Database

from pgqueue.storage import deadline, own_call

DEADLINE_S = 0.5


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every deadline of ours is half a second, or a black hole at each message would take minutes."""
    add = deadline._Watchdog.add
    monkeypatch.setattr(
        deadline._Watchdog, "add", lambda self, conn, seconds: add(self, conn, min(seconds, DEADLINE_S))
    )
    monkeypatch.setattr(deadline, "_TICK_S", 0.02)
    monkeypatch.setattr(deadline, "CANCEL_GRACE_S", 0.05)
    monkeypatch.setattr(own_call, "GIVE_UP_S", 2.0)


@pytest.fixture
def site(database: Database, hasty: None) -> Iterator[Site]:
    del hasty
    yield from site_on(database)


@pytest.fixture
def site15(database15: Database, hasty: None) -> Iterator[Site]:
    del hasty
    yield from site_on(database15)
