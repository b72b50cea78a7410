"""`pgqueue doctor` names queues without a promise, forgotten pauses, and alerts that nobody evaluates or hears."""

from __future__ import annotations

import psycopg
import pytest
from rig.database import Database

from pgqueue.control.doctor_watch import watch
from pgqueue.control.findings import Finding
from pgqueue.storage.connect import CLI, connect


def look(database: Database) -> list[Finding]:
    with connect(database.dsn, CLI) as conn:
        return list(watch(conn))


def test_nothing_is_wrong_with_a_new_database(any_database: Database) -> None:
    findings = look(any_database)
    assert {finding.verdict for finding in findings} == {"PASS"}
    assert {finding.check for finding in findings} == {"promises", "alerts", "notifications"}


@pytest.mark.parametrize(
    ("defect", "check", "words", "fix"),
    [
        (
            "INSERT INTO pgqueue.queues (name) VALUES ('mail')",
            "promises",
            "queue mail: has no SLA",
            "pgqueue queues set mail --sla 5s",
        ),
        (
            "INSERT INTO pgqueue.queues (name, sla_s, tier) VALUES ('pay', 5, 'critical')",
            "promises",
            "has no owner",
            "--owner TEAM",
        ),
        (
            "INSERT INTO pgqueue.queues (name, sla_s, paused_at, paused_by) VALUES ('mail', 5, now() - interval '2 days', 'olga')",
            "promises",
            "more than a day by olga",
            "pgqueue queues resume mail",
        ),
        (
            "UPDATE pgqueue.alert_evaluations SET evaluated_at = now() - interval '10 minutes'",
            "alerts",
            "alerts were evaluated 600 s ago",
            "alerts check",
        ),
        (
            (
                "INSERT INTO pgqueue.workers (id, lease_s, pid, host, version, queues, started_at)"
                " VALUES (gen_random_uuid(), 600, 1, 'h', '1', '{}', now() - interval '10 minutes')"
            ),
            "alerts",
            "evaluated never",
            "start a scheduler",
        ),
        (
            "UPDATE pgqueue.alert_rules SET last_error = 'x' WHERE name = 'NoWorkers'",
            "alerts",
            "rule NoWorkers cannot",
            "alerts rules",
        ),
        (
            "DELETE FROM pgqueue.alert_rules WHERE name = 'NoWorkers'",
            "alerts",
            "missing: NoWorkers",
            "db upgrade",
        ),
        (
            (
                "INSERT INTO pgqueue.alert_events (rule_id, key, state, severity, value, threshold, pending_since, fired_at, evaluator)"
                " SELECT id, 'q', 'firing', 'page', 1, 0, now(), now(), 'x' FROM pgqueue.alert_rules WHERE name = 'NoWorkers';"
                " INSERT INTO pgqueue.alert_deliveries (event_id, transition, sink, tries, last_error)"
                " SELECT id, 'firing', 'webhook', 6, 'answered 500' FROM pgqueue.alert_events"
            ),
            "alerts",
            "1 alerts of the last day",
            "alert_webhook_url",
        ),
    ],
)
def test_each_staged_defect_is_named_with_its_fix(
    database: Database, defect: str, check: str, words: str, fix: str
) -> None:
    conn: psycopg.Connection = database.connect()
    conn.execute(defect.encode())
    bad = [finding for finding in look(database) if finding.verdict != "PASS"]
    assert [finding.check for finding in bad] == [check]
    assert words in bad[0].message
    assert fix in bad[0].fix
