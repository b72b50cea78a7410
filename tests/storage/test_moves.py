"""Which moves the database lets an audit row tell of: exactly those of the table in core, on every partition."""

from __future__ import annotations

from itertools import chain, product
from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.logins import make_logins

from pgqueue.core.states import REASONS, JobState, is_legal

pytestmark = pytest.mark.proves("P22", "I37")

STATES = [*(state.value for state in JobState), "nowhere", ""]
REASONS_KNOWN = sorted({*chain.from_iterable(REASONS.values()), "because", ""})
# Each triple is tried as a row of its own, and what is refused says by which constraint.
TRIES = """
CREATE FUNCTION pg_temp.accepted() RETURNS TABLE (from_state text, to_state text, reason text) LANGUAGE plpgsql AS $$
DECLARE
  constraint_hit text;
BEGIN
  FOR from_state, to_state, reason IN
    SELECT f.state, t.state, r.reason FROM unnest({moments}::text[]) AS f (state), unnest({states}::text[]) AS t (state), unnest({reasons}::text[]) AS r (reason)
  LOOP
    BEGIN
      INSERT INTO pgqueue.job_transitions (job_id, from_state, to_state, reason, actor, queue, task)
        VALUES (1, accepted.from_state, accepted.to_state, accepted.reason, 'test', 'q', 't');
      RETURN NEXT;
    EXCEPTION WHEN check_violation THEN
      GET STACKED DIAGNOSTICS constraint_hit = CONSTRAINT_NAME;
      IF constraint_hit <> 'job_transitions_move_check' THEN
        RAISE;
      END IF;
    END;
  END LOOP;
END $$
"""


def test_the_database_knows_exactly_the_moves_of_the_table(any_database: Database) -> None:
    conn = any_database.connect()
    tries = psycopg.sql.SQL(TRIES).format(moments=[None, *STATES], states=STATES, reasons=REASONS_KNOWN)
    conn.execute(tries)
    accepted = set(conn.execute("SELECT * FROM pg_temp.accepted()").fetchall())
    asked = set(product([None, *STATES], STATES, REASONS_KNOWN))
    assert len(asked) == (len(STATES) + 1) * len(STATES) * len(REASONS_KNOWN)
    assert accepted == {triple for triple in asked if is_legal(*triple)}
    assert accepted == {(old, new, reason) for (old, new), reasons in REASONS.items() for reason in reasons}


def test_every_partition_holds_to_it_and_a_worker_cannot_write_past_it(database: Database) -> None:
    conn = database.connect()
    conn.execute("SELECT pgqueue.ensure_partitions(2)")
    guarded = conn.execute(
        "SELECT c.relname, count(k.oid) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " LEFT JOIN pg_constraint k ON k.conrelid = c.oid AND k.conname = 'job_transitions_move_check' AND k.convalidated"
        " WHERE i.inhparent = 'pgqueue.job_transitions'::regclass GROUP BY 1"
    ).fetchall()
    assert len(guarded) >= 4
    assert {n for _, n in guarded} == {1}
    with (
        psycopg.connect(make_logins(database)("worker")) as worker,
        pytest.raises(psycopg.errors.CheckViolation, match="job_transitions_move_check"),
    ):
        worker.execute(
            "INSERT INTO pgqueue.job_transitions (job_id, at, from_state, to_state, reason, actor, queue, task)"
            " VALUES (1, now() + interval '1 day', 'succeeded', 'ready', 'rescued', 'worker:x', 'q', 't')"
        )


def test_a_live_row_cannot_stand_between_two_states(database: Database) -> None:
    """Every state with every mark of another is refused: what a claim, a lane and a hold leave on the row."""
    conn = database.connect()
    conn.execute("SELECT pgqueue.enqueue('t')")
    marks: dict[str, tuple[bool, bool, bool]] = {
        "ready": (False, True, False),
        "running": (True, True, False),
        "scheduled": (False, False, False),
        "held": (False, False, True),
    }
    for state, marked in product(marks, product([False, True], repeat=3)):
        claimed, placed, held = marked
        change: tuple[Any, ...] = (state, claimed, claimed, placed, held)
        text = (
            "UPDATE pgqueue.jobs SET state = %s, claim_id = CASE WHEN %s THEN gen_random_uuid() END,"
            " worker_id = CASE WHEN %s THEN gen_random_uuid() END, ready_seq = CASE WHEN %s THEN 1 END,"
            " hold_reason = CASE WHEN %s THEN 'operator' END"
        )
        if marked == marks[state]:
            conn.execute(text, change)
        else:
            with pytest.raises(psycopg.errors.CheckViolation):
                conn.execute(text, change)
