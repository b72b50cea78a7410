"""Alerts as the database decides them: each kind fires in a staged fault and resolves, one row per incident."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from rig.database import ROOT, Database
from rig.hands import enqueue, shared_database, wiped

from pgqueue.storage.known import head
from pgqueue.storage.statements import statement

WORKER = (
    "INSERT INTO pgqueue.workers (id, lease_s, pid, host, version, queues, slots)"
    " VALUES (gen_random_uuid(), 600, 1, 'h', '{version}', '{{q}}', 4)"
)
DEAD = (
    "INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, attempts, max_attempts,"
    " first_failed_at, failed_at, created_at, job_created_at)"
    " SELECT n, 'q', 't', '{}', 5, 'max_retries', 6, 6, now(), now(), now(), now() FROM generate_series(1, 3) n"
)
LATE = (
    "SELECT pgqueue.enqueue('t', queue => 'q');"
    " UPDATE pgqueue.jobs SET run_at = clock_timestamp() - interval '1 hour'"
)
HELD = " UPDATE pgqueue.jobs SET state = 'held', ready_seq = NULL, hold_reason = '{reason}'"
SCHEDULE = 'SELECT pgqueue.put_schedule(\'{"name": "s", "task": "t", "cron": "0 0 * * *"}\');'
SLA = 'SELECT pgqueue.set_queue(\'q\', \'{"sla_s": 5, "tier": "critical"}\');'
NO_JOBS = "DELETE FROM pgqueue.jobs"
CALM_SCHEDULE = "DELETE FROM pgqueue.schedules"
DROP_DAY = (
    "DO $$ BEGIN EXECUTE 'DROP TABLE pgqueue.job_transitions_' ||"
    " to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD'); END $$"
)

ROLLED = "UPDATE pgqueue.stats_progress SET done_upto = date_trunc('minute', clock_timestamp()) WHERE what = 'rollups';"
UNROLLED = "UPDATE pgqueue.stats_progress SET done_upto = NULL WHERE what = 'rollups'"


def minutes(outcome: str, n: int, first: int, last: int) -> str:
    """So many attempts in each of the minutes from `first` to `last` ago."""
    return (
        ROLLED
        + "INSERT INTO pgqueue.stats_minutely (grain_s, bucket_at, series, queue, task, outcome, n)"
        + f" SELECT 60, date_trunc('minute', clock_timestamp()) - make_interval(mins => m), 'work', 'q', 't', '{outcome}', {n}"
        + f" FROM generate_series({last}, {first}) m;"
    )


def lags(early: int, late: int) -> str:
    return (
        "INSERT INTO pgqueue.stats_minutely (grain_s, bucket_at, series, queue, task, outcome, n, lag_s)"
        " SELECT 60, clock_timestamp() - make_interval(mins => m), 'queue', 'q', '', '', 1,"
        f" CASE WHEN m > 5 THEN {early} ELSE {late} END FROM generate_series(1, 10) m;"
    )


def missed(grain_s: int, late: int, first: int, last: int) -> str:
    """A hundred starts in each bucket from `first` to `last` ago, so many of them later than promised."""
    return (
        ROLLED
        + "INSERT INTO pgqueue.stats_minutely (grain_s, bucket_at, series, queue, task, outcome, n, wait_met)"
        + f" SELECT {grain_s}, date_trunc('minute', clock_timestamp()) - make_interval(secs => {grain_s} * m), 'work', 'q', 't',"
        + f" 'succeeded', 100, {100 - late} FROM generate_series({last}, {first}) m;"
    )


NO_STATS = "DELETE FROM pgqueue.stats_minutely"

# kind: the fault, its end, and what the incident is about.
FAULTS: dict[str, tuple[str, str, str]] = {
    "queue_lag": (SLA + LATE, NO_JOBS, "q"),
    "limited_lag": (SLA + LATE + ";" + HELD.format(reason="rate"), NO_JOBS, "q"),
    "dead_letter_growth": (DEAD + ";INSERT INTO pgqueue.queues (name) VALUES ('q')", "DELETE FROM pgqueue.dead_letter_jobs", "q"),
    "dead_letters_waiting": (SLA + DEAD, "UPDATE pgqueue.dead_letter_jobs SET redriven_as = 1", "q"),
    "no_workers": ("SELECT pgqueue.enqueue('t', queue => 'q')", WORKER.format(version="1"), "q"),
    "jobs_held": ("SELECT pgqueue.enqueue('t', queue => 'q');" + HELD.format(reason="unknown_task"), NO_JOBS, "q unknown_task"),
    "no_leader": (SCHEDULE, "SELECT pg_advisory_lock(hashtextextended('pgqueue scheduler', 0))", ""),
    "schedule_missed": (
        SCHEDULE + "UPDATE pgqueue.schedules SET next_fire_at = clock_timestamp() - interval '10 min'",
        "UPDATE pgqueue.schedules SET next_fire_at = clock_timestamp() + interval '10 min'",
        "s",
    ),
    "schedule_failed": (
        SCHEDULE
        + "INSERT INTO pgqueue.schedule_runs (schedule, run_key, fire_at, outcome, leader) VALUES ('s', 'k', now(), 'missed', 'l')",
        "SELECT pgqueue.run_schedule('s')",
        "s",
    ),
    "version_skew": (
        WORKER.format(version="1") + ";" + WORKER.format(version="2"),
        "UPDATE pgqueue.workers SET status = 'stopped' WHERE version = '1'",
        "",
    ),
    "lag_growing": (SLA + LATE + ";" + lags(3, 30), NO_JOBS, "q"),
    "error_rate": (minutes("retry", 60, 5, 1) + minutes("succeeded", 60, 5, 1), NO_STATS, "q"),
    "retry_storm": (minutes("retry", 60, 5, 1) + minutes("retry", 1, 60, 11), NO_STATS, "t"),
    "throughput_drop": (
        minutes("succeeded", 600, 60, 11) + "SELECT pgqueue.enqueue('t', queue => 'q')",
        NO_JOBS,
        "q",
    ),
    "rescues": (minutes("rescued", 100, 5, 1), NO_STATS, ""),
    "rollups_stale": (
        "UPDATE pgqueue.stats_progress SET done_upto = clock_timestamp() - interval '1 hour' WHERE what = 'rollups'",
        UNROLLED,
        "",
    ),
    "retention": (
        "INSERT INTO pgqueue.upkeep_duties (duty, next_at) VALUES ('retention', clock_timestamp() - interval '2 days')",
        "UPDATE pgqueue.upkeep_duties SET next_at = clock_timestamp()",
        "retention",
    ),
    "outbox_stuck": (
        "SELECT pgqueue.emit('ride.done', '{}'); UPDATE pgqueue.outbox SET emitted_at = clock_timestamp() - interval '1 hour'",
        "DELETE FROM pgqueue.outbox",
        "ride.done",
    ),
    "sla_burn": (SLA + missed(60, 100, 60, 1), NO_STATS, "q"),
    "sla_burn_slow": (SLA + missed(3600, 10, 6, 1) + missed(60, 10, 30, 1), NO_STATS, "q"),
    "claims_lost": (
        WORKER.format(version="1") + "; UPDATE pgqueue.workers SET claims_lost = 1, claim_lost_at = clock_timestamp()",
        "UPDATE pgqueue.workers SET claim_lost_at = clock_timestamp() - interval '16 minutes'",
        "",
    ),
    "heartbeat_late": (
        WORKER.format(version="1") + "; UPDATE pgqueue.workers SET beats_late = 1, beat_late_at = clock_timestamp()",
        "UPDATE pgqueue.workers SET beat_late_at = clock_timestamp() - interval '11 minutes'",
        "",
    ),
    "partitions": (DROP_DAY, "SELECT pgqueue.ensure_partitions(7)", "job_transitions"),
}  # fmt: skip


@pytest.fixture(scope="module", params=["18", "15"])
def shared(request: pytest.FixtureRequest) -> Iterator[Database]:
    with shared_database(request, request.param) as database:
        yield database


@pytest.fixture
def database(shared: Database) -> Iterator[Database]:
    with wiped(shared) as found:
        yield found


@pytest.fixture
def conn(database: Database) -> psycopg.Connection[Any]:
    """Rules as shipped but for their patience: what is exceeded fires at once, what is calm is resolved at once."""
    conn = database.connect()
    conn.execute("DELETE FROM pgqueue.alert_rules")
    conn.execute("SELECT pgqueue.restore_alert_rules()")
    conn.execute("UPDATE pgqueue.alert_rules SET for_s = 0, resolve_s = 0")
    conn.execute("UPDATE pgqueue.alert_evaluations SET evaluated_at = NULL")
    conn.execute(UNROLLED)
    return conn


def evaluate(conn: psycopg.Connection[Any], mode: str = "check", **more: Any) -> list[tuple[str, str, str]]:
    """What fired or was resolved: (rule, key, transition)."""
    parameters = {
        "evaluator": "rig",
        "mode": mode,
        "revision": head(),
        "sinks": ["log", "notify"],
        "pause_s": 0,
    }
    rows = conn.execute(statement("evaluate_alerts"), {**parameters, **more}).fetchall()
    return [row[1:] for row in rows]


def only(conn: psycopg.Connection[Any], kind: str) -> str:
    """Leave one kind enabled; the name of its rule."""
    conn.execute("UPDATE pgqueue.alert_rules SET enabled = kind = %s", [kind])
    row = conn.execute("SELECT name FROM pgqueue.alert_rules WHERE kind = %s", [kind]).fetchone()
    assert row is not None
    return str(row[0])


def events(conn: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("SELECT * FROM pgqueue.alert_events ORDER BY id").fetchall()


def ran_well(conn: psycopg.Connection[Any]) -> bool:
    """No rule failed to be evaluated."""
    rows = conn.execute(
        "SELECT name, last_error FROM pgqueue.alert_rules WHERE last_error IS NOT NULL"
    ).fetchall()
    assert rows == []
    return True


@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_fires_in_its_fault_and_resolves_with_its_end(
    conn: psycopg.Connection[Any], kind: str
) -> None:
    fault, end, key = FAULTS[kind]
    rule = only(conn, kind)
    assert evaluate(conn) == []
    conn.execute(fault.encode())
    assert evaluate(conn) == [(rule, key, "firing")]
    assert evaluate(conn) == []  # it goes on, and is told once
    conn.execute(end.encode())
    assert evaluate(conn) == [(rule, key, "resolved")]
    assert evaluate(conn) == []
    (event,) = events(conn)
    assert (event["state"], event["key"], event["evaluator"]) == ("resolved", key, "rig")
    assert ran_well(conn)


def test_an_old_transaction_fires_and_resolves(database: Database, conn: psycopg.Connection[Any]) -> None:
    rule = only(conn, "old_transaction")
    conn.execute("UPDATE pgqueue.alert_rules SET threshold = 0")
    with database.connect(autocommit=False) as holder:
        holder.execute("SELECT 1")
        assert evaluate(conn) == [(rule, "", "firing")]
        holder.rollback()
        assert evaluate(conn) == [(rule, "", "resolved")]


def test_too_many_connections_fire_and_resolve(conn: psycopg.Connection[Any]) -> None:
    rule = only(conn, "connections")
    assert evaluate(conn) == []
    conn.execute("UPDATE pgqueue.alert_rules SET threshold = 0.00001")
    assert evaluate(conn) == [(rule, "", "firing")]
    conn.execute("UPDATE pgqueue.alert_rules SET threshold = 0.9999")
    assert evaluate(conn) == [(rule, "", "resolved")]


def test_another_revision_than_the_evaluators_fires_and_resolves(conn: psycopg.Connection[Any]) -> None:
    rule = only(conn, "schema")
    assert evaluate(conn) == []
    assert evaluate(conn, revision="pgqueue_9999") == [(rule, "", "firing")]
    assert evaluate(conn) == [(rule, "", "resolved")]


def test_a_table_of_dead_rows_fires_and_resolves_once_they_are_gone(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    rule = only(conn, "table_bloat")
    assert evaluate(conn) == []
    conn.execute("CREATE TABLE pgqueue.bloated (n integer) WITH (autovacuum_enabled = off)")
    try:
        with database.connect(autocommit=False) as writer:
            writer.execute("INSERT INTO pgqueue.bloated SELECT generate_series(1, 1000001)")
            writer.rollback()
            writer.execute("SELECT pg_stat_force_next_flush()")
            writer.commit()
        assert evaluate(conn) == [(rule, "bloated", "firing")]
        conn.execute("VACUUM pgqueue.bloated")
        conn.execute("SELECT pg_stat_force_next_flush()")
        assert evaluate(conn) == [(rule, "bloated", "resolved")]
    finally:
        conn.execute("DROP TABLE pgqueue.bloated")
    assert ran_well(conn)


def test_every_kind_a_rule_may_have_has_a_shipped_rule_and_a_measure(
    conn: psycopg.Connection[Any],
) -> None:
    (check,) = conn.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'alert_rules_kind_check'"
    ).fetchone() or ("",)
    shipped = {row[0] for row in conn.execute("SELECT kind FROM pgqueue.shipped_alert_rules").fetchall()}
    assert all(f"'{kind}'" in check for kind in shipped)
    assert check.count("'::text") == len(shipped)
    evaluate(conn)
    assert ran_well(conn)
    staged = {*FAULTS, "old_transaction", "connections", "schema", "table_bloat"}
    assert shipped == staged, "each kind needs a staged fault here"


def test_rates_that_are_old_say_nothing(conn: psycopg.Connection[Any]) -> None:
    only(conn, "rescues")
    conn.execute(minutes("rescued", 100, 5, 1))
    conn.execute(
        "UPDATE pgqueue.stats_progress SET done_upto = done_upto - interval '10 minutes' WHERE what = 'rollups'"
    )
    assert evaluate(conn) == []


def test_a_budget_that_burns_no_more_or_only_for_a_moment_wakes_nobody(conn: psycopg.Connection[Any]) -> None:
    only(conn, "sla_burn")
    conn.execute((SLA + missed(60, 100, 60, 6) + missed(60, 0, 5, 1)).encode())
    assert evaluate(conn) == []  # an hour that was bad, and is over
    conn.execute(NO_STATS)
    conn.execute((missed(60, 0, 60, 6) + missed(60, 100, 5, 1)).encode())
    conn.execute("UPDATE pgqueue.stats_minutely SET wait_met = 90 WHERE wait_met = 0 AND n = 100")
    assert evaluate(conn) == []  # five bad minutes of a good hour
    assert ran_well(conn)


def test_a_lag_that_shrinks_does_not_grow(conn: psycopg.Connection[Any]) -> None:
    only(conn, "lag_growing")
    conn.execute((SLA + LATE + ";" + lags(9000, 4000)).encode())
    assert evaluate(conn) == []


def test_what_is_exceeded_for_a_moment_only_is_no_incident(conn: psycopg.Connection[Any]) -> None:
    rule = only(conn, "no_workers")
    conn.execute("UPDATE pgqueue.alert_rules SET for_s = 3600")
    enqueue(conn, queue="q")
    assert evaluate(conn) == []
    (event,) = events(conn)
    assert (event["state"], event["fired_at"]) == ("pending", None)
    conn.execute("UPDATE pgqueue.alert_events SET pending_since = pending_since - interval '1 hour'")
    assert evaluate(conn) == [(rule, "q", "firing")]
    conn.execute("DELETE FROM pgqueue.alert_events")
    evaluate(conn)
    conn.execute(NO_JOBS)
    assert evaluate(conn) == []
    assert events(conn) == []


def test_calm_must_last_and_a_relapse_begins_it_anew(conn: psycopg.Connection[Any]) -> None:
    rule = only(conn, "no_workers")
    conn.execute("UPDATE pgqueue.alert_rules SET resolve_s = 60")
    enqueue(conn, queue="q")
    evaluate(conn)
    conn.execute(NO_JOBS)
    assert evaluate(conn) == []
    assert events(conn)[0]["calm_since"] is not None
    enqueue(conn, queue="q")
    assert evaluate(conn) == []
    assert events(conn)[0]["calm_since"] is None
    conn.execute(NO_JOBS)
    evaluate(conn)
    conn.execute("UPDATE pgqueue.alert_events SET calm_since = calm_since - interval '61 s'")
    assert evaluate(conn) == [(rule, "q", "resolved")]
    assert len(events(conn)) == 1


def test_paused_queues_do_not_wake_anybody(conn: psycopg.Connection[Any]) -> None:
    conn.execute((SLA + LATE).encode())
    conn.execute("SELECT pgqueue.pause('q')")
    assert [key for rule, key, _ in evaluate(conn) if rule in {"QueueLagAboveSLA", "NoWorkers"}] == []


def test_the_tier_decides_whether_people_are_woken(conn: psycopg.Connection[Any]) -> None:
    only(conn, "queue_lag")
    conn.execute((SLA + LATE).encode())
    evaluate(conn)
    assert events(conn)[0]["severity"] == "page"
    conn.execute("SELECT pgqueue.set_queue('q', '{\"tier\": \"standard\"}')")
    evaluate(conn)
    assert events(conn)[0]["severity"] == "warn"


def test_a_scope_leaves_the_others_out(conn: psycopg.Connection[Any]) -> None:
    only(conn, "no_workers")
    conn.execute('UPDATE pgqueue.alert_rules SET scope = \'{"queue": "pay"}\'')
    enqueue(conn, queue="q")
    enqueue(conn, queue="pay")
    assert [key for _, key, _ in evaluate(conn)] == ["pay"]
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute('UPDATE pgqueue.alert_rules SET scope = \'{"sql": "x"}\'')


def test_disabling_a_rule_ends_its_incidents(conn: psycopg.Connection[Any]) -> None:
    rule = only(conn, "no_workers")
    enqueue(conn, queue="q")
    evaluate(conn)
    conn.execute("UPDATE pgqueue.alert_rules SET enabled = false")
    assert evaluate(conn) == [(rule, "q", "resolved")]


def test_a_rule_that_cannot_be_evaluated_says_so_and_hinders_no_other(
    conn: psycopg.Connection[Any],
) -> None:
    enqueue(conn, queue="q")
    conn.execute("ALTER TABLE pgqueue.alembic_version RENAME TO away")
    try:
        assert ("NoWorkers", "q", "firing") in evaluate(conn)
        rows = conn.execute(
            "SELECT name, last_error FROM pgqueue.alert_rules WHERE last_error IS NOT NULL"
        ).fetchall()
        assert [row[0] for row in rows] == ["SchemaNotAtHead"]
        assert "alembic_version" in rows[0][1]
    finally:
        conn.execute("ALTER TABLE pgqueue.away RENAME TO alembic_version")
    evaluate(conn)
    assert ran_well(conn)


def test_a_hostile_search_path_changes_nothing(conn: psycopg.Connection[Any]) -> None:
    enqueue(conn, queue="q")
    conn.execute("CREATE SCHEMA IF NOT EXISTS evil")
    conn.execute(
        "CREATE OR REPLACE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$SELECT 'epoch'::timestamptz$$"
    )
    conn.execute("CREATE OR REPLACE VIEW evil.queue_health AS SELECT 1 AS x")
    conn.execute("SET search_path = evil, pg_catalog")
    assert ("NoWorkers", "q", "firing") in evaluate(conn)
    assert ran_well(conn)
    conn.execute("RESET search_path")
    conn.execute("DROP SCHEMA evil CASCADE")


def test_shipped_rules_come_back_and_changed_or_disabled_ones_stay(conn: psycopg.Connection[Any]) -> None:
    conn.execute("DELETE FROM pgqueue.alert_rules WHERE name IN ('NoWorkers', 'TableBloat')")
    conn.execute("UPDATE pgqueue.alert_rules SET enabled = false, threshold = 7 WHERE name = 'JobsHeld'")
    assert conn.execute("SELECT pgqueue.restore_alert_rules()").fetchone() == (2,)
    assert conn.execute("SELECT pgqueue.restore_alert_rules()").fetchone() == (0,)
    row = conn.execute(
        "SELECT enabled, threshold FROM pgqueue.alert_rules WHERE name = 'JobsHeld'"
    ).fetchone()
    assert row == (False, 7)


def test_every_rule_names_a_runbook_that_is_there(conn: psycopg.Connection[Any]) -> None:
    for (path,) in conn.execute("SELECT runbook_url FROM pgqueue.shipped_alert_rules").fetchall():
        assert (ROOT / path).is_file(), path


def test_two_evaluators_at_once_fire_once_and_the_second_does_not_wait(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    only(conn, "no_workers")
    enqueue(conn, queue="q")
    with database.connect(autocommit=False) as first:
        assert len(evaluate(first, "leader")) == 1
        conn.execute("SET statement_timeout = '20s'")
        assert evaluate(conn, "leader") == []  # while the other has not committed
        first.commit()
    assert evaluate(conn, "leader") == []
    assert [event["state"] for event in events(conn)] == ["firing"]


def test_without_the_lock_and_the_unique_index_two_evaluators_fire_twice(
    database: Database, conn: psycopg.Connection[Any]
) -> None:
    """The broken twin of the test above."""
    only(conn, "no_workers")
    enqueue(conn, queue="q")
    (text,) = conn.execute("SELECT pg_get_functiondef('pgqueue.evaluate_alerts'::regproc)").fetchone() or (
        "",
    )
    twin, changes = text.replace("evaluate_alerts", "evaluate_twin"), 0
    for pattern in (
        r"FOR UPDATE SKIP LOCKED",
        r"ON CONFLICT .*?calm_since = NULL",
        r"UPDATE pgqueue.alert_evaluations .*?;",
    ):
        twin, count = re.subn(pattern, "", twin, flags=re.DOTALL)
        changes += count
    assert changes == 3
    call = re.sub(rb"evaluate_alerts", b"evaluate_twin", statement("evaluate_alerts"))
    parameters = {"evaluator": "rig", "mode": "leader", "revision": head(), "sinks": ["log"], "pause_s": 0}
    conn.execute(twin)
    conn.execute("DROP INDEX pgqueue.alert_events_open_idx")
    try:
        with database.connect(autocommit=False) as first:
            assert len(first.execute(call, parameters).fetchall()) == 1
            assert len(conn.execute(call, parameters).fetchall()) == 1
            first.commit()
        assert [event["state"] for event in events(conn)] == ["firing", "firing"]
    finally:
        conn.execute("DELETE FROM pgqueue.alert_events")
        conn.execute(
            "CREATE UNIQUE INDEX alert_events_open_idx ON pgqueue.alert_events (rule_id, key) WHERE resolved_at IS NULL"
        )
        conn.execute("DROP FUNCTION pgqueue.evaluate_twin")


def test_a_new_leader_goes_on_with_what_is_pending(conn: psycopg.Connection[Any]) -> None:
    rule = only(conn, "no_workers")
    conn.execute("UPDATE pgqueue.alert_rules SET for_s = 100")
    enqueue(conn, queue="q")
    evaluate(conn, "leader", evaluator="first")
    conn.execute("UPDATE pgqueue.alert_events SET pending_since = pending_since - interval '90 s'")
    assert evaluate(conn, "leader", evaluator="second") == []
    conn.execute("UPDATE pgqueue.alert_events SET pending_since = pending_since - interval '20 s'")
    assert evaluate(conn, "leader", evaluator="third") == [(rule, "q", "firing")]
    assert events(conn)[0]["evaluator"] == "first"


def test_workers_evaluate_only_once_nobody_has_for_long_also_when_the_clock_is_set_back(
    conn: psycopg.Connection[Any],
) -> None:
    only(conn, "no_workers")
    enqueue(conn, queue="q")

    def last(ago: str) -> None:
        conn.execute(
            "UPDATE pgqueue.alert_evaluations SET evaluated_at = clock_timestamp() - %s::interval", [ago]
        )

    last("50 s")
    assert evaluate(conn, "standin", pause_s=60) == []
    last("70 s")
    assert len(evaluate(conn, "standin", pause_s=60)) == 1
    row = conn.execute(
        "SELECT mode, evaluated_at > clock_timestamp() - interval '20 s' FROM pgqueue.alert_evaluations"
    ).fetchone()
    assert row == ("standin", True)
    conn.execute("DELETE FROM pgqueue.alert_events")
    last("-1 hour")
    assert len(evaluate(conn, "standin", pause_s=60)) == 1


@pytest.fixture
def fired(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    only(conn, "no_workers")
    enqueue(conn, queue="q")
    assert len(evaluate(conn)) == 1
    return conn


def claim(conn: psycopg.Connection[Any], *sinks: str) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        parameters = {"sinks": list(sinks), "lease_s": 30}
        return cursor.execute(statement("claim_alert_deliveries"), parameters).fetchall()


def test_a_delivery_is_taken_by_one_and_again_after_its_taker_died(
    fired: psycopg.Connection[Any],
) -> None:
    (taken,) = claim(fired, "log")
    assert (taken["rule"], taken["key"], taken["transition"], taken["tries"]) == (
        "NoWorkers",
        "q",
        "firing",
        1,
    )
    assert claim(fired, "log") == []
    fired.execute("UPDATE pgqueue.alert_deliveries SET next_at = next_at - interval '31 s'")
    assert {row["tries"] for row in claim(fired, "log")} == {2}
    assert [row["sink"] for row in claim(fired, "notify")] == ["notify"]


def test_how_telling_went_is_recorded(fired: psycopg.Connection[Any]) -> None:
    (taken,) = claim(fired, "log")
    outcome = {"event_id": taken["event_id"], "transition": "firing", "sink": "log"}

    def record(**more: Any) -> tuple[Any, ...] | None:
        fired.execute(statement("record_alert_deliveries"), {"outcomes": json.dumps([{**outcome, **more}])})
        return fired.execute(
            "SELECT last_error, sent_at IS NULL, next_at > clock_timestamp() FROM pgqueue.alert_deliveries WHERE sink = 'log'"
        ).fetchone()

    assert record(error="answered 500", again_in_s=60) == ("answered 500", True, True)
    assert record(error="answered 500", again_in_s=None) == ("answered 500", True, None)
    assert record(error=None, again_in_s=None) == (None, False, None)


def test_a_silenced_rule_speaks_to_the_log_alone(conn: psycopg.Connection[Any]) -> None:
    only(conn, "no_workers")
    conn.execute("UPDATE pgqueue.alert_rules SET silenced_until = clock_timestamp() + interval '1 hour'")
    enqueue(conn, queue="q")
    evaluate(conn)
    assert [row["sink"] for row in claim(conn, "log", "notify", "webhook")] == ["log"]


def test_incidents_are_forgotten_after_90_days_but_open_ones_are_not(
    fired: psycopg.Connection[Any],
) -> None:
    fired.execute("UPDATE pgqueue.alert_events SET fired_at = fired_at - interval '91 days'")
    evaluate(fired)
    assert len(events(fired)) == 1
    fired.execute(NO_JOBS)
    evaluate(fired)
    evaluate(fired)
    assert events(fired) == []
    assert fired.execute("SELECT count(*) FROM pgqueue.alert_deliveries").fetchone() == (0,)
