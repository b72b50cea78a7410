"""`pgqueue db …`: the schema's revision, asked and changed, and the roles. A Typer app that cli/main hangs in.

It prints answers to stdout and talk to stderr; errors leave as PgQueueError, whose exit code main uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue.cli.bulk import DryRun
from pgqueue.cli.session import Output, Session, say, verb
from pgqueue.errors import SchemaMismatch

if TYPE_CHECKING:
    from pgqueue.control.roles import Roles

app = typer.Typer(
    name="db",
    help="The database schema: upgrade it, ask for its revision, write its SQL; its roles.",
    no_args_is_help=True,
)

Wait = Annotated[float, typer.Option("--lock-wait", min=0, help="Seconds to wait for another migrator.")]


@verb(app)
def upgrade(
    session: Session,
    *,
    revision: Annotated[str, typer.Argument(help="Revision to go up to.")] = "head",
    dry_run: DryRun = False,
    lock_wait: Wait = 60.0,
) -> None:
    """Bring the schema up to REVISION. Safe to run from many places at once."""
    from pgqueue.storage import migrate

    where = session.settings.direct_dsn
    target = migrate.resolve(revision)
    before = migrate.current(where) or migrate.BASE
    if not dry_run:
        migrate.upgrade(where, target, lock_wait_s=lock_wait)
    _say_move("upgrade", before, target, dry_run=dry_run)
    if not dry_run and before != target:
        missing = _roles(session).missing()
        if missing:
            say(
                f"roles {', '.join(missing)}: missing, and this login may not create them; see `pgqueue db roles`"
            )


@verb(app)
def downgrade(
    session: Session,
    *,
    revision: Annotated[
        str, typer.Argument(help="Revision to go back to; base removes everything pgqueue made.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Go on although jobs are lost.")] = False,
    dry_run: DryRun = False,
    lock_wait: Wait = 60.0,
) -> None:
    """Take the schema back to REVISION. Refuses to lose jobs unless --force is given. Roles stay."""
    from pgqueue.storage import migrate

    where = session.settings.direct_dsn
    target = migrate.resolve(revision)
    before = migrate.current(where) or migrate.BASE
    loss = migrate.jobs_at_stake(where) if target == migrate.BASE and before != migrate.BASE else None
    if not dry_run:
        migrate.downgrade(where, target, force=force, lock_wait_s=lock_wait)
    _say_move("downgrade", before, target, dry_run=dry_run)
    if loss is not None and loss.total:
        say(f"{'would lose' if dry_run else 'lost'} {loss}")


@verb(app)
def current(session: Session) -> None:
    """Print the revision the schema is at; `base` if there is none yet."""
    from pgqueue.storage import migrate

    revision = migrate.current(session.settings.direct_dsn) or migrate.BASE
    _answer(session, {"revision": revision}, name="revision")


@verb(app)
def check(session: Session) -> int:
    """Compare the schema's revision with the one this release expects. Exit 6 if it may not be used."""
    from pgqueue.storage import migrate

    state = migrate.check(session.settings.direct_dsn)
    facts = {"state": state.kind, "revision": state.found, "expected": state.expected, "usable": state.usable}
    _answer(session, facts, name="state")
    say(state.sentence)
    return 0 if state.usable else SchemaMismatch.exit_code


@verb(app)
def sql(
    _session: Session,
    *,
    from_revision: Annotated[
        str, typer.Argument(metavar="[FROM]", help="Revision the database is at.")
    ] = "base",
    to_revision: Annotated[str, typer.Argument(metavar="[TO]", help="Revision to lead to.")] = "head",
) -> None:
    """Write the SQL that leads FROM one revision TO another to stdout, for those who run it by hand."""
    from pgqueue.storage import migrate

    typer.echo(migrate.sql(from_revision, to_revision), nl=False)


@verb(app)
def roles(
    session: Session,
    *,
    apply: Annotated[
        bool, typer.Option("--apply", help="Make the missing roles and grant each exactly its rights.")
    ] = False,
    dry_run: DryRun = False,
) -> int:
    """Print the SQL that makes the four roles and grants them their rights; say what differs. Exit 1 if anything does."""
    ours = _roles(session)
    if apply and not dry_run:
        say(f"grant the roles in {session.desk.place}")
        ours.apply()
    else:
        typer.echo(ours.script(), nl=False)
    complaints = [f"role {name} is missing" for name in ours.missing()] + [str(one) for one in ours.faults()]
    for complaint in complaints or ["the four roles are there, each with exactly its rights"]:
        say(complaint)
    return 1 if complaints else 0


def _roles(session: Session) -> Roles:
    from pgqueue.control.desk import Desk
    from pgqueue.control.roles import Roles

    settings = session.settings
    return Roles(Desk(settings.direct_dsn, via="cli", connect_timeout_s=settings.connect_timeout_s))


def _answer(session: Session, facts: Mapping[str, object], *, name: str) -> None:
    match session.output:
        case Output.NAME:
            session.printer.line(str(facts[name]))
        case Output.TABLE:
            session.printer.rows([facts], list(facts), name=name)
        case _:
            session.printer.one(facts, name=name)


def _say_move(verb: str, before: str, target: str, *, dry_run: bool) -> None:
    if before == target:
        say(f"at {target} already: nothing to do")
    elif dry_run:
        say(f"would {verb} from {before} to {target}")
    else:
        say(f"{verb}d from {before} to {target}")
