"""Many migrators at once, migrators cut off at any message, and tables that others hold: old or new, never between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from rig.cutter import Cutter
from rig.database import Database
from rig.wait import wait_for

from pgqueue.errors import ConflictError, DatabaseUnreachable
from pgqueue.storage import migrate
from pgqueue.storage.drift import describe_schema, diff, expected_schema

HEAD = migrate.head()
NEXT = f"pgqueue_{int(HEAD[-4:]) + 1:04}"
MIGRATORS = 20
LOCK_KEY = 7307203601231412837
BUSY = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pgqueue/migrate'"
WAITS_FOR_A_TABLE = BUSY + " AND wait_event_type = 'Lock'"


def assert_whole(database: Database) -> None:
    with database.connect() as conn:
        assert [str(found) for found in diff(expected_schema(), describe_schema(conn))] == []


@pytest.mark.proves("F42")
def test_twenty_at_once_do_it_once(blank: Database) -> None:
    """Processes, as in a deployment: each must end with 0 and find the schema there."""
    script = (
        "import sys; from pgqueue.storage import migrate; sys.stdin.read();"
        " migrate.upgrade(sys.argv[1]); assert migrate.check(sys.argv[1]).kind == 'at_head'"
    )
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", script, blank.dsn],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(MIGRATORS)
    ]
    try:
        said = [one.communicate(timeout=120) for one in crowd]
    finally:
        for one in crowd:
            one.kill()
            one.wait()
    assert [one.returncode for one in crowd] == [0] * MIGRATORS, said
    # Talk of Alembic's must not reach a program's output.
    assert said == [(b"", b"")] * MIGRATORS
    assert blank.one("SELECT count(*) FROM pgqueue.alembic_version") == 1
    assert_whole(blank)


def test_threads_of_one_process_do_it_once_too(blank18: Database) -> None:
    errors: list[BaseException] = []

    def go() -> None:
        try:
            migrate.upgrade(blank18.dsn)
        except BaseException as error:
            errors.append(error)

    crowd = [threading.Thread(target=go) for _ in range(4)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join(60)
    assert errors == []
    assert_whole(blank18)


@pytest.mark.proves("S10")
def test_a_stranger_with_the_lock_is_named_after_the_deadline(blank: Database) -> None:
    stranger = blank.connect(application_name="their tool")
    stranger.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
    started = time.monotonic()
    with pytest.raises(
        ConflictError, match=rf"process {stranger.info.backend_pid} \(their tool\) for longer than 0.3 s"
    ) as refused:
        migrate.upgrade(blank.dsn, lock_wait_s=0.3)
    assert 0.3 <= time.monotonic() - started < 10
    assert refused.value.exit_code == 4
    assert migrate.check(blank.dsn).kind == "missing"
    stranger.close()
    migrate.upgrade(blank.dsn, lock_wait_s=30)
    assert_whole(blank)


def test_a_waiting_migrator_holds_no_snapshot(blank18: Database) -> None:
    """It would keep every table from being vacuumed, and stop an index build of the one that works."""
    stranger = blank18.connect()
    stranger.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
    waiting = threading.Thread(target=migrate.upgrade, args=[blank18.dsn])
    waiting.start()
    seen = blank18.connect()
    polls = BUSY + " AND query = 'ROLLBACK' AND state = 'idle' AND backend_xmin IS NULL"
    wait_for(lambda: seen.execute(polls).fetchone() == (1,), 20, "the migrator resting between two tries")
    blocked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    assert seen.execute(blocked).fetchone() == (0,)
    stranger.close()
    waiting.join(30)
    assert not waiting.is_alive()
    assert migrate.check(blank18.dsn).kind == "at_head"


def test_a_database_at_head_waits_for_no_lock(blank18: Database) -> None:
    migrate.upgrade(blank18.dsn)
    blank18.connect().execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
    migrate.upgrade(blank18.dsn, lock_wait_s=0)


@pytest.mark.proves("F29", "OP2")
def test_a_table_that_is_held_too_long_gives_up_and_names_the_holder(
    blank18: Database, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(blank18.dsn)
    request.getfixturevalue("next_release")
    monkeypatch.setattr(migrate, "TABLE_LOCK_TRIES_MAX", 1)
    holder = blank18.connect(autocommit=False)
    holder.execute("LOCK TABLE pgqueue.jobs IN ACCESS EXCLUSIVE MODE")
    with pytest.raises(
        ConflictError,
        match=rf"upgrade from {HEAD} to {NEXT}: .*1 times; processes .*\b{holder.info.backend_pid}\b",
    ):
        migrate.upgrade(blank18.dsn)
    assert migrate.check(blank18.dsn).found == HEAD


@pytest.mark.proves("F29", "OP2")
def test_a_table_that_is_held_for_a_while_is_waited_for_in_short_tries(
    blank18: Database, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(blank18.dsn)
    request.getfixturevalue("next_release")
    pauses: list[float] = []
    holder = blank18.connect(autocommit=False)
    holder.execute("LOCK TABLE pgqueue.jobs IN ACCESS SHARE MODE")

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        # Between two tries nobody queues behind the migrator.
        blank18.connect().execute("SELECT pgqueue.enqueue('t')")
        holder.rollback()

    monkeypatch.setattr(migrate, "time", SimpleNamespace(sleep=pause, monotonic=time.monotonic))
    migrate.upgrade(blank18.dsn)
    assert pauses == [migrate.TABLE_LOCK_PAUSE_S]
    assert migrate.check(blank18.dsn).found == NEXT
    assert blank18.one("SELECT count(*) FROM pgqueue.jobs") == 1


@pytest.mark.proves("F29", "OP2")
def test_enqueuers_go_on_through_an_upgrade(blank18: Database, request: pytest.FixtureRequest) -> None:
    migrate.upgrade(blank18.dsn)
    request.getfixturevalue("next_release")
    stop = threading.Event()
    counts = [0, 0, 0]
    errors: list[BaseException] = []

    def produce(place: int) -> None:
        try:
            with psycopg.connect(blank18.dsn, autocommit=True) as conn:
                while not stop.is_set():
                    conn.execute("SELECT pgqueue.enqueue('t')")
                    counts[place] += 1
        except BaseException as error:
            errors.append(error)

    crowd = [threading.Thread(target=produce, args=[place]) for place in range(len(counts))]
    for one in crowd:
        one.start()
    wait_for(lambda: all(counts), 20, "every producer's first job")
    migrate.upgrade(blank18.dsn)
    before = list(counts)
    wait_for(
        lambda: errors or all(now > then for now, then in zip(counts, before, strict=True)),
        20,
        "jobs after the upgrade",
    )
    stop.set()
    for one in crowd:
        one.join(20)
    assert errors == []
    assert blank18.one("SELECT count(*) FROM pgqueue.jobs") == sum(counts)


@pytest.fixture
def cutter(blank18: Database) -> Iterator[Cutter]:
    with Cutter(blank18.server.socket_dir, blank18.server.port) as one:
        yield one


def _cut_everywhere(database: Database, cutter: Cutter, *, sent: bool, thin: bool) -> tuple[int, int]:
    """Upgrade through a wire that is cut at message 1, 2, 3 … until one gets through; how many were cut, how many took."""
    took = 0
    message = 0
    with database.connect() as seen:
        while True:
            message += 1
            if thin and message > 15 and message % 48:
                continue
            cutter.arm(message, sent=sent)
            try:
                migrate.upgrade(cutter.dsn(database.name))
            except DatabaseUnreachable:
                assert cutter.fired
            else:
                if cutter.fired:
                    raise AssertionError(f"message {message} was cut and nobody noticed")
                return message - 1, took
            wait_for(lambda: seen.execute(BUSY).fetchone() == (0,), 20, "the server noticing the cut")
            state = migrate.check(database.dsn)
            assert state.kind in {"missing", "older", "at_head"}, (
                f"cut at message {message}: {state.sentence}"
            )
            if state.kind == "older":
                migrate.upgrade(database.dsn)
            if state.kind != "missing":
                took += state.kind == "at_head"
                assert_whole(database)
                migrate.downgrade(database.dsn, "base")


@pytest.mark.proves("F42")
@pytest.mark.parametrize("sent", [False, True], ids=["message lost", "answer lost"])
def test_cut_at_some_messages(blank18: Database, cutter: Cutter, sent: bool) -> None:
    cut, took = _cut_everywhere(blank18, cutter, sent=sent, thin=True)
    assert cut > 100
    assert took <= 1
    assert_whole(blank18)


@pytest.mark.slow
@pytest.mark.proves("F42")
@pytest.mark.parametrize("sent", [False, True], ids=["message lost", "answer lost"])
def test_cut_at_each_message(blank18: Database, cutter: Cutter, sent: bool) -> None:
    cut, took = _cut_everywhere(blank18, cutter, sent=sent, thin=False)
    assert cut > 100
    # Only the answer to COMMIT can be lost after the fact.
    assert took == (1 if sent else 0)
    assert_whole(blank18)


@pytest.mark.proves("F42")
def test_a_killed_migrator_leaves_the_old_revision_and_no_lock(blank18: Database, tmp_path: Path) -> None:
    """SIGKILL while it holds the lock and has made half of the tables."""
    holder = blank18.connect(autocommit=False)
    holder.execute(
        "CREATE SCHEMA pgqueue"
    )  # uncommitted: the migrator waits for this name, in its own transaction
    script = "import sys; from pgqueue.storage import migrate; migrate.upgrade(sys.argv[1])"
    child = subprocess.Popen(
        [sys.executable, "-c", script, blank18.dsn], stderr=subprocess.PIPE, cwd=tmp_path
    )
    try:
        seen = blank18.connect()
        wait_for(
            lambda: seen.execute(WAITS_FOR_A_TABLE).fetchone() == (1,),
            20,
            "the migrator waiting inside its revision",
        )
        os.kill(child.pid, signal.SIGKILL)
        child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
    holder.rollback()
    wait_for(lambda: seen.execute(BUSY).fetchone() == (0,), 20, "the server noticing the death")
    assert migrate.check(blank18.dsn).kind == "missing"
    migrate.upgrade(blank18.dsn, lock_wait_s=5)
    assert_whole(blank18)
