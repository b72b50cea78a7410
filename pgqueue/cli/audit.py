"""`pgqueue audit list` and `pgqueue jobs explain`: who did what, and why nothing happens."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from pgqueue.cli import jobs
from pgqueue.cli.bulk import JobId, Limit, Where, Words, filter_text
from pgqueue.cli.session import Output, Session, say, verb

COLUMNS: Final = ("id", "at", "actor", "db_role", "via", "action", "target", "matched", "changed", "reason")

app = typer.Typer(
    name="audit", help="What people did to jobs, queues and dead letters.", no_args_is_help=True
)


def register(main: typer.Typer) -> None:
    """Hang the verbs into the command line."""
    main.add_typer(app)
    verb(jobs.app, "explain")(explain)


@verb(app, "list", watch=True)
def list_deeds(
    session: Session,
    *,
    words: Words = None,
    where: Where = None,
    limit: Limit = 50,
    after: Annotated[
        int | None,
        typer.Option("--after", help="Go on after this row, as the last page said.", show_default=False),
    ] = None,
) -> None:
    """Deeds, newest first: `pgqueue audit list action:redrive since:-24h`."""
    from pgqueue.control.audit import NEWEST, Audit

    page = Audit(session.desk).page(
        filter_text(where, words), limit=limit, before=NEWEST if after is None else after
    )
    session.printer.rows(page.rows, COLUMNS, name="id", kind="deed")
    if page.before is not None:
        looked = "" if len(page.rows) == limit else "looked at the newest 100,000; "
        say(f"{looked}more: --after {page.before}")


def explain(session: Session, *, job_id: JobId) -> None:
    """Say the one reason why a job is not running, and the command that lifts it."""
    answer = jobs.jobs_of(session).explain(job_id)
    if session.output is Output.TABLE:
        session.printer.line(answer.sentence)
        if answer.command:
            session.printer.line(f"  {answer.command}")
    else:
        session.printer.one(answer, name="job_id")
