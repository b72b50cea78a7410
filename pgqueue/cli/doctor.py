"""`pgqueue doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pgqueue.cli.jobs import desk
from pgqueue.cli.session import Session, verb


def register(main: typer.Typer) -> None:
    """Hang the verb into the command line."""
    verb(main)(doctor)


def doctor(
    session: Session,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="A warning counts as a failure.")] = False,
) -> int:
    """Look over server, schema, workers and queues; each finding says how to mend it. Exit code 1 on FAIL."""
    from pgqueue.control.doctor import examine

    findings = examine(desk(session))
    order = {"FAIL": 0, "WARN": 1, "PASS": 2}
    findings.sort(key=lambda finding: order[finding.verdict])
    session.printer.rows(
        [asdict(f) for f in findings], ("verdict", "check", "message", "fix"), name="check", kind="check"
    )
    worst = findings[0].verdict
    return 1 if worst == "FAIL" or (strict and worst == "WARN") else 0
