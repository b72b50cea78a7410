"""What people ask the database: bounded however much there is, answered from an index, equal on old and new servers.

The statements of inspect.sql, control.sql and doctor.sql, and the ready-made queries of sql/dba.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from rig.database import ROOT, Database

from pgqueue.control.desk import Desk
from pgqueue.control.jobs import JobFilter, Jobs
from pgqueue.storage.statements import statement

NEWEST = {"before": 2**63 - 1, "limit": 50}
NO_TERMS = {"path": None, "variables": "{}", "words": None}
NO_FILTER = {"queue": None, "task": None, "task_prefix": None, "states": None, **NO_TERMS}
NO_DEAD_FILTER = {
    "queue": None,
    "task": None,
    "task_prefix": None,
    "reason": None,
    "error_type": None,
    "fingerprint": None,
    "age_max_s": 1e9,
    **NO_TERMS,
}
SEED = """
INSERT INTO pgqueue.jobs (id, created_at, run_at, ready_seq, priority, max_attempts, state, queue, task, args)
  SELECT n, now(), now(), n, 5, 6, 'ready', 'q' || n % 20, 't' || n % 50, '{"n": 1}' FROM generate_series(1, 120000) n;
INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, finished_at, priority, attempts, max_attempts, state, queue, task, args)
  SELECT n, now(), now(), now() + n % 3 * interval '1 day', 5, 1, 6, 'succeeded', 'q' || n % 20, 't' || n % 50, '{"n": 1}'
  FROM generate_series(200001, 260000) n;
INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, error_fingerprint, attempts, max_attempts,
    first_failed_at, failed_at, created_at, job_created_at)
  SELECT n, 'q' || n % 20, 't' || n % 50, '{}', 5, 'max_retries', 'f' || n % 9, 6, 6, now(), now(), now() - n * interval '1 s', now()
  FROM generate_series(300001, 330000) n;
INSERT INTO pgqueue.queues (name) SELECT 'q' || n FROM generate_series(0, 18) n;
"""


@pytest.fixture(scope="module")
def seeded(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One large database for the plans of this file."""
    from rig.database import migrate_template  # noqa: F401 - the template is made by the fixture below

    server = request.getfixturevalue("pg")
    name = "inspect_large"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    database = Database(name=name, server=server)
    from pgqueue.storage.migrate import upgrade

    upgrade(database.dsn)
    conn = database.connect()
    conn.execute(SEED)
    for table in ("jobs", "job_history", "dead_letter_jobs", "queues"):
        conn.execute(f"VACUUM ANALYZE pgqueue.{table}")
    yield database
    database.close()
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def plan(database: Database, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The statement's plan, run as the control room runs it: each time anew, knowing the parameters' values."""
    conn = database.connect()
    conn.execute("SET plan_cache_mode = force_custom_plan")
    numbers: dict[str, int] = {}
    text = re.sub(
        r"%\((\w+)\)s",
        lambda found: f"${numbers.setdefault(found[1], len(numbers) + 1)}",
        statement(name).decode(),
    )
    types = {"before": "bigint", "limit": "bigint", "id": "bigint", "after": "bigint", "upto": "bigint"}
    declared = ", ".join(types.get(p, "unknown") for p in numbers)
    conn.execute(f"PREPARE asked {f'({declared})' if declared else ''} AS {text}")
    values = ", ".join(_literal(parameters[p]) for p in numbers)
    row = conn.execute(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE asked {f'({values})' if values else ''}"
    ).fetchone()
    assert row is not None
    whole: dict[str, Any] = row[0][0]["Plan"]
    return whole


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return "ARRAY[" + ", ".join(_literal(one) for one in value) + "]"
    return str(value) if isinstance(value, int | float) else psycopg.sql.Literal(value).as_string()


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from nodes(child)


def pages(node: dict[str, Any]) -> int:
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])


HOT = re.compile(r"^(jobs|job_history|dead_letter_jobs|job_transitions)")


@pytest.mark.parametrize(
    ("name", "parameters", "buffers_max"),
    [
        ("list_live", {**NEWEST, **NO_FILTER}, 60),
        ("list_ended", {**NEWEST, **NO_FILTER, "states": ["succeeded", "cancelled"]}, 120),
        ("list_dead", {**NEWEST, **NO_FILTER}, 60),
        ("find_job", {"id": 77}, 60),
        ("find_job", {"id": 200_500}, 60),
        ("job_end", {"id": 200_500}, 60),
        (
            "list_dead_letters",
            {
                **NEWEST,
                **NO_DEAD_FILTER,
                "waiting": True,
                "before_at": datetime(9998, 1, 1, tzinfo=UTC),
            },
            60,
        ),
        ("find_dead_letters", {"ids": [300_001, 300_100]}, 60),
        ("live_upper", {}, 20),
        ("dead_upper", {}, 20),
        ("doctor_waiting", {}, 60),
    ],
)
def test_the_common_questions_read_a_few_pages_from_an_index(
    seeded: Database, name: str, parameters: dict[str, Any], buffers_max: int
) -> None:
    whole = plan(seeded, name, parameters)
    # An empty partition of a day to come is quicker to scan than its index is to open.
    scanned = [n["Relation Name"] for n in nodes(whole) if n["Node Type"] == "Seq Scan" and pages(n)]
    assert not [table for table in scanned if HOT.match(table)], json.dumps(whole)[:2000]
    assert pages(whole) <= buffers_max


@pytest.mark.proves("P23")
def test_a_filter_that_matches_nothing_looks_at_100000_rows_and_no_more(seeded: Database) -> None:
    whole = plan(seeded, "list_live", {**NEWEST, **NO_FILTER, "task": "nosuch"})
    assert max(n["Actual Rows"] for n in nodes(whole)) <= 100_000
    page = Jobs(Desk(seeded.dsn, via="cli")).page(JobFilter(task="nosuch"))
    assert (page.rows, page.before) == ([], 20_001)
    rest = Jobs(Desk(seeded.dsn, via="cli")).page(JobFilter(task="nosuch"), before=20_001)
    assert (rest.rows, rest.before) == ([], None)


def test_where_one_tables_window_ends_the_others_rows_wait_for_the_next_page(seeded: Database) -> None:
    """Live ids end at 120,000; the only matches among them lie below the window, the dead ones above it."""
    jobs = Jobs(Desk(seeded.dsn, via="cli"))
    conn = seeded.connect()
    conn.execute("UPDATE pgqueue.jobs SET task = 'rare' WHERE id IN (5, 6)")
    conn.execute("UPDATE pgqueue.dead_letter_jobs SET task = 'rare' WHERE job_id IN (300005, 300006)")
    where = JobFilter(("ready", "dead"), task="rare")
    first = jobs.page(where)
    assert ([row.id for row in first.rows], first.before) == ([300_006, 300_005], 20_001)
    second = jobs.page(where, before=20_001)
    assert ([row.id for row in second.rows], second.before) == ([6, 5], None)


def test_bulk_matching_walks_windows_to_the_end_it_had_when_it_began(seeded: Database) -> None:
    found = Jobs(Desk(seeded.dsn, via="cli")).matching(JobFilter(queue="q19"))
    assert found == list(range(19, 120_001, 20))
    row = (
        seeded.connect()
        .execute(statement("match_live"), {**NO_FILTER, "queue": "q19", "after": 0, "upto": 120_000})
        .fetchone()
    )
    assert row is not None
    assert row[0] == 20_000  # one window
    assert len(row[1]) == 1_000


DBA = sorted((ROOT / "sql" / "dba").glob("*.sql"))


def dba(database: Database, name: str, job_id: int = 0) -> list[dict[str, Any]]:
    text = (ROOT / "sql" / "dba" / f"{name}.sql").read_text().replace("0::bigint", f"{job_id}::bigint")
    with database.connect() as conn, conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SET search_path = pgqueue")
        return cursor.execute(text).fetchall()


def test_the_ready_made_queries_answer_on_every_server(any_database: Database) -> None:
    conn = any_database.connect()
    conn.execute("INSERT INTO pgqueue.queues (name) VALUES ('q'), ('calm')")
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'q') FROM generate_series(1, 3)")
    conn.execute(
        "INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, error_type, error_message, error_fingerprint,"
        " attempts, max_attempts, first_failed_at, failed_at, created_at, job_created_at)"
        " SELECT 1000 + n, 'q', 't', '{}', 5, 'max_retries', 'E', 'broke ' || n, 'f', 6, 6, now(), now(), now() - n * interval '13 hours', now()"
        " FROM generate_series(1, 3) n"
    )
    assert [row["job_id"] for row in dba(any_database, "dead_letters_of_the_last_day")] == [1001]
    (cause,) = dba(any_database, "dead_letters_by_cause")
    assert (cause["dead"], cause["last_day"], cause["latest_message"]) == (3, 1, "broke 1")
    assert [(row["queue"], row["verdict"]) for row in dba(any_database, "queues")] == [
        ("q", "no worker serves it"),
        ("calm", "nothing is due"),
    ]
    sizes = {row["table_name"]: row for row in dba(any_database, "sizes")}
    assert sizes["job_history"]["parts"] > 7
    assert "jobs" in sizes
    assert dba(any_database, "held") == dba(any_database, "running") == []
    holder = any_database.connect(autocommit=False, application_name="report")
    holder.execute("SELECT 1")
    assert "report" in [row["application"] for row in dba(any_database, "old_transactions")]


def test_running_jobs_are_shown_with_their_worker(database: Database) -> None:
    conn = database.connect()
    conn.execute("SELECT pgqueue.enqueue('t')")
    conn.execute(
        "INSERT INTO pgqueue.workers (id, lease_s, pid, host, version, queues, beat_at)"
        " VALUES ('11111111-1111-1111-1111-111111111111', 15, 42, 'box', '1', '{default}', now() - interval '1 hour')"
    )
    conn.execute(
        "UPDATE pgqueue.jobs SET state = 'running', claim_id = '22222222-2222-2222-2222-222222222222',"
        " worker_id = '11111111-1111-1111-1111-111111111111', started_at = now() - interval '5 s', attempt = 1"
    )
    conn.execute("INSERT INTO pgqueue.claims SELECT claim_id, worker_id, now(), ARRAY[id] FROM pgqueue.jobs")
    (row,) = dba(database, "running")
    assert (row["host"], row["worker_pid"], row["worker_is_gone"]) == ("box", 42, True)
    assert float(row["age_s"]) >= 5


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("", "no live worker serves queue q"),
        ("SELECT pgqueue.pause('q', actor => 'olga')", "paused since"),
        (
            "UPDATE pgqueue.jobs SET state = 'scheduled', ready_seq = NULL, run_at = now() + interval '1h'",
            "not due before",
        ),
        (
            "UPDATE pgqueue.jobs SET state = 'scheduled', ready_seq = NULL, run_at = now() + interval '1h', attempt = 2",
            "attempt 2 failed",
        ),
        ("UPDATE pgqueue.jobs SET state = 'scheduled', ready_seq = NULL", "no worker is alive"),
        (
            "UPDATE pgqueue.jobs SET state = 'held', ready_seq = NULL, hold_reason = 'unknown_task'",
            "knows task t",
        ),
        ("UPDATE pgqueue.jobs SET state = 'held', ready_seq = NULL, hold_reason = 'suspect'", "run alone"),
        (
            (
                "UPDATE pgqueue.jobs SET state = 'running', attempt = 1, started_at = now(),"
                " claim_id = gen_random_uuid(), worker_id = gen_random_uuid()"
            ),
            "it runs",
        ),
        (
            "INSERT INTO pgqueue.workers (id, lease_s, pid, host, version, queues) VALUES (gen_random_uuid(), 15, 1, 'h', '1', '{q}')",
            "2 jobs stand before it",
        ),
        ("SELECT pgqueue.cancel(id) FROM pgqueue.jobs", "it has ended: cancelled"),
    ],
)
def test_why_a_job_waits_is_said_in_words(database: Database, stage: str, words: str) -> None:
    conn = database.connect()
    conn.execute("SELECT pgqueue.enqueue('t', queue => 'q') FROM generate_series(1, 3)")
    if stage:
        conn.execute(stage)
    (row,) = dba(database, "why_is_this_job_waiting", 3)
    assert words in row["why"]
