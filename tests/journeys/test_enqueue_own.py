"""Enqueue without a connection: in threads, loops and forks, through restarts, and with the answer to COMMIT lost."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from rig.cutter import Cutter
from rig.database import Database
from rig.wait import wait_for

from pgqueue import App, ConfigurationError, DatabaseUnreachable, UnknownOutcome
from pgqueue.storage import own_call
from pgqueue.storage.own_call import After, Call, read_back
from pgqueue.storage.own_pool import OwnConnections

PARAMETERS: dict[str, Any] = {
    "task": "pay",
    "args": "{}",
    "queue": None,
    "priority": None,
    "max_attempts": None,
    "wake": True,
}


@pytest.fixture
def app(database: Database) -> Iterator[App]:
    app = App(database.dsn)
    yield app
    app.close()


@pytest.fixture
def pay(app: App) -> Any:
    @app.task(name="pay")
    def pay(ride_id: int) -> None:
        """Never run here."""

    return pay


def rides(database: Database) -> list[int]:
    rows = (
        database.connect().execute("SELECT (args->>'ride_id')::int FROM pgqueue.jobs ORDER BY 1").fetchall()
    )
    return [row[0] for row in rows]


def ours(database: Database) -> int:
    count: int = database.one(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pgqueue/enqueue'"
    )
    return count


@pytest.mark.proves("EQ4", "P1")
def test_threads_share_four_connections_and_close_gives_them_back(
    database: Database, app: App, pay: Any
) -> None:
    with ThreadPoolExecutor(16) as threads:
        done = list(threads.map(lambda n: pay.enqueue(None, ride_id=n), range(200)))
    assert len({job.id for job in done}) == 200
    assert rides(database) == list(range(200))
    assert 1 <= ours(database) <= 4
    app.close()
    wait_for(lambda: ours(database) == 0, what="the pool's end")
    pay.enqueue(None, ride_id=200)  # and it opens again
    assert rides(database)[-1] == 200


@pytest.mark.proves("EQ4")
def test_each_event_loop_has_its_own_connections_which_end_with_it(database: Database, pay: Any) -> None:
    async def main(base: int) -> None:
        await asyncio.gather(*(pay.enqueue_async(None, ride_id=base + n) for n in range(20)))
        await pay.enqueue_many_async(None, ({"ride_id": base + 20 + n} for n in range(3)))
        pay.enqueue(None, ride_id=base + 23)  # the sync form inside a running loop
        assert ours(database) >= 2

    for base in (0, 100):
        asyncio.run(main(base))
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda base: asyncio.run(main(base)), (200, 300)))
    gc.collect()
    wait_for(lambda: ours(database) <= 4, what="the loops' connections' end")
    assert rides(database) == [base + n for base in (0, 100, 200, 300) for n in range(24)]


PROGRAM = """
import asyncio, sys, gc
from pgqueue import App
app = App(sys.argv[1])
@app.task(name="pay")
def pay(ride_id: int) -> None: ...
async def main():
    await pay.enqueue_async(None, ride_id=1)
async def cancelled():
    waiting = asyncio.create_task(pay.enqueue_async(None, ride_id=2))
    await asyncio.sleep(0)
    waiting.cancel()
    try:
        await waiting
    except asyncio.CancelledError:
        print("cancelled")
pay.enqueue(None, ride_id=0)
asyncio.run(main())
asyncio.run(cancelled())
gc.collect()
print("done")
"""


@pytest.mark.proves("EQ4", "P23")
def test_a_program_that_closes_nothing_ends_cleanly(database: Database) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM, database.dsn],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["cancelled", "done"]
    assert run.stderr == ""
    wait_for(lambda: ours(database) == 0, what="the end of the program's connections")


@pytest.mark.proves("F7")
def test_a_forked_child_opens_its_own_and_leaves_the_parents_alone(
    database: Database, app: App, pay: Any
) -> None:
    pay.enqueue(None, ride_id=1)
    program = f"""
import os, sys, gc
from pgqueue import App
app = App({database.dsn!r})
@app.task(name="pay")
def pay(ride_id: int) -> None: ...
pay.enqueue(None, ride_id=2)
child = os.fork()
if child == 0:
    pay.enqueue(None, ride_id=3)
    app.close()
    del app, pay
    gc.collect()
    sys.exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
pay.enqueue(None, ride_id=4)
lent = app.own._held.pool.get_stats()
assert lent.get("connections_num", 0) == 1, lent  # the first connection still serves
app.close()
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert rides(database) == [1, 2, 3, 4]


@pytest.mark.proves("F10", "F11", "P1")
def test_dead_connections_in_the_pool_cost_no_enqueue(database: Database, app: App, pay: Any) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: pay.enqueue(None, ride_id=n), range(40)))
    before = ours(database)
    database.connect().execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'pgqueue/enqueue'"
    )
    assert before >= 1
    assert pay.enqueue(None, ride_id=100).created

    async def main() -> None:
        await pay.enqueue_async(None, ride_id=101)
        database.connect().execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'pgqueue/enqueue'"
        )
        await pay.enqueue_async(None, ride_id=102)

    asyncio.run(main())
    assert rides(database) == [*range(40), 100, 101, 102]


@pytest.mark.proves("F20", "P13")
def test_a_key_held_by_an_open_transaction_is_waited_for(database: Database, pay: Any) -> None:
    keyed = pay.using(idempotency_key="k")
    with psycopg.connect(database.dsn) as holder:
        first = keyed.enqueue(holder, ride_id=1)
        with ThreadPoolExecutor(1) as threads:
            second = threads.submit(keyed.enqueue, None, ride_id=2)
            wait_for(
                lambda: (
                    database.one("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == 1
                ),
                what="the second producer's wait",
            )
            holder.commit()
            answer = second.result(20)
    assert (answer.id, answer.created) == (first.id, False)
    assert rides(database) == [1]


@pytest.mark.proves("F19", "S7", "I26")
def test_a_database_that_cannot_be_reached_is_told_at_once_without_the_password(database: Database) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refused
        port = taken.getsockname()[1]
        cases: list[tuple[str, type[Exception], str]] = [
            (
                f"postgresql://u:hunter2@127.0.0.1:{port}/x",
                DatabaseUnreachable,
                r"u@127\.0\.0\.1:\d+/x: .*refused",
            ),
            (database.server.dsn("nope"), DatabaseUnreachable, "does not exist"),
            (database.dsn_as("nobody_here"), DatabaseUnreachable, "does not exist"),
            ("postgres/u:hunter2@nowhere", ConfigurationError, "^database_url: not readable"),
        ]
        for dsn, kind, message in cases:
            own = OwnConnections(dsn, connect_timeout_s=2)
            with pytest.raises(kind, match=message) as caught:
                own.put_one(PARAMETERS)
            with pytest.raises(kind, match=message):
                asyncio.run(own.put_one_async(PARAMETERS))
            assert "hunter2" not in str(caught.value)
            own.close()


@pytest.mark.proves("P23")
def test_all_connections_busy_says_so(database: Database, app: App, pay: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(own_call, "GIVE_UP_S", 0.3)
    own = OwnConnections(database.dsn)
    own.put_one(PARAMETERS)
    pool = own._held.pool
    assert pool is not None
    lent = [pool.getconn() for _ in range(4)]
    with pytest.raises(DatabaseUnreachable, match=r"all 4 connections .* pass a connection of your own"):
        own.put_one(PARAMETERS)
    for conn in lent:
        pool.putconn(conn)
    own.put_one(PARAMETERS)
    own.close()


class OnceCutter(Cutter):
    """Breaks once; what comes after gets through."""

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        before = self.fired
        super()._forward(client, server)
        if self.fired and not before:
            self._at = 0


@pytest.mark.parametrize("sent", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("way", ["sync", "async", "bulk", "keyed"])
@pytest.mark.proves("P1", "P6", "P7", "F15", "F58", "SA7")
def test_cut_at_every_message_the_job_exists_once_or_the_caller_is_told(
    database: Database, way: str, sent: bool
) -> None:
    """With the link cut at any one message the call comes through, and says the truth about what it made."""
    told = 0
    with OnceCutter(database.server.socket_dir, database.server.port) as cutter:
        for message in range(1, 80):
            own = OwnConnections(cutter.dsn(database.name), connect_timeout_s=2)
            cutter.arm(message, sent=sent)
            token = f"{way}-{sent}-{message}"
            values = {**PARAMETERS, "args": f'{{"token": "{token}"}}'}
            try:
                if way == "sync":
                    numbers = [own.put_one(values)]
                elif way == "async":
                    numbers = [asyncio.run(own.put_one_async(values))]
                elif way == "keyed":
                    numbers = [own.put_one({**values, "key": token})]
                else:
                    bulk = {**values, "args": f"[{values['args']}, {values['args']}]", **MANY}
                    numbers = [int(n) for n in own.put_many([("enqueue_many", bulk)])[0][1:-1].split(",")]
            except DatabaseUnreachable:
                numbers = []  # met while it connected for the first time
            finally:
                own.close()
            there = database.connect().execute(
                "SELECT id FROM pgqueue.jobs WHERE args->>'token' = %s ORDER BY id", (token,)
            )
            assert [row[0] for row in there.fetchall()] == sorted(map(abs, numbers)), token
            assert all(number > 0 for number in numbers) or way == "keyed"
            told += not numbers
            if not cutter.fired:
                break
        else:
            pytest.fail("the exchange never ended")
    assert message > 15
    assert told < message


MANY: dict[str, Any] = dict.fromkeys(
    (
        "delay_s",
        "run_at",
        "keys",
        "key_ttl_s",
        "headers",
        "retry",
        "timeout_s",
        "audit",
        "expires_at",
        "concurrency_key",
        "tags",
        "parent_id",
        "key_scope",
        "on_conflict",
        "window_s",
        "batch_key",
    )
)


def in_transaction(database: Database) -> tuple[psycopg.Connection[Any], int, str]:
    conn = psycopg.connect(database.dsn)
    row = conn.execute(
        "SELECT j.id, pgqueue.enqueue_receipt(j.id) FROM (SELECT pgqueue.put_job('pay') AS id OFFSET 0) j"
    ).fetchone()
    assert row is not None
    return conn, row[0], row[1]


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.proves("P7", "F57")
def test_the_read_back_waits_for_a_backend_still_at_work(database: Database, commits: bool) -> None:
    conn, _, receipt = in_transaction(database)
    answers: list[str] = []
    reader = threading.Thread(target=lambda: answers.append(read_back(database.dsn, receipt, 5)))
    reader.start()
    wait_for(
        lambda: database.one("SELECT pgqueue.enqueue_outcome(%s)", (receipt,)) == "running",
        what="an open answer",
    )
    assert answers == []
    if commits:
        conn.commit()
    else:
        conn.rollback()
    reader.join(20)
    conn.close()
    assert answers == ["committed" if commits else "absent"]


@pytest.mark.proves("P7", "P6")
def test_a_job_that_has_run_or_died_meanwhile_is_still_found(database: Database) -> None:
    for end in (
        "SELECT pgqueue.cancel(%(id)s)",
        """WITH j AS (DELETE FROM pgqueue.jobs WHERE id = %(id)s RETURNING *)
        INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, attempts, max_attempts,
          first_failed_at, failed_at, created_at, job_created_at)
        SELECT id, queue, task, args, priority, 'rejected', 1, 6, now(), now(), now(), created_at FROM j""",
    ):
        conn, job_id, receipt = in_transaction(database)
        conn.commit()
        conn.execute(end, {"id": job_id})
        conn.commit()
        conn.close()
        assert database.one("SELECT count(*) FROM pgqueue.jobs WHERE id = %s", (job_id,)) == 0
        assert read_back(database.dsn, receipt, 5) == "committed"


@pytest.mark.proves("F58", "P7")
def test_an_id_or_a_transaction_number_given_out_again_proves_nothing(database: Database) -> None:
    conn, job_id, receipt = in_transaction(database)
    conn.rollback()
    # After a crash the next job may get the forgotten one's id, in a transaction of the forgotten one's number.
    conn.execute("SELECT setval('pgqueue.job_seq', %s, false)", (job_id,))
    again = conn.execute("SELECT pgqueue.put_job('pay')").fetchone()
    conn.commit()
    assert again == (job_id,)
    assert read_back(database.dsn, receipt, 5) == "absent"
    number, _, moment = receipt.split(" ")
    assert read_back(database.dsn, f"{int(number) + 1_000_000} {job_id} {moment}", 5) == "absent"
    conn.close()


@pytest.mark.proves("P7")
def test_a_truth_that_cannot_be_read_is_never_guessed(database: Database, monkeypatch: Any) -> None:
    monkeypatch.setattr(own_call, "GIVE_UP_S", 0.3)
    conn, _, receipt = in_transaction(database)
    with pytest.raises(UnknownOutcome, match="the outcome is running; look for the job"):
        read_back(database.dsn, receipt, 5)
    conn.close()
    with pytest.raises(UnknownOutcome, match="not to be learned"):
        read_back("host=/nowhere dbname=x", receipt, 2)


@pytest.mark.proves("P7", "SA7")
def test_what_follows_an_error() -> None:
    def call(**state: Any) -> Call:
        one = Call("host=x", repeats=state.pop("repeats", True))
        one.begin()
        one.sending = True
        for name, value in state.items():
            setattr(one, name, value)
        return one

    lost = psycopg.OperationalError("server closed the connection unexpectedly")
    assert call().judge(lost, broken=True) is After.REPEAT
    assert call(committing=True, receipt="1 2 3").judge(lost, broken=True) is After.READ_BACK
    assert (
        call(committing=True).judge(lost, broken=True) is After.DONE
    )  # every key had its job: nothing to commit
    assert call(committing=True, receipt="1 2 3").judge(TimeoutError(), broken=True) is After.READ_BACK
    assert call().judge(psycopg.errors.LockNotAvailable(), broken=False) is After.REPEAT
    # Refused at COMMIT is a sure failure, not an unknown one.
    refused = call(committing=True, receipt="1 2 3", repeats=False)
    with pytest.raises(psycopg.errors.SerializationFailure):
        refused.judge(psycopg.errors.SerializationFailure(), broken=False)
    with pytest.raises(DatabaseUnreachable, match="nothing was enqueued"):
        call(repeats=False).judge(lost, broken=True)
    with pytest.raises(DatabaseUnreachable, match="lost during COMMIT, nothing was enqueued"):
        call(repeats=False).learned("absent")
    assert call(repeats=False).learned("committed") is After.DONE
    assert call().learned("absent") is After.REPEAT
    with pytest.raises(ZeroDivisionError):
        call(sending=False).judge(ZeroDivisionError(), broken=False)
