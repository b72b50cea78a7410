"""Illegal rows written by hand are refused by the tables themselves, also from a worker's login."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rig.database import Database
from rig.logins import make_logins

pytestmark = pytest.mark.proves("I37")

WRONG = [
    "UPDATE pgqueue.jobs SET state = 'done'",
    "UPDATE pgqueue.jobs SET state = 'running'",
    "UPDATE pgqueue.jobs SET claim_id = gen_random_uuid()",
    "UPDATE pgqueue.jobs SET state = 'running', claim_id = gen_random_uuid()",
    "UPDATE pgqueue.jobs SET worker_id = gen_random_uuid()",
    "UPDATE pgqueue.jobs SET ready_seq = NULL",
    "UPDATE pgqueue.jobs SET state = 'scheduled'",
    "UPDATE pgqueue.jobs SET state = 'held', ready_seq = NULL",
    "UPDATE pgqueue.jobs SET hold_reason = 'operator'",
    "UPDATE pgqueue.jobs SET priority = 10",
    "UPDATE pgqueue.jobs SET priority = -1",
    "UPDATE pgqueue.jobs SET attempt = -1",
    "UPDATE pgqueue.jobs SET max_attempts = 0",
    "UPDATE pgqueue.jobs SET max_attempts = 1002",
    "UPDATE pgqueue.jobs SET run_at = 'infinity'",
    "UPDATE pgqueue.jobs SET run_at = '-infinity'",
    "UPDATE pgqueue.jobs SET run_at = '9999-01-01'",
    "UPDATE pgqueue.jobs SET queue = ''",
    "UPDATE pgqueue.jobs SET queue = repeat('q', 64)",
    "UPDATE pgqueue.jobs SET task = repeat('t', 201)",
    "UPDATE pgqueue.jobs SET args = jsonb_build_object('a', repeat('x', 9000000))",
    *(
        f"UPDATE pgqueue.jobs SET {column} = NULL"
        for column in (
            "id",
            "created_at",
            "run_at",
            "priority",
            "max_attempts",
            "attempt",
            "state",
            "queue",
            "task",
            "args",
        )
    ),
    """INSERT INTO pgqueue.job_history (job_id, enqueued_at, due_at, finished_at, priority, attempts, max_attempts, state, queue,
        task, args) VALUES (1, now(), now(), now(), 5, 1, 1, 'dead', 'q', 't', '{}')""",
    "INSERT INTO pgqueue.job_history (job_id, finished_at) VALUES (1, now())",
    "INSERT INTO pgqueue.job_transitions (job_id, to_state) VALUES (1, 'dead')",
    "INSERT INTO pgqueue.dead_letter_jobs (job_id) VALUES (1)",
    "INSERT INTO pgqueue.queues (name) VALUES ('Upper')",
    "INSERT INTO pgqueue.queues (name) VALUES ('')",
    "INSERT INTO pgqueue.workers (id, lease_s, pid, host, version, queues, status) VALUES (gen_random_uuid(), 1, 1, 'h', '0', '{}', 'asleep')",
    "INSERT INTO pgqueue.schedule_runs (schedule, run_key, fire_at, outcome, leader) VALUES ('s', 'k', now(), 'maybe', 'l')",
]


@pytest.mark.parametrize("text", WRONG)
def test_a_row_that_makes_no_sense_is_refused(database: Database, text: str) -> None:
    conn = database.connect()
    conn.execute("SELECT pgqueue.enqueue('t')")
    before = conn.execute("SELECT * FROM pgqueue.jobs").fetchall()
    with (
        psycopg.connect(make_logins(database)("worker")) as worker,
        pytest.raises(psycopg.errors.IntegrityError),
    ):
        worker.execute(text.encode())
    assert conn.execute("SELECT * FROM pgqueue.jobs").fetchall() == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    state=st.sampled_from(["ready", "running", "scheduled", "held", "succeeded", ""]),
    claimed=st.booleans(),
    placed=st.booleans(),
    reason=st.sampled_from([None, "operator"]),
)
def test_a_random_row_is_taken_only_if_it_is_one_of_the_four(
    database: Database, state: str, claimed: bool, placed: bool, reason: str | None
) -> None:
    """The checks leave exactly the combinations that the states mean."""
    legal = (
        state in {"ready", "running", "scheduled", "held"}
        and claimed is (state == "running")
        and placed is (state in {"ready", "running"})
        and (reason is not None) is (state == "held")
    )
    with psycopg.connect(database.dsn) as conn:
        conn.execute("SELECT pgqueue.enqueue('t')")
        text = """UPDATE pgqueue.jobs SET state = %s, claim_id = CASE WHEN %s THEN gen_random_uuid() END,
            worker_id = CASE WHEN %s THEN gen_random_uuid() END, ready_seq = CASE WHEN %s THEN 1 END, hold_reason = %s"""
        taken = True
        try:
            conn.execute(text, [state, claimed, claimed, placed, reason])
        except psycopg.errors.CheckViolation:
            taken = False
        conn.rollback()
    assert taken is legal
