"""`pgqueue alerts …`: what fires, evaluate now, acknowledge, silence, and the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgqueue.cli.bulk import DryRun, Limit, Reason
from pgqueue.cli.complete import rule_names
from pgqueue.cli.session import Session, say, verb

if TYPE_CHECKING:
    from pgqueue.control.alerts import Alerts

COLUMNS: Final = (
    "id",
    "rule",
    "key",
    "state",
    "severity",
    "value",
    "threshold",
    "fired_at",
    "resolved_at",
    "acked_by",
    "silenced",
    "runbook_url",
)
RULE_COLUMNS: Final = (
    "name",
    "kind",
    "threshold",
    "for_s",
    "resolve_s",
    "severity",
    "sinks",
    "enabled",
    "silenced_until",
    "firing",
    "runbook_url",
)
EVALUATION_LATE_S: Final = 120.0

app = typer.Typer(name="alerts", help="Alerts: what is wrong, and who is told.", no_args_is_help=True)

RuleName = Annotated[
    str,
    typer.Argument(
        metavar="RULE",
        help="Rule name.",
        parser=lambda text: text.removeprefix("rule/"),
        autocompletion=rule_names,
    ),
]
AlertId = Annotated[
    int,
    typer.Argument(metavar="ID", help="Incident id.", parser=lambda text: int(text.removeprefix("alert/"))),
]
Why = Annotated[str, typer.Option("--reason", help="Why; it stands in the audit.")]


def register(main: typer.Typer) -> None:
    """Hang the verbs into the command line."""
    main.add_typer(app)


def alerts_of(session: Session) -> Alerts:
    """Questions and deeds about alerts."""
    from pgqueue.control.alerts import Alerts

    return Alerts(session.desk)


@verb(app, "list", watch=True)
def list_alerts(
    session: Session,
    *,
    history: Annotated[bool, typer.Option("--history", help="Also those that are resolved.")] = False,
    limit: Limit = 50,
) -> None:
    """Open incidents, the firing ones first."""
    alerts = alerts_of(session)
    session.printer.rows(alerts.list(history=history, limit=limit), COLUMNS, name="id", kind="alert")
    evaluation = alerts.evaluation()
    if evaluation.age_s is None or evaluation.age_s > EVALUATION_LATE_S:
        age = "never" if evaluation.age_s is None else f"{evaluation.age_s:.0f} s ago"
        say(
            f"alerts were evaluated {age}: start a scheduler or a worker, or evaluate with `pgqueue alerts check`"
        )


@verb(app)
def check(session: Session) -> int:
    """Evaluate all rules now; exit code 1 if anything fires. For cron and other monitors."""
    firing = alerts_of(session).check()
    session.printer.rows(firing, COLUMNS, name="id", kind="alert")
    return 1 if firing else 0


@verb(app)
def rules(session: Session) -> None:
    """Every rule with its numbers."""
    rows = alerts_of(session).rules()
    session.printer.rows(rows, RULE_COLUMNS, name="name", kind="rule")
    for row in rows:
        if row.last_error is not None:
            say(f"rule {row.name}: cannot be evaluated: {row.last_error}")


@verb(app)
def ack(session: Session, *, alert: AlertId, reason: Why, dry_run: DryRun = False) -> None:
    """Say that you see to an open incident."""
    if dry_run:
        say(f"would acknowledge alert {alert} in {session.desk.place}")
        return
    say(f"acknowledge alert {alert} in {session.desk.place} ({session.desk.environment})")
    alerts_of(session).ack(alert, reason=reason)
    say(f"alert {alert} is acknowledged")


@verb(app)
def silence(
    session: Session,
    *,
    rule: RuleName,
    reason: Why,
    lasting: Annotated[str | None, typer.Option("--for", help="How long: 1h.", show_default=False)] = None,
    off: Annotated[bool, typer.Option("--off", help="End a silence.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Tell nobody but the log of a rule's incidents for a while."""
    from pgqueue.core.durations import parse_duration
    from pgqueue.errors import InvalidOption

    if off == (lasting is not None):
        raise InvalidOption("for", "give either --for or --off")
    for_s = None if lasting is None else parse_duration(lasting, field="for", minimum_s=1)
    alerts = alerts_of(session)
    if dry_run:
        say(f"would {'end the silence of' if off else 'silence'} rule {alerts.rule(rule).name}")
        return
    say(f"silence rule {rule} in {session.desk.place} ({session.desk.environment})")
    alerts.silence(rule, for_s=for_s, reason=reason)
    say(f"rule {rule} speaks again" if off else f"rule {rule} is silent for {lasting}")


@verb(app, "set")
def set_rule(
    session: Session,
    *,
    rule: RuleName,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="The number to be exceeded.", show_default=False)
    ] = None,
    lasting: Annotated[
        str | None,
        typer.Option("--for", help="For how long, before it fires: 2m.", show_default=False),
    ] = None,
    resolve: Annotated[
        str | None, typer.Option("--resolve", help="Calm before it is resolved: 1m.", show_default=False)
    ] = None,
    severity: Annotated[
        str | None, typer.Option("--severity", help="page, warn, info or tier.", show_default=False)
    ] = None,
    sinks: Annotated[
        str | None, typer.Option("--sinks", help="Of log, notify, webhook.", show_default=False)
    ] = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Whether it may fire.", show_default=False)
    ] = None,
    reason: Reason = None,
    dry_run: DryRun = False,
) -> None:
    """Change a rule. What is not named stays as it is."""
    from pgqueue.core.durations import parse_duration

    alerts = alerts_of(session)
    if dry_run:
        say(f"would change rule {alerts.rule(rule).name} in {session.desk.place}")
        return
    say(f"set rule {rule} in {session.desk.place} ({session.desk.environment})")
    change = alerts.set(
        rule,
        threshold=threshold,
        for_s=None if lasting is None else parse_duration(lasting, field="for"),
        resolve_s=None if resolve is None else parse_duration(resolve, field="resolve"),
        severity=severity,
        sinks=None if sinks is None else [word.strip() for word in sinks.split(",") if word.strip()],
        enabled=enabled,
        reason=reason,
    )
    session.printer.one({"rule": rule, "change": change}, name="rule", kind="rule")
