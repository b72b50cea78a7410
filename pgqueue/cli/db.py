"""`pgqueue db …`: the schema's revision, asked and changed. A Typer app that cli/main hangs into the command line.

It prints answers to stdout and talk to stderr; errors leave as PgQueueError, whose exit code main uses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import typer

from pgqueue.errors import SchemaMismatch
from pgqueue.settings import load_settings

app = typer.Typer(
    name="db",
    help="The database schema: upgrade it, ask for its revision, write its SQL.",
    no_args_is_help=True,
)


class Output(StrEnum):
    """How an answer is written to stdout."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    NAME = "name"


Dsn = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        help="Database to work on; default: PGQUEUE_DATABASE_URL and the other settings.",
        show_default=False,
    ),
]
Form = Annotated[
    Output | None, typer.Option("-o", "--output", help="Form of the answer.", show_default="table")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")]
Wait = Annotated[float, typer.Option("--lock-wait", min=0, help="Seconds to wait for another migrator.")]


@app.command()
def upgrade(
    ctx: typer.Context,
    *,
    revision: Annotated[str, typer.Argument(help="Revision to go up to.")] = "head",
    dsn: Dsn = None,
    dry_run: DryRun = False,
    lock_wait: Wait = 60.0,
) -> None:
    """Bring the schema up to REVISION. Safe to run from many places at once."""
    from pgqueue.storage import migrate

    where = _dsn(ctx, dsn)
    target = migrate.resolve(revision)
    before = migrate.current(where) or migrate.BASE
    if not dry_run:
        migrate.upgrade(where, target, lock_wait_s=lock_wait)
    _say_move("upgrade", before, target, dry_run=dry_run)


@app.command()
def downgrade(
    ctx: typer.Context,
    *,
    revision: Annotated[
        str, typer.Argument(help="Revision to go back to; base removes everything pgqueue made.")
    ],
    dsn: Dsn = None,
    force: Annotated[bool, typer.Option("--force", help="Go on although jobs are lost.")] = False,
    dry_run: DryRun = False,
    lock_wait: Wait = 60.0,
) -> None:
    """Take the schema back to REVISION. Refuses to lose jobs unless --force is given."""
    from pgqueue.storage import migrate

    where = _dsn(ctx, dsn)
    target = migrate.resolve(revision)
    before = migrate.current(where) or migrate.BASE
    loss = migrate.jobs_at_stake(where) if target == migrate.BASE and before != migrate.BASE else None
    if not dry_run:
        migrate.downgrade(where, target, force=force, lock_wait_s=lock_wait)
    _say_move("downgrade", before, target, dry_run=dry_run)
    if loss is not None and loss.total:
        _say(f"{'would lose' if dry_run else 'lost'} {loss}")


@app.command()
def current(ctx: typer.Context, dsn: Dsn = None, output: Form = None) -> None:
    """Print the revision the schema is at; `base` if there is none yet."""
    from pgqueue.storage import migrate

    revision = migrate.current(_dsn(ctx, dsn)) or migrate.BASE
    _answer(ctx, output, {"revision": revision}, name="revision")


@app.command()
def check(ctx: typer.Context, dsn: Dsn = None, output: Form = None) -> None:
    """Compare the schema's revision with the one this release expects. Exit 6 if it may not be used."""
    from pgqueue.storage import migrate

    state = migrate.check(_dsn(ctx, dsn))
    facts = {"state": state.kind, "revision": state.found, "expected": state.expected, "usable": state.usable}
    _answer(ctx, output, facts, name="state")
    _say(state.sentence)
    if not state.usable:
        raise typer.Exit(SchemaMismatch.exit_code)


@app.command()
def sql(
    from_revision: Annotated[
        str, typer.Argument(metavar="[FROM]", help="Revision the database is at.")
    ] = "base",
    to_revision: Annotated[str, typer.Argument(metavar="[TO]", help="Revision to lead to.")] = "head",
) -> None:
    """Write the SQL that leads FROM one revision TO another to stdout, for those who run it by hand."""
    from pgqueue.storage import migrate

    typer.echo(migrate.sql(from_revision, to_revision), nl=False)


def _dsn(ctx: typer.Context, given: str | None) -> str:
    """The verb's own --dsn, else the command line's, else the settings; past a pooler where an address is known."""
    settings = load_settings(database_url=given or _of_main(ctx, "dsn"))
    return settings.direct_dsn


def _of_main(ctx: typer.Context, option: str) -> str | None:
    """An option that was given before the noun: `pgqueue --dsn … db check`."""
    value = ctx.find_root().params.get(option)
    return None if value is None else str(value)


def _answer(ctx: typer.Context, output: Output | None, facts: Mapping[str, object], *, name: str) -> None:
    form = output or Output(_of_main(ctx, "output") or Output.TABLE)
    values = [
        "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        for value in facts.values()
    ]
    match form:
        case Output.JSON | Output.JSONL:
            typer.echo(json.dumps(facts))
        case Output.NAME:
            typer.echo(facts[name])
        case Output.CSV:
            typer.echo(",".join(facts))
            typer.echo(",".join(values))
        case Output.TABLE:
            widths = [max(len(head), len(value)) for head, value in zip(facts, values, strict=True)]
            for row in (list(facts), values):
                typer.echo(
                    "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                )


def _say_move(verb: str, before: str, target: str, *, dry_run: bool) -> None:
    if before == target:
        _say(f"at {target} already: nothing to do")
    elif dry_run:
        _say(f"would {verb} from {before} to {target}")
    else:
        _say(f"{verb}d from {before} to {target}")


def _say(line: str) -> None:
    typer.echo(line, err=True)
