"""A worker's statements by hand, on one connection: what tests of storage, interleavings and plans act with.

Each method sends one statement of sql/queries as it stands, with the parameters that its room would give. It
keeps no state but the worker's id, so two hands are two workers.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from rig.database import Database

from pgqueue.storage.statements import statement

PRIORITIES = tuple(range(10))
NO_FLOOR = -1
LEASE_S = 15.0
DAWN = "1970-01-01T00:00Z"  # before every moment in a test
# What `settle` says when a test does not: every kind has a reason that the table of moves knows.
REASON_OF = {"dead": "max_retries", "cancelled": "cancel_requested", "held": "operator"}
WIPED = (
    *("jobs", "claims", "job_history", "dead_letter_jobs", "job_transitions", "dedup_keys", "job_steps"),
    *("queues", "tasks", "workers", "sleepers", "operator_audit", "schedules", "schedule_runs"),
    *("stats_minutely", "history_sweeps", "upkeep_duties"),
    *("alert_deliveries", "alert_events"),
)


@dataclass(frozen=True, slots=True)
class Taken:
    """One claimed job: the row as claim_batch gave it, and the fence it was claimed under."""

    id: int
    claim_id: str
    row: Mapping[str, Any]


class Hand:
    """One worker, as far as the database can tell."""

    def __init__(self, conn: psycopg.Connection[Any], *, texts: Mapping[str, bytes] | None = None) -> None:
        """`texts` replaces statements by name: how a broken twin is played with the same hand."""
        self.conn = conn
        self.worker_id = str(uuid.uuid4())
        self._texts = texts or {}

    def run(self, name: str, /, **parameters: Any) -> list[dict[str, Any]]:
        """Any statement by name; rows as dictionaries, none for a statement without a result."""
        with self.conn.cursor(row_factory=dict_row) as cursor:
            cursor.execute(self._texts.get(name, statement(name)), parameters)
            return cursor.fetchall() if cursor.description else []

    def one(self, name: str, **parameters: Any) -> Any:
        """The single value of a statement's single row."""
        (row,) = self.run(name, **parameters)
        (value,) = row.values()
        return value

    def register(
        self, *, queues: Sequence[str] = ("default",), lease_s: float = LEASE_S, lock_key: int | None = None
    ) -> str:
        self.run(
            "register_worker",
            id=self.worker_id,
            lock_key=lock_key,
            lease_s=lease_s,
            pid=1,
            host="rig",
            version="0",
            kind="worker",
            queues=list(queues),
            slots=1,
        )
        return self.worker_id

    def beat(self, status: str = "live") -> bool | None:
        """Whether an operator wants a drain; None when this worker was declared dead."""
        rows = self.run(
            "beat",
            id=self.worker_id,
            claimed=0,
            settled=0,
            failed=0,
            busy=0,
            status=status,
            port=None,
            claims_lost=0,
            beats_late=0,
        )
        return next(iter(rows[0].values())) if rows else None

    def claim(
        self,
        want: int = 10,
        *,
        queues: Sequence[str] = ("default",),
        floor: int = NO_FLOOR,
        spent: Iterable[str] = (),
    ) -> list[Taken]:
        """Claim for one pool, all priorities of each queue, better priorities first."""
        lanes = [(1, queue, priority, floor) for priority in PRIORITIES for queue in queues]
        return self.claim_lanes([want], lanes, spent=spent)

    def claim_lanes(
        self, wants: Sequence[int], lanes: Sequence[tuple[int, str, int, int]], *, spent: Iterable[str] = ()
    ) -> list[Taken]:
        """Claim from lanes (pool, queue, priority, floor)."""
        claim_id = str(uuid.uuid4())
        pools, queues, priorities, floors = (list(column) for column in zip(*lanes, strict=True))
        rows = self.run(
            "claim_batch",
            pools=pools,
            queues=queues,
            priorities=priorities,
            floors=floors,
            wants=list(wants),
            spent=list(spent),
            claim_id=claim_id,
            worker_id=self.worker_id,
        )
        return [Taken(row["id"], claim_id, row) for row in rows]

    def claim_suspect(self, *, queues: Sequence[str] = ("default",)) -> Taken | None:
        claim_id = str(uuid.uuid4())
        rows = self.run("claim_suspect", queues=list(queues), claim_id=claim_id, worker_id=self.worker_id)
        return Taken(rows[0]["id"], claim_id, rows[0]) if rows else None

    def succeed(self, *taken: Taken, results: Sequence[Any] | None = None) -> set[int]:
        """Settle as the batch settler does; the ids that were settled."""
        texts = "[]" if results is None else json.dumps(list(results))
        rows = self.run(
            "settle_succeeded",
            ids=[job.id for job in taken],
            claims=[job.claim_id for job in taken],
            buffered=[0.25] * len(taken),
            runs=[0.5] * len(taken),
            results=texts,
        )
        return {row["job_id"] for row in rows}

    def settle(self, kind: str, *taken: Taken, reason: str | None = None, **more: Any) -> set[int]:
        """Settle otherwise than by success: all of `taken` in the same way."""
        return self.settle_each([self.record(kind, job, reason=reason, **more) for job in taken])

    def settle_each(self, records: Sequence[Mapping[str, Any]]) -> set[int]:
        """Settle by records as `record` makes them, of any kinds, in one statement."""
        rows = self.run("settle_otherwise", batch=json.dumps(list(records)))
        return {row["job_id"] for row in rows}

    @staticmethod
    def record(kind: str, job: Taken, *, reason: str | None = None, **more: Any) -> dict[str, Any]:
        common = {
            "id": job.id,
            "claim_id": job.claim_id,
            "kind": kind,
            "reason": reason or REASON_OF.get(kind, kind),
        }
        return {**common, "delay_s": 0, "max_attempts": None, "buffered_s": 0.25, "run_s": 0.5, **more}

    def mark(self, job: Taken) -> None:
        """The transaction-local mark that a job's transaction carries from its BEGIN."""
        self.conn.execute("SELECT set_config('pgqueue.claim', %s, true)", [job.claim_id])

    def settle_in_transaction(self, job: Taken, *, result: str | None = None) -> None:
        """Settle as the last statement of the transaction that holds the effect; raises PQ001 or PQ002."""
        self.run(
            "settle_in_transaction",
            id=job.id,
            claim_id=job.claim_id,
            mark=job.claim_id,
            buffered=0.25,
            run=0.5,
            result=result,
        )

    def rescue(self, claim_id: str) -> list[dict[str, Any]]:
        return self.run("rescue_claim", claim_id=claim_id, actor=f"worker:{self.worker_id}")

    def bury(self) -> list[dict[str, Any]]:
        self.run("watch_workers")
        return self.run("bury_workers")

    def promote(self, batch: int = 1000) -> dict[str, int]:
        """How many jobs of each queue became ready."""
        rows = self.run("promote_due", run_at=DAWN, id=0, batch=batch)
        return {row["queue"]: row["count"] for row in rows}

    def next_due(self) -> float | None:
        """Seconds until the next scheduled job is due."""
        seconds: float | None = self.one("next_due", run_at=DAWN, id=0)
        return seconds

    def lead(self, batch: int = 500) -> int:
        """How many windows were given a leader, over all that have ended."""
        found = self.run("lead_windows", run_at=DAWN, queue="", task="", key="", batch=batch)
        return int(found[0]["led"]) if found else 0

    def gather(self, leader: Taken, most: int = 1_000) -> list[Taken]:
        """What goes along with a leader, under a fence of its own."""
        claim_id = str(uuid.uuid4())
        rows = self.run(
            "gather_window",
            leader=leader.id,
            leader_claim=leader.claim_id,
            most=most,
            claim_id=claim_id,
            worker_id=self.worker_id,
            pool=1,
            audit=False,
        )
        return [Taken(row["id"], claim_id, row) for row in rows]

    def free_held(
        self, *, tasks: Sequence[str], queues: Sequence[str] = ("default",), batch: int = 500
    ) -> int:
        actor = f"worker:{self.worker_id}"
        freed: int = self.one("free_held", queues=list(queues), tasks=list(tasks), batch=batch, actor=actor)
        return freed


def enqueue(conn: psycopg.Connection[Any], task: str = "t", **options: Any) -> int:
    """`pgqueue.enqueue_job` with any of its options by name; the job's id."""
    names = ["args", *(name for name in options if name != "args")]
    values = {"args": "{}", **options}
    if not isinstance(values["args"], str):
        values["args"] = json.dumps(values["args"])
    named = ", ".join(f"{name} => %({name})s" for name in names)
    row = conn.execute(
        f"SELECT job_id FROM pgqueue.enqueue_job(%(task)s, {named})".encode(), {"task": task, **values}
    ).fetchone()
    assert row is not None
    return int(row[0])


def row_of(conn: psycopg.Connection[Any], table: str, job_id: int) -> dict[str, Any] | None:
    """A job's row in `jobs`, `job_history` or `dead_letter_jobs`; None if it is not there."""
    key = "id" if table == "jobs" else "job_id"
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(f"SELECT * FROM pgqueue.{table} WHERE {key} = %s".encode(), [job_id]).fetchone()


def transitions(conn: psycopg.Connection[Any], job_id: int) -> list[tuple[str, str, str]]:
    """A job's audit rows in order: from, to, reason."""
    return conn.execute(
        "SELECT from_state, to_state, reason FROM pgqueue.job_transitions WHERE job_id = %s ORDER BY at, id",
        [job_id],
    ).fetchall()


def places_of(conn: psycopg.Connection[Any], job_id: int) -> list[str]:
    """Where a job is: exactly one of the three tables, if nothing is wrong."""
    rows = conn.execute(
        "SELECT 'jobs' FROM pgqueue.jobs WHERE id = %(id)s UNION ALL"
        " SELECT 'job_history' FROM pgqueue.job_history WHERE job_id = %(id)s UNION ALL"
        " SELECT 'dead_letter_jobs' FROM pgqueue.dead_letter_jobs WHERE job_id = %(id)s",
        {"id": job_id},
    ).fetchall()
    return [place for (place,) in rows]


@contextlib.contextmanager
def shared_database(request: pytest.FixtureRequest, version: str) -> Iterator[Database]:
    """One migrated database for a whole test module: cloning one per test costs more than most statements."""
    server = request.getfixturevalue({"18": "pg", "15": "pg15"}[version])
    template = request.getfixturevalue(f"template{version}").template_dbname
    name = f"shared_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        try:
            yield Database(name=name, server=server)
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextlib.contextmanager
def wiped(database: Database) -> Iterator[Database]:
    """A shared database as if it were new: connections of the test end with it, and its rows before the next."""
    try:
        yield database
    finally:
        database.close()
        with psycopg.connect(database.dsn, autocommit=True) as conn:
            wipe(conn)


def wipe(conn: psycopg.Connection[Any]) -> None:
    """Empty every table of pgqueue; sequences go on."""
    for table in WIPED:
        conn.execute(f"DELETE FROM pgqueue.{table}".encode())
