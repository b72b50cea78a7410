"""Every verb of the command line, from its own table: what it answers, its exit codes, its bad input.

The table is held against the command line itself: a verb without an entry, or with half of one, fails.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pytest
import typer
from rig.database import ROOT, Database

from pgqueue import App, Reject
from pgqueue.cli.main import app as command_line
from pgqueue.cli.main import main


class Case(NamedTuple):
    """A line, its exit code, and what stands in its answer or in its talk."""

    line: str
    code: int
    words: str


class Elsewhere(NamedTuple):
    """A verb that runs until it is told to stop: where its answer is tested."""

    file: str
    test: str


# In this order, on one database. {job}, {job2}: waiting jobs; {dead}, {dead2}: dead letters; {message}: one given up.
VERBS: Final[dict[str, list[Case | Elsewhere]]] = {
    "version": [Case("version -o json", 0, '"schema": "pgqueue_'), Case("version 7", 2, "unexpected extra argument")],
    "db upgrade": [Case("db upgrade", 0, "nothing to do"), Case("db upgrade nosuch", 2, "not one this release knows")],
    "db downgrade": [Case("db downgrade base --dry-run", 0, "would downgrade"), Case("db downgrade nosuch", 2, "not one this release knows")],
    "db current": [Case("db current", 0, "pgqueue_"), Case("db current x", 2, "unexpected extra argument")],
    "db check": [Case("db check", 0, "at_head"), Case("db check x", 2, "unexpected extra argument")],
    "db sql": [Case("db sql", 0, "CREATE TABLE pgqueue.jobs"), Case("db sql nosuch", 2, "not one this release knows")],
    "db roles": [Case("db roles --dry-run --apply", 0, "exactly its rights"), Case("db roles x", 2, "unexpected extra argument")],
    "enqueue": [Case("enqueue later {{}} -o name", 0, "job/"), Case("enqueue later [1]", 2, "not a JSON object")],
    "jobs list": [Case("jobs list state:scheduled -o name", 0, "job/{job}"), Case("jobs list colour:red", 2, "unknown field")],
    "jobs get": [Case("jobs get {job} -o json", 0, '"state": "scheduled"'), Case("jobs get 999999", 3, "not found"), Case("jobs get x", 2, "positive integer")],
    "jobs timeline": [Case("jobs timeline {job}", 0, "enqueued"), Case("jobs timeline 999999", 3, "not found")],
    "jobs explain": [Case("jobs explain {job}", 0, "scheduled|starts|due"), Case("jobs explain x", 2, "positive integer")],
    "jobs tail": [Case("jobs tail --for 0s -o name", 0, "job/{dead}"), Case("jobs tail --every 0s", 2, "every")],
    "jobs wait": [Case("jobs wait {job} --timeout 10ms", 1, "still scheduled"), Case("jobs wait {job} --timeout 5", 2, "timeout"), Case("jobs wait {ended}", 0, "null")],
    "jobs reschedule": [Case("jobs reschedule {job} --delay 2h", 0, "rescheduled"), Case("jobs reschedule {job}", 2, "run_at"), Case("jobs reschedule 999999 --delay 1h", 3, "unknown")],
    "jobs run-now": [Case("jobs run-now {job}", 0, "freed"), Case("jobs run-now", 2, "none given")],
    "jobs retry": [Case("jobs retry {job} -o json", 0, '"ready"'), Case("jobs retry --queue nosuch --yes", 3, "nothing matches")],
    "jobs cancel": [Case("jobs cancel {job}", 0, "cancelled"), Case("jobs cancel {job}", 4, "ended"), Case("jobs cancel {job2} --all", 2, "together with a filter")],
    "dlq list": [Case("dlq list -o name", 0, "job/{dead}"), Case("dlq list --since 5", 2, "since")],
    "dlq groups": [Case("dlq groups", 0, "bad"), Case("dlq groups --limit 0", 2, "limit")],
    "dlq get": [Case("dlq get {dead} -o json", 0, '"reason": "rejected"'), Case("dlq get 999999", 3, "not found")],
    "dlq export": [Case("dlq export", 0, "dead letters"), Case("dlq export -f colour:red", 2, "unknown field")],
    "dlq redrive": [Case("dlq redrive {dead} -o json", 0, '"redriven_as"'), Case("dlq redrive {dead} --priority 10", 2, "priority")],
    "dlq discard": [Case("dlq discard {dead2}", 0, "discarded"), Case("dlq discard {dead2}", 3, "unknown"), Case("dlq discard", 2, "none given")],
    "queues list": [Case("queues list -o name", 0, "queue/mail"), Case("queues list x", 2, "unexpected extra argument")],
    "queues get": [Case("queues get mail -o json", 0, '"tier": "standard"'), Case("queues get nosuch", 3, "not known")],
    "queues set": [Case("queues set mail --sla 5s -o json", 0, '"changed"'), Case("queues set mail --sla 5", 2, "sla")],
    "queues keep": [Case("queues keep mail --days 3", 0, "kept for 3 days"), Case("queues keep mail", 2, "--days or --as-all")],
    "queues pause": [Case("queues pause mail --reason deploy", 0, "is paused"), Case("queues pause mail --for 5", 2, "for")],
    "queues resume": [Case("queues resume mail", 0, "is running"), Case("queues resume", 2, "QUEUE")],
    "queues drain": [Case("queues drain fine --timeout 1s", 0, "is drained"), Case("queues drain mail --timeout 1s", 4, "no worker serves it"), Case("queues drain mail --timeout 5", 2, "timeout")],
    "workers list": [Case("workers list --ended -o json", 0, '"status": "stopped"'), Case("workers list --limit 0", 2, "limit")],
    "workers drain": [Case("workers drain 00000000", 3, "worker"), Case("workers drain {worker} --dry-run", 0, "would drain"), Case("workers drain", 2, "WORKER")],
    "schedules put": [Case("schedules put nightly later --cron '0 3 * * *'", 0, "created"), Case("schedules put nightly later --cron '61 3 * * *'", 2, "61")],
    "schedules list": [Case("schedules list -o name", 0, "schedule/nightly"), Case("schedules list x", 2, "unexpected extra argument")],
    "schedules get": [Case("schedules get nightly -o json", 0, '"cron": "0 3'), Case("schedules get nosuch", 3, "nosuch")],
    "schedules next": [Case("schedules next nightly -n 2", 0, "03:00"), Case("schedules next nightly -n 0", 2, "count")],
    "schedules preview": [Case("schedules preview @daily --tz Europe/Berlin", 0, "Europe/Berlin"), Case("schedules preview @daily --tz Mars", 2, "Mars|zone")],
    "schedules run": [Case("schedules run nightly -o name", 0, "job/"), Case("schedules run nosuch", 3, "nosuch")],
    "schedules log": [Case("schedules log nightly", 0, "manual"), Case("schedules log nightly --limit 0", 2, "limit")],
    "schedules pause": [Case("schedules pause nightly", 0, "is paused"), Case("schedules pause nosuch", 3, "nosuch")],
    "schedules resume": [Case("schedules resume nightly", 0, "fires again"), Case("schedules resume nosuch", 3, "nosuch")],
    "schedules delete": [Case("schedules delete nightly", 0, "is deleted"), Case("schedules delete nightly", 3, "nightly")],
    "outbox status": [Case("outbox status -o json", 0, '"topic": "ride.done"'), Case("outbox status x", 2, "unexpected extra argument")],
    "outbox subscriptions": [Case("outbox subscriptions -o json", 0, '"pattern": "ride.'), Case("outbox subscriptions x", 2, "unexpected extra argument")],
    "outbox list": [Case("outbox list -o name", 0, "message/"), Case("outbox list --state nosuch", 2, "state")],
    "outbox replay": [Case("outbox replay {message}", 4, "waiting"), Case("outbox replay 999999", 3, "unknown"), Case("outbox replay", 2, "none given"), Elsewhere("tests/rooms/test_outbox_cli.py", "test_a_dead_message_is_seen_replayed_and_skipped")],
    "outbox skip": [Case("outbox skip {message}", 0, "skipped"), Case("outbox skip", 2, "none given")],
    "alerts check": [Case("alerts check", 1, "DeadLettersGrowing"), Case("alerts check x", 2, "unexpected extra argument")],
    "alerts list": [Case("alerts list -o json", 0, r"\["), Case("alerts list --limit 0", 2, "limit")],
    "alerts rules": [Case("alerts rules -o name", 0, "rule/NoWorkers"), Case("alerts rules x", 2, "unexpected extra argument")],
    "alerts silence": [Case("alerts silence NoWorkers --for 1h --reason deploy", 0, "is silent for 1h"), Case("alerts silence NoWorkers --reason deploy", 2, "--for or --off"), Case("alerts silence Nosuch --off --reason x", 3, "Nosuch")],
    "alerts set": [Case("alerts set NoWorkers --for 3m", 0, "changed"), Case("alerts set Nosuch --for 3m", 3, "Nosuch")],
    "alerts ack": [Case("alerts ack 7 --reason x --dry-run", 0, "would acknowledge"), Case("alerts ack 999999 --reason x", 3, "999999"), Case("alerts ack 7", 2, "reason")],
    "audit list": [Case("audit list action:pause", 0, "deploy"), Case("audit list colour:red", 2, "unknown field")],
    "stats": [Case("stats", 0, "slots busy"), Case("stats -w 0", 2, "watch")],
    "top": [Case("top", 0, "slots busy"), Case("top --every 0s", 2, "every")],
    "doctor": [Case("doctor -o json", 1, '"check": "fsync"'), Case("doctor -A nosuch:app", 78, "no module nosuch"), Elsewhere("tests/rooms/test_cli_doctor.py", "test_exit_codes_of_doctor")],
    "health": [Case("health --queue fine", 0, "healthy"), Case("health --max-lag 5", 2, "max_lag"), Case("health --port 1", 1, "no answer")],
    "worker": [Case("worker -A nosuch:app", 78, "no module nosuch"), Case("worker -A nosuch:app --processes 0", 2, "processes"), Elsewhere("tests/rooms/test_cli_process.py", "test_a_worker_drains_and_says_so")],
    "scheduler": [Case("scheduler -A nosuch:app", 78, "no module nosuch"), Case("scheduler", 2, "--app"), Elsewhere("tests/rooms/test_scheduler_cli.py", "test_a_scheduler_process_leads_fires_and_leaves_at_sigterm")],
    "relay": [Case("relay -A nosuch:app", 78, "no module nosuch"), Case("relay", 2, "--app"), Elsewhere("tests/rooms/test_outbox_cli.py", "test_a_relay_delivers_until_it_is_told_to_stop")],
    "all": [Case("all", 2, "--app"), Elsewhere("tests/rooms/test_cli_group.py", "test_all_runs_jobs_schedules_and_messages_until_it_is_told_to_stop")],
    "exporter": [Case("exporter --port 70000", 2, "port"), Elsewhere("tests/rooms/test_observe.py", "test_a_reader_may_run_the_exporter")],
    "bench": [Case("bench --workload nosuch", 2, "no workload nosuch"), Elsewhere("tests/rooms/test_bench.py", "test_the_command_prints_a_table_saves_everything_and_compares")],
    "demo": [Case("demo --duration 0", 2, "duration"), Elsewhere("tests/journeys/test_demo.py", "test_it_holds_its_proof_while_workers_are_killed")],
}  # fmt: skip

LOOKS: Final = frozenset(
    "version stats doctor top health exporter bench demo worker scheduler relay all".split()
) | {
    *("jobs list", "jobs get", "jobs timeline", "jobs explain", "jobs tail", "jobs wait", "dlq list", "dlq groups"),
    *("dlq get", "dlq export", "queues list", "queues get", "queues drain", "workers list", "schedules list"),
    *("schedules get", "schedules next", "schedules preview", "schedules log", "outbox status", "outbox list"),
    *("outbox subscriptions", "alerts check", "alerts list", "alerts rules", "audit list"),
    *("db current", "db check", "db sql"),
}  # fmt: skip
"""Verbs that change nothing which a person would want to try first; every other one has --dry-run."""

BAD: Final = frozenset({2, 3, 78})


def verbs() -> Iterator[tuple[str, Any]]:
    """Every verb of the command line with its command."""

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        below = getattr(command, "commands", None)
        if below is None:
            yield " ".join(path), command
            return
        for name, one in below.items():
            yield from walk(one, (*path, name))

    return walk(typer.main.get_command(command_line), ())


@pytest.fixture
def places(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int | str]]:
    """The objects that the table names."""
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", database.dsn)
    monkeypatch.setenv("PGQUEUE_ACTOR", "olga")
    app = App(database.dsn)

    @app.task(name="bad", queue="mail")
    def bad() -> None:
        raise Reject("no")

    @app.task(name="fine", queue="fine")
    def fine() -> None:
        return None

    dead, dead2, ended = bad.enqueue(None), bad.enqueue(None), fine.enqueue(None)
    assert app.worker("mail,fine", concurrency=1, drain=True).run() == 0
    database.one("SELECT pgqueue.subscribe('ride.*', 'fine')")
    yield {
        "dead": dead.id,
        "dead2": dead2.id,
        "ended": ended.id,
        "job": app.enqueue("later", {}, delay="1h").id,
        "job2": app.enqueue("later", {}, delay="1h").id,
        "message": app.outbox.emit(None, "ride.done", {}),
        "worker": database.one("SELECT left(id::text, 8) FROM pgqueue.workers"),
    }
    app.close()


def test_the_table_has_every_verb_whole() -> None:
    known = dict(verbs())
    assert set(VERBS) == set(known), "a verb without an entry in this table, or an entry without a verb"
    for verb, cases in VERBS.items():
        codes = {case.code for case in cases if isinstance(case, Case)}
        assert codes & BAD, f"{verb}: no bad input"
        elsewhere = [case for case in cases if isinstance(case, Elsewhere)]
        assert codes - BAD or elsewhere, f"{verb}: nothing that works"
        for one in elsewhere:
            assert f"def {one.test}(" in (ROOT / one.file).read_text(), one


def test_what_changes_something_can_be_tried_first_and_deeds_on_many_are_asked_for() -> None:
    for verb, command in verbs():
        options = {parameter.name for parameter in command.params}
        assert command.help, f"{verb}: says nothing of itself"
        assert ("dry_run" in options) == (verb not in LOOKS or verb == "doctor"), verb
        if "everything" in options:
            assert options >= {"ids", "dry_run", "yes", "reason", "rate"}, verb
        if verb.endswith(" list"):
            assert "watch" in options, verb


def test_every_line_of_the_table_answers_as_it_says(
    places: dict[str, int | str], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong: list[str] = []
    for case in (case for cases in VERBS.values() for case in cases if isinstance(case, Case)):
        capsys.readouterr()
        code = main(shlex.split(case.line.format(**places)))
        out, err = capsys.readouterr()
        is_told = code not in BAD or code == 3 or (out == "" and err.startswith("pgqueue"))
        is_right = code == case.code and re.search(case.words.format(**places), out + err)
        if not (is_right and is_told) or "Traceback" in err:
            wrong.append(
                f"{case.line} -> {code}, not {case.code} with {case.words!r}\n{out[:500]}\n{err[:500]}"
            )
    assert wrong == [], "\n".join(wrong)
