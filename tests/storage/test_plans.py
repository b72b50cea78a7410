"""The plans of the hot statements over 100,000 rows, and the work they do: the part of speed that no machine changes.

Under `plan_cache_mode = force_generic_plan`, as prepared statements are planned in the long run.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from rig.database import Database
from rig.hands import REASON_OF

from pgqueue.storage.statements import STATEMENTS

ROWS = 100_000
DAWN = {"run_at": "1970-01-01T00:00Z", "id": 0}


@pytest.fixture
def conn(database: Database) -> psycopg.Connection[Any]:
    conn = database.connect()
    conn.execute(
        "SELECT count(*) FROM pgqueue.enqueue_jobs('t', (SELECT array_agg(jsonb_build_object('n', i)) FROM generate_series(1, %s) i))",
        (ROWS,),
    )
    conn.execute(
        "SELECT count(*) FROM pgqueue.enqueue_jobs('t', (SELECT array_agg(jsonb_build_object('n', i)) FROM generate_series(1, 20000) i), delay => '1 hour')"
    )
    conn.execute("VACUUM ANALYZE pgqueue.jobs")
    conn.execute("SET plan_cache_mode = force_generic_plan")
    return conn


def claim_parameters(want: int = 100, floor: int = -1) -> dict[str, Any]:
    return {
        "pools": [1] * 20,
        "queues": ["critical"] * 10 + ["default"] * 10,
        "priorities": list(range(10)) * 2,
        "floors": [floor] * 20,
        "wants": [want],
        "spent": [],
        "claim_id": uuid.uuid4(),
        "worker_id": uuid.uuid4(),
    }


def explain(conn: psycopg.Connection[Any], name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The plan of the prepared statement. A bare EXPLAIN with bound parameters is planned with their values known."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    text = re.sub(r"%\((\w+)\)s", number, STATEMENTS[name].decode())
    conn.execute("DEALLOCATE ALL")
    conn.execute(f"PREPARE hot AS {text}".encode())
    values = sql.SQL(", ").join(sql.Literal(parameters[n]) for n in names)
    call = sql.SQL("EXECUTE hot({})").format(values) if names else sql.SQL("EXECUTE hot")
    row = conn.execute(
        sql.SQL("EXPLAIN (ANALYZE, BUFFERS, WAL, FORMAT JSON) ") + call, prepare=False
    ).fetchone()
    assert row is not None
    plan = row[0] if not isinstance(row[0], str) else json.loads(row[0])
    result: dict[str, Any] = plan[0]["Plan"]
    return result


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def scans(plan: dict[str, Any]) -> set[str]:
    """How each table of ours is read."""
    return {
        f"{n['Node Type']} {n.get('Index Name', n['Relation Name'])}"
        for n in nodes(plan)
        if "Scan" in n["Node Type"] and "Relation Name" in n
    }


def work(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.mark.proves("F45", "P11")
def test_a_claim_reads_the_lane_index_in_order(conn: psycopg.Connection[Any]) -> None:
    plan = explain(conn, "claim_batch", claim_parameters())
    on_jobs = {scan for scan in scans(plan) if "jobs" in scan}
    assert on_jobs == {"Index Scan jobs_lane_idx", "Index Scan jobs_pkey"}
    # Beside the few lanes themselves nothing is sorted or hashed.
    lanes = next(n for n in nodes(plan) if n.get("Subplan Name") == "CTE lanes")
    few = [id(n) for n in nodes(lanes)]
    assert not [
        n
        for n in nodes(plan)
        if n["Node Type"] in {"Sort", "Hash Join", "Merge Join", "Incremental Sort"} and id(n) not in few
    ]
    claimed = conn.execute(
        "SELECT min(ready_seq), max(ready_seq), count(*) FROM pgqueue.jobs WHERE state = 'running'"
    ).fetchone()
    assert claimed == (1, 100, 100)
    assert work(plan) < 100 * 25


def test_a_claim_is_a_heap_only_update(conn: psycopg.Connection[Any]) -> None:
    conn.execute("SELECT pg_stat_reset_single_table_counters('pgqueue.jobs'::regclass)")
    for _ in range(5):
        conn.execute(STATEMENTS["claim_batch"], claim_parameters(500)).fetchall()
    conn.execute("SELECT pg_stat_force_next_flush()")
    conn.execute("SELECT 1")
    row = conn.execute(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'jobs'"
    ).fetchone()
    assert row is not None
    assert row[0] == 2500
    assert row[1] > 0.75 * row[0]


def claimed_rows(conn: psycopg.Connection[Any], count: int) -> tuple[list[int], uuid.UUID]:
    parameters = claim_parameters(count)
    return [row[0] for row in conn.execute(STATEMENTS["claim_batch"], parameters).fetchall()], parameters[
        "claim_id"
    ]


def literal(values: list[Any]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


@pytest.mark.proves("F45")
def test_a_note_of_progress_is_found_by_key_and_stays_on_its_page(conn: psycopg.Connection[Any]) -> None:
    ids, claim_id = claimed_rows(conn, 100)
    notes = [{"id": i, "claim_id": str(claim_id), "done": 1, "total": 2, "note": "x" * 200} for i in ids]
    plan = explain(conn, "note_progress", {"notes": json.dumps(notes)})
    assert {scan for scan in scans(plan) if "jobs" in scan} == {"Index Scan jobs_pkey"}
    conn.execute("SELECT pg_stat_reset_single_table_counters('pgqueue.jobs'::regclass)")
    for _ in range(20):
        assert len(conn.execute(STATEMENTS["note_progress"], {"notes": json.dumps(notes)}).fetchall()) == 100
    conn.execute("SELECT pg_stat_force_next_flush()")
    conn.execute("SELECT 1")
    row = conn.execute(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'jobs'"
    ).fetchone()
    assert row is not None
    assert row[0] >= 2000  # the claim and the note that was explained may be told only now
    assert row[1] > 0.75 * row[0]


@pytest.mark.proves("F45")
def test_settlements_find_rows_by_primary_key_only(conn: psycopg.Connection[Any]) -> None:
    ids, claim = claimed_rows(conn, 200)
    many = {
        "ids": literal(ids[:100]),
        "claims": literal([claim] * 100),
        "buffered": literal([0] * 100),
        "runs": literal([0] * 100),
        "results": "[]",
    }
    assert scans(explain(conn, "settle_succeeded", many)) == {"Index Scan jobs_pkey"}
    conn.execute("BEGIN")
    conn.execute("SELECT set_config('pgqueue.claim', %s, true)", (str(claim),))
    one = {"id": ids[100], "claim_id": claim, "mark": str(claim), "buffered": 0.0, "run": 0.0, "result": None}
    assert scans(explain(conn, "settle_in_transaction", one)) == {"Index Scan jobs_pkey"}
    conn.execute("COMMIT")
    batch = json.dumps(
        [
            {
                "id": i,
                "claim_id": str(claim),
                "kind": kind,
                "reason": REASON_OF.get(kind, kind),
                "delay_s": 1,
                "buffered_s": 0,
                "run_s": 0,
            }
            for i, kind in zip(ids[101:], ["retry", "dead", "snoozed", "cancelled"] * 24, strict=False)
        ]
    )
    assert {s for s in scans(explain(conn, "settle_otherwise", {"batch": batch})) if "jobs" in s} == {
        "Index Scan jobs_pkey"
    }


def test_promotion_and_its_timer_use_the_index_of_due_times(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "UPDATE pgqueue.jobs SET run_at = clock_timestamp() - interval '1 s' WHERE state = 'scheduled' AND id % 100 = 0"
    )
    plan = explain(conn, "promote_due", {**DAWN, "batch": 1000})
    assert {s for s in scans(plan) if "jobs" in s} == {
        "Index Scan jobs_scheduled_idx",
        "Index Scan jobs_pkey",
    }
    assert {s.replace("Only ", "") for s in scans(explain(conn, "next_due", DAWN))} == {
        "Index Scan jobs_scheduled_idx"
    }


@pytest.mark.proves("F45")
def test_promotion_does_not_walk_what_it_promoted_while_an_old_snapshot_keeps_it(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    """20,000 due in one second, and a transaction that somebody left open."""
    conn.execute(
        "UPDATE pgqueue.jobs SET run_at = date_trunc('second', clock_timestamp()) - interval '10 s' + (id % 1000) * interval '1 ms'"
        " WHERE state = 'scheduled'"
    )
    conn.execute("VACUUM ANALYZE pgqueue.jobs")
    old = database.connect(autocommit=False)
    old.execute("SELECT pg_current_xact_id()")
    place: dict[str, Any] = dict(DAWN)
    places = []
    while rows := conn.execute(STATEMENTS["promote_due"], {**place, "batch": 1000}).fetchall():
        assert rows[0][1] == 1000
        place = {"run_at": rows[0][2], "id": rows[0][3]}
        places.append((place["run_at"], place["id"]))
        if len(places) == 19:
            break
    assert places == sorted(places)
    conn.execute("BEGIN")
    on_from_there = work(explain(conn, "promote_due", {**place, "batch": 1000}))
    conn.execute("ROLLBACK")
    from_the_start = work(explain(conn, "promote_due", {**DAWN, "batch": 1000}))
    assert from_the_start > on_from_there + 15_000
    old.rollback()


def windows(conn: psycopg.Connection[Any], jobs: int, keys: int, *, late: str) -> None:
    """`jobs` of a task with a window, by `keys` keys, which has ended so long ago."""
    conn.execute(
        "INSERT INTO pgqueue.tasks (name, queue, priority, max_attempts, batch_window_s, batch_key)"
        " VALUES ('cells', 'default', 5, 3, 86400, 'cell') ON CONFLICT DO NOTHING"
    )
    conn.execute(
        "SELECT count(*) FROM pgqueue.enqueue_jobs('cells', (SELECT array_agg(jsonb_build_object('cell', i %% %s)) FROM generate_series(1, %s) i))",
        (keys, jobs),
    )
    conn.execute(
        "UPDATE pgqueue.jobs SET run_at = date_trunc('minute', now()) - %s::interval WHERE hold_reason = 'window' AND run_at > now()",
        (late,),
    )


def test_a_windows_statements_find_it_by_its_index_however_much_is_held(
    conn: psycopg.Connection[Any],
) -> None:
    windows(conn, 20_000, 4, late="2 minutes")
    windows(conn, 400, 400, late="1 minute")
    conn.execute("VACUUM ANALYZE pgqueue.jobs")
    start = {"run_at": "1970-01-01T00:00Z", "queue": "", "task": "", "key": ""}
    plan = explain(conn, "lead_windows", {**start, "batch": 500})
    # Once by key for what leads now; else only ever the windows' own index.
    assert {s.replace("Only ", "") for s in scans(plan) if "jobs" in s} == {
        "Index Scan jobs_window_idx",
        "Index Scan jobs_pkey",
    }
    assert conn.execute(
        "SELECT count(*) FROM pgqueue.jobs WHERE batch_key IS NOT NULL AND state = 'ready'"
    ).fetchone() == (404,)
    # The 20,000 jobs in four windows cost no more than the 400 in as many.
    again = explain(conn, "lead_windows", {**start, "batch": 500})
    assert work(again) < 404 * 40
    assert {s.replace("Only ", "") for s in scans(explain(conn, "next_window", {}))} == {
        "Index Scan jobs_window_idx"
    }

    floor = conn.execute("SELECT min(ready_seq) - 1 FROM pgqueue.jobs WHERE batch_key IS NOT NULL").fetchone()
    assert floor is not None
    parameters = claim_parameters(1, floor[0])
    (leader,) = conn.execute(STATEMENTS["claim_batch"], parameters).fetchall()
    plan = explain(
        conn,
        "gather_window",
        {
            "leader": leader[0],
            "leader_claim": parameters["claim_id"],
            "most": 499,
            "claim_id": uuid.uuid4(),
            "worker_id": parameters["worker_id"],
            "pool": 1,
            "audit": False,
        },
    )
    assert {s for s in scans(plan) if "jobs" in s} == {"Index Scan jobs_window_idx", "Index Scan jobs_pkey"}
    assert work(plan) < 500 * 40
    row = conn.execute("SELECT count(*) FROM pgqueue.jobs WHERE state = 'running'").fetchone()
    assert row == (500,)


def test_a_rescue_goes_through_the_claims_row(conn: psycopg.Connection[Any]) -> None:
    _, claim = claimed_rows(conn, 300)
    plan = explain(conn, "rescue_claim", {"claim_id": claim, "actor": "test"})
    assert {s for s in scans(plan) if "jobs" in s} == {"Index Scan jobs_pkey"}
    assert conn.execute("SELECT count(*) FROM pgqueue.jobs WHERE hold_reason = 'suspect'").fetchone() == (
        300,
    )
    assert conn.execute("SELECT count(*) FROM pgqueue.claims").fetchone() == (0,)


@pytest.mark.proves("F30")
def test_a_floor_spares_the_dead_entries_that_an_old_snapshot_keeps(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    with psycopg.connect(database.dsn) as old:
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1 FROM pgqueue.queues LIMIT 1")
        floor = 0
        for _ in range(80):
            parameters = claim_parameters(1000)
            parameters["floors"] = [floor] * 20
            rows = conn.execute(STATEMENTS["claim_batch"], parameters).fetchall()
            floor = max(row[7] for row in rows)
            conn.execute("DELETE FROM pgqueue.jobs WHERE claim_id = %s", (parameters["claim_id"],))
        with_floor = work(explain(conn, "claim_batch", claim_parameters(100, floor)))
        # The twin: the same claim from the start of the lane walks everything that was claimed before.
        without = work(explain(conn, "claim_batch", claim_parameters(100)))
    assert with_floor < 5_000
    assert without > 10 * with_floor


def test_wal_per_job_over_its_life_stays_small(conn: psycopg.Connection[Any]) -> None:
    """Bulk enqueue, claim, settle with history; 100-byte arguments. The bound is docs/performance.md's."""
    jobs = 20_000
    conn.execute("TRUNCATE pgqueue.jobs, pgqueue.claims")
    conn.execute("CHECKPOINT")

    def position() -> int:
        row = conn.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
        assert row is not None
        return int(row[0])

    before = position()
    conn.execute(
        "SELECT count(*) FROM pgqueue.enqueue_jobs('t', (SELECT array_agg(jsonb_build_object('ride_id', i, 'note', repeat('x', 70))) FROM generate_series(1, %s) i))",
        (jobs,),
    )
    floor = 0
    while True:
        parameters = claim_parameters(500)
        parameters["floors"] = [floor] * 20
        rows = conn.execute(STATEMENTS["claim_batch"], parameters).fetchall()
        if not rows:
            break
        floor = max(row[7] for row in rows)
        ids = [row[0] for row in rows]
        conn.execute(
            STATEMENTS["settle_succeeded"],
            {
                "ids": literal(ids),
                "claims": literal([parameters["claim_id"]] * len(ids)),
                "buffered": literal([0.001] * len(ids)),
                "runs": literal([0.001] * len(ids)),
                "results": "[]",
            },
        )
    per_job = (position() - before) / jobs
    assert per_job < 1_200, per_job
