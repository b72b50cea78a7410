"""`pgqueue stats`, `doctor`, `version`: how the whole is doing."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgqueue.cli.bulk import DryRun, Reason, Yes
from pgqueue.cli.out import mapping_of
from pgqueue.cli.queues import COLUMNS, queues_of
from pgqueue.cli.session import Output, Session, say, verb
from pgqueue.errors import InvalidOption, SchemaMismatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgqueue.control.findings import Finding
    from pgqueue.control.rows import Fleet, QueueHealth, RecentWork

WORK_COLUMNS: Final = (
    *("queue", "task", "per_minute", "succeeded", "retried", "dead", "other"),
    *("wait_p50_s", "wait_p95_s", "wait_p99_s", "run_p50_s", "run_p95_s", "run_p99_s", "run_max_s"),
)
_ORDER: Final = {"FAIL": 0, "WARN": 1, "PASS": 2}


def register(main: typer.Typer) -> None:
    """Hang the verbs into the command line."""
    for one in (stats, doctor, version):
        verb(main)(one)


def stats(
    session: Session,
    *,
    watch: Annotated[
        str | None,
        typer.Option(
            "-w",
            "--watch",
            metavar="EVERY",
            help="Again and again: 2s; a bare number is seconds.",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[int, typer.Option("--minutes", help="How far back throughput and times look.")] = 5,
) -> None:
    """The fleet and its queues on one screen, what is wrong first; then what ended lately and how long it took."""
    from pgqueue.control.stats import recent_work
    from pgqueue.core.durations import parse_duration

    every_s = None
    if watch is not None:
        spoken = float(watch) if watch.replace(".", "", 1).isdecimal() else watch
        every_s = parse_duration(spoken, field="watch", minimum_s=0.1)
    queues = queues_of(session)
    before: Fleet | None = None
    while True:
        fleet, rows = queues.fleet(), queues.list()
        work = recent_work(session.desk, minutes)
        if every_s is not None:
            session.printer.clear()
        if session.output is Output.TABLE:
            session.printer.line(_headline(fleet, before))
            session.printer.rows(sorted(rows, key=_wrong_first), COLUMNS, name="queue", kind="queue")
            for row in rows:
                if not row.known:
                    session.printer.line(f"queue {row.queue}: jobs wait and no worker ever served it")
            if work:
                session.printer.line("")
                session.printer.line(
                    f"the {minutes} minutes up to {work[0].until:%H:%M %Z}, times in s and about"
                )
                session.printer.rows(work, WORK_COLUMNS, name="queue", kind="work")
        else:
            told = [_with_work(row, work) for row in sorted(rows, key=_wrong_first)]
            session.printer.rows(told, COLUMNS, name="queue", kind="queue")
        session.printer.flush()
        if every_s is None:
            return
        before = fleet
        time.sleep(every_s)


def doctor(
    session: Session,
    *,
    app: Annotated[
        str | None,
        typer.Option(
            "-A",
            "--app",
            metavar="MODULE:APP",
            help="Compare the tasks it registers with those that are named.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A warning counts as a failure.")] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what can be mended safely, then look again.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    reason: Reason = None,
) -> int:
    """Look over server, schema, workers and queues; each finding says how to mend it. Exit code 1 on FAIL."""
    from pgqueue.control.doctor import SCHEMA_CHECK, examine

    tasks = None
    if app is not None:
        from pgqueue.app import load_app

        tasks = set(load_app(app).tasks)
    findings = examine(session.desk, settings=session.settings, tasks=tasks)
    if fix and _mend(session, findings, dry_run=dry_run, yes=yes, reason=reason):
        findings = examine(session.desk, settings=session.settings, tasks=tasks)
    findings.sort(key=lambda finding: _ORDER[finding.verdict])
    session.printer.rows(findings, ("verdict", "check", "message", "fix"), name="check", kind="check")
    verdicts = {finding.verdict for finding in findings}
    if any(finding.check == SCHEMA_CHECK and finding.verdict == "FAIL" for finding in findings):
        return SchemaMismatch.exit_code
    return 1 if "FAIL" in verdicts or (strict and "WARN" in verdicts) else 0


def _mend(
    session: Session, findings: Sequence[Finding], *, dry_run: bool, yes: bool, reason: str | None
) -> bool:
    """Mend what is marked safe; whether anything was done."""
    from pgqueue.control.doctor_fix import mend, mendable

    todo = mendable(findings)
    if not todo:
        say("nothing that is wrong can be mended safely; each finding says what to do")
        return False
    for check, words in todo.items():
        say(f"{'would mend' if dry_run else 'mend'} {check} in {session.desk.place}: {words}")
    if dry_run:
        return False
    session.desk.need_reason(reason)
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidOption("--yes", f"needed to mend {', '.join(todo)} where nobody can be asked")
        typer.confirm(f"mend {', '.join(todo)}?", abort=True, err=True)
    for check in todo:
        mend(session.desk, check, reason)
    return True


def version(session: Session) -> None:
    """The versions of pgqueue, Python and the schema this code expects."""
    import platform

    from pgqueue.storage.known import head
    from pgqueue.version import VERSION

    session.printer.one(
        {"pgqueue": VERSION, "python": platform.python_version(), "schema": head()},
        name="pgqueue",
        kind="version",
    )


def _with_work(row: QueueHealth, work: Sequence[RecentWork]) -> Mapping[str, object]:
    """A queue with what ended in it lately: `recent` in all (None: nothing), `tasks` one by one."""
    mine = [mapping_of(one) for one in work if one.queue == row.queue]
    return {
        **mapping_of(row),
        "recent": next((one for one in mine if one["task"] is None), None),
        "tasks": [one for one in mine if one["task"] is not None],
    }


def _headline(fleet: Fleet, before: Fleet | None) -> str:
    rate = ""
    if before is not None and fleet.clock > before.clock:
        seconds = (fleet.clock - before.clock).total_seconds()
        rate = f", {max(0, fleet.settled - before.settled) / seconds:.0f} settled/s"
    return (
        f"{fleet.workers} workers, {fleet.busy} of {fleet.slots} slots busy, {fleet.settled} settled,"
        f" {fleet.failed} failed attempts{rate}"
    )


def _wrong_first(row: QueueHealth) -> tuple[bool, float, int, str]:
    return (row.due == 0 or row.workers_live > 0, -row.lag_s, -row.dead_waiting, row.queue)
