"""Filters against real rows: each term finds what it means, alone and negated, and bulk deeds act on nothing else."""

from __future__ import annotations

import json

import pytest
from rig.database import Database

from pgqueue.cli.main import main
from pgqueue.control.audit import Audit
from pgqueue.control.dead_letters import DeadFilter, DeadLetters
from pgqueue.control.desk import Desk
from pgqueue.control.jobs import Jobs
from pgqueue.core.filter import parse_filter

pytestmark = pytest.mark.proves("I39")

ROWS = """
SELECT pgqueue.put_job('capture.card', '{"ride_id": 12, "who": {"name": "o''hara"}, "list": [1, 2], "text": "12"}', 'payments',
  priority => 1, tags => ARRAY['x', 'y'], idempotency_key => 'ride:7:capture', headers => '{"traceparent": "00-4bf92f-01-01"}');
SELECT pgqueue.put_job('mail', '{"ride_id": "12"}', 'mail', tags => ARRAY['y']);
SELECT pgqueue.put_job('mail', '{"ride_id": null, "ok": true, "price": 1.5}', 'mail', delay => interval '1 h');
INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, error_type, error_message, error_fingerprint, attempts,
    max_attempts, first_failed_at, failed_at, created_at, job_created_at)
  VALUES (4, 'payments', 'capture.card', '{"ride_id": 9}', 5, 'max_retries', 'BankError', 'Card DECLINED: 50%_off', 'f1', 6, 6, now(), now(),
    now() - interval '2 h', now() - interval '3 h');
SELECT setval('pgqueue.job_seq', 10);
"""


@pytest.fixture
def rows(database: Database) -> Database:
    database.connect().execute(ROWS)
    return database


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", {1, 2, 3}),
        ("state:*", {1, 2, 3, 4}),
        ("state:dead", {4}),
        ("state:* queue:payments", {1, 4}),
        ("state:* -queue:payments", {2, 3}),
        ("state:* queue:payments,mail", {1, 2, 3, 4}),
        ("task:capture*", {1}),
        ("task:capture", set()),
        ("state:* attempts:>3", {4}),
        ("state:* attempts:6..9", {4}),
        ("priority:<=1", {1}),
        ("state:* age:>1h", {4}),
        ("state:* age:<1h", {1, 2, 3}),
        ("state:* since:-1h", {1, 2, 3}),
        ("state:* until:-1h", {4}),
        ("state:* since:2020-01-01T00:00Z until:2020-01-02T00:00Z", set()),
        ("args.ride_id:12", {1, 2}),
        ("args.ride_id:>11", {1}),
        ("args.ride_id:null", {3}),
        ("args.ok:true", {3}),
        ("args.price:1.5", {3}),
        ("args.text:12", {1}),
        ("args.list:2", {1}),
        ("-args.ride_id:12", {3}),
        ("-args.nosuch:1", {1, 2, 3}),
        ('args.who.name:"o\'hara"', {1}),
        ("args.who.name:o*", {1}),
        ("args.who.name.deeper:x", set()),
        ("-args.who.name.deeper:x", {1, 2, 3}),
        ("tag:x", {1}),
        ("tag:x tag:y", {1}),
        ("tag:y -tag:x", {2}),
        ("-tag:x", {2, 3}),
        ("key:ride:7:capture", {1}),
        ("key:*", {1}),
        ("-key:*", {2, 3}),
        ("trace:4bf9*", {1}),
        ("state:* error:declined", {4}),
        ('state:* error:"50%_o"', {4}),
        ("state:* error:%", {4}),
        ("state:* error:5_%", set()),
        ("state:* -error:declined", {1, 2, 3}),
        ("state:* error_type:Bank*", {4}),
        ("state:* reason:max_retries", {4}),
        ("wait:<1h", {1, 2}),
        ("2", {2}),
        ("id:1,3", {1, 3}),
        ('queue:"\' OR true --"', set()),
    ],
)
def test_a_filter_finds_what_it_means(rows: Database, text: str, ids: set[int]) -> None:
    assert {row.id for row in Jobs(Desk(rows.dsn, via="cli")).list(where=text)} == ids


def test_filters_mean_the_same_on_both_servers(any_database: Database) -> None:
    any_database.connect().execute(ROWS)
    text = "state:* -queue:mail args.ride_id:>8 error:declined,x -tag:x attempts:1..9 age:>1h key:*"
    jobs = Jobs(Desk(any_database.dsn, via="cli"))
    assert jobs.list(where=text) == []
    assert [row.id for row in jobs.list(where=text.replace(" key:*", ""))] == [4]


def test_dead_letters_are_filtered_by_their_own_age(rows: Database) -> None:
    letters = DeadLetters(Desk(rows.dsn, via="cli"))
    for text, found in (
        ("age:>1h", [4]),
        ("age:<1h", []),
        ("fingerprint:f1 error:declined", [4]),
        ("-args.ride_id:9", []),
    ):
        where = DeadFilter(more=parse_filter(text, "dead letters"))
        assert [row.job_id for row in letters.list(where)] == found
        assert letters.matching(where) == found


def test_bulk_deeds_act_on_what_the_filter_means_and_say_it_first(
    rows: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--dsn", rows.dsn]
    assert main(["jobs", "cancel", "-f", "tag:y -tag:x", "--dry-run", *where]) == 0
    assert capsys.readouterr().err == "would cancel 1 jobs: 2; queues mail 1; tasks mail 1\n"
    assert main(["jobs", "cancel", "-f", "tag:y -tag:x", *where]) == 2
    capsys.readouterr()
    assert main(["jobs", "cancel", "-f", "tag:y -tag:x", "--yes", "--reason", "a test", *where]) == 0
    assert main(["jobs", "cancel", "-f", "tag:nosuch", "--yes", *where]) == 3
    assert main(["jobs", "retry", "-f", "error:declined", "--yes", *where, "-o", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["verdict"], row["of"]) == ("redriven", 4)
    assert main(["dlq", "list", "queue:payments", "error:declined", "--redriven", *where, "-o", "name"]) == 0
    assert capsys.readouterr().out == "job/4\n"
    assert main(["jobs", "list", "sate:dead", *where]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "did you mean state?" in said[0]
    assert said[2].endswith("  ^")

    deeds = Audit(Desk(rows.dsn, via="cli"))
    (summed,) = deeds.list("action:cancel target:jobs*")
    assert (summed.target, summed.reason, summed.matched, summed.changed) == (
        "jobs tag:y -tag:x",
        "a test",
        1,
        1,
    )
    assert [deed.target for deed in deeds.list("reason:TEST action:cancel -target:jobs*")] == ["job 2"]
    assert deeds.list("since:-1h role:postgres action:redrive")
    assert deeds.list("until:-1h") == []
    assert main(["audit", "list", "action:cancel", "--limit", "1", *where]) == 0
    assert "more: --after" in capsys.readouterr().err
