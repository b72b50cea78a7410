"""A secret in arguments, headers, errors and the DSN is found in no log, answer, error, process table or notification."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import uuid
from pathlib import Path

import psycopg
import pytest
from rig.database import ROOT, Database
from rig.proc import Proc, pgqueue, run
from rig.wait import wait_for

from pgqueue import App
from pgqueue.errors import DatabaseUnreachable
from pgqueue.storage.connect import CLI, connect
from pgqueue.storage.faults import summary_of, surfaced

HERE = Path(__file__).parent


def family(process: Proc) -> list[int]:
    """The process and all that it started."""
    found, left = [], [process.pid]
    while left:
        pid = left.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            left += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found


def outside(pids: list[int]) -> str:
    """What anybody on the machine may read of processes: their command lines, and their environments for their owner."""
    text = ""
    for pid in pids:
        with contextlib.suppress(OSError):
            text += Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            text += Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return text


@pytest.mark.proves("S6", "S7", "S8", "S20")
def test_a_secret_is_repeated_nowhere(database: Database) -> None:
    secret, password = f"hunter2-{uuid.uuid4()}", f"sesame-{uuid.uuid4()}"
    database.connect().execute("CREATE TABLE cards (card text PRIMARY KEY)")
    where = database.dsn.replace("postgresql://postgres@", f"postgresql://postgres:{password}@")
    assert password in where
    env = {"PGQUEUE_DATABASE_URL": where, "PYTHONPATH": f"{ROOT}:{HERE}"}
    app = App(database.dsn)
    options = {"headers": {"x-secret": secret}}
    ids = [
        app.enqueue(name, {"card": secret}, **options).id for name in ("unique", "says", "returns", "nosuch")
    ]
    ids.append(app.enqueue("wrong", {"amount": secret}, **options).id)
    ids.append(app.enqueue("waits", {"card": secret}, **options).id)
    said = ""
    conn = database.connect()
    with pgqueue("worker", "-A", "canaryapp:app", "-c", "2", "-v", env=env) as worker:
        ended = "SELECT (SELECT count(*) FROM pgqueue.job_history) + (SELECT count(*) FROM pgqueue.dead_letter_jobs)"
        wait_for(lambda: database.one(ended) == 4, 60, what="the other jobs to end")
        activity = json.dumps(conn.execute("SELECT query, application_name FROM pg_stat_activity").fetchall())
        assert "pg_sleep" in activity
        seen = outside(family(worker))
        assert "canaryapp" in seen
        for words in (
            *(("jobs", "get", str(job)) for job in ids),
            *(("jobs", "timeline", str(job)) for job in ids),
            *(("jobs", "explain", str(job)) for job in ids),
            ("jobs", "list", "--state", "dead", "--state", "succeeded", "-o", "json"),
            ("dlq", "list", "-o", "json"),
            ("dlq", "groups"),
            ("dlq", "export"),
            ("queues", "list"),
            ("workers", "list"),
            ("stats",),
            ("audit", "list"),
            ("doctor",),
            ("jobs", "cancel", str(ids[-1])),
        ):
            code, out, err = run(*words, env=env, timeout_s=60)
            assert code in {0, 1}, err
            said += out + err
        wait_for(lambda: database.one(ended) == 5, 60, what="the waiting job to be cancelled")
        worker.signal(signal.SIGTERM)
        worker.wait(60)
        log = worker.stdout + worker.stderr
    app.close()
    assert "charged" in log
    assert "wrong" in said
    stored = json.dumps(
        conn.execute(
            "SELECT error_message, errors::text, traceback, error_fingerprint FROM pgqueue.dead_letter_jobs"
        ).fetchall()
    )
    assert "the bank refused" in stored
    assert "cards_pkey" in stored
    for name, text in {
        "log": log,
        "answers": said,
        "errors": stored,
        "activity": activity,
        "processes": seen,
    }.items():
        assert secret not in text, name
        assert password not in re.sub(r"PGQUEUE_DATABASE_URL=\S+?\0", "", text), name
    # The twin: the same search finds the secret where it belongs, so it would have found it elsewhere.
    assert secret in json.dumps(conn.execute("SELECT args::text FROM pgqueue.dead_letter_jobs").fetchall())
    assert password in seen


@pytest.mark.proves("S7")
@pytest.mark.parametrize(
    "dsn",
    [
        "host=x user=u password=hunter2 hunter2 more",
        "postgres/u:hunter2@nowhere",
        "postgresql://u:hunter2@[nowhere/db",
        "postgresql://u:p%ZZhunter2@127.0.0.1:1/x",
        "hunter2=1 password=hunter2",
    ],
)
def test_a_dsn_that_cannot_be_read_is_not_repeated(dsn: str) -> None:
    with pytest.raises(DatabaseUnreachable) as refused:
        connect(dsn, CLI, connect_timeout_s=2)
    assert "hunter2" not in str(refused.value)


@pytest.mark.proves("S8")
def test_what_postgres_says_about_a_row_is_left_out(database: Database) -> None:
    conn = database.connect()
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        conn.execute("INSERT INTO pgqueue.queues (name, owner) VALUES ('Bad', 'hunter2')")
    assert "hunter2" in str(refused.value)
    for text in (summary_of(refused.value), str(surfaced(refused.value, statement="x"))):
        assert "hunter2" not in text
        assert "queues_name_check" in text


@pytest.mark.proves("S9")
def test_notifications_carry_no_data_and_garbage_does_no_harm(database: Database) -> None:
    """Whatever a producer sends along, what listeners hear is empty; what strangers send wakes and nothing else."""
    constant = re.compile(r"pg_notify\('pgqueue_[a-z]+', ''\)")
    sources = (
        database.connect()
        .execute("SELECT prosrc FROM pg_proc WHERE pronamespace = 'pgqueue'::regnamespace")
        .fetchall()
    )
    calls = [call for (source,) in sources for call in re.findall(r"pg_notify\([^)]*\)", source)]
    assert len(calls) >= 3
    assert [call for call in calls if not constant.fullmatch(call)] == []

    conn = database.connect()
    conn.execute("LISTEN pgqueue_wake")
    conn.execute("INSERT INTO pgqueue.sleepers (queue, worker_id) VALUES ('default', gen_random_uuid())")
    app = App(database.dsn)
    done: list[int] = []

    @app.task(name="t")
    def t(card: str) -> None:
        done.append(1)

    app.enqueue("t", {"card": "hunter2"}, headers={"h": "hunter2"})
    heard = list(conn.notifies(timeout=5, stop_after=1))
    assert [(notice.channel, notice.payload) for notice in heard] == [("pgqueue_wake", "")]
    with database.connect() as stranger:
        for payload in ("", "x" * 7999, '{"id": "\\u0000"}', "'; DROP TABLE pgqueue.jobs; --"):
            stranger.execute("SELECT pg_notify('pgqueue_wake', %s)", [payload])
    assert app.worker(concurrency=1, drain=True).run() == 0
    assert done == [1]
    app.close()
