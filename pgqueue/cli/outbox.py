"""`pgqueue outbox …`: messages on their way, those that were given up, and what to do with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgqueue.cli.bulk import Asked, DryRun, Everything, Limit, Rate, Reason, Yes, carry_out, chosen, job_id
from pgqueue.cli.complete import topic_names
from pgqueue.cli.session import Session, say, verb

if TYPE_CHECKING:
    from pgqueue.control.outbox import Outbox

STATUS_COLUMNS: Final = (
    "topic",
    "pending",
    "unrouted",
    "parked",
    "failing",
    "blocked_keys",
    "dead",
    "oldest_age_s",
    "subscribers",
)
COLUMNS: Final = (
    "message_id",
    "sink",
    "topic",
    "key",
    "state",
    "attempts",
    "error_type",
    "error_message",
    "emitted_at",
    "next_at",
)
SUBSCRIPTION_COLUMNS: Final = ("pattern", "sink", "defined_in", "created_at")

app = typer.Typer(
    name="outbox", help="Messages on their way, and those that were given up.", no_args_is_help=True
)

MessageIds = Annotated[
    list[int] | None,
    typer.Argument(metavar="ID…", help="Message ids.", show_default=False, parser=job_id),
]
State = Annotated[
    str | None,
    typer.Option(
        "--state",
        help="Only so: new, parked, waiting, delivering, failing, blocked, or dead (given up).",
        show_default=False,
    ),
]
Topic = Annotated[
    str | None,
    typer.Option(
        "--topic",
        help="Only of this topic; ride.* means all below ride.",
        show_default=False,
        autocompletion=topic_names,
    ),
]
SinkName = Annotated[
    str | None, typer.Option("--sink", help="Only for this sink; task:NAME for a task.", show_default=False)
]


def register(main: typer.Typer) -> None:
    """Hang the verbs into the command line."""
    main.add_typer(app)


def outbox_of(session: Session) -> Outbox:
    """Questions and deeds about messages."""
    from pgqueue.control.outbox import Outbox
    from pgqueue.storage.own_pool import OwnConnections

    return Outbox(lambda: session.desk, lambda: OwnConnections(session.settings.database_url))


@verb(app, watch=True)
def status(session: Session) -> None:
    """Every topic with messages or subscribers, the one that waits longest first."""
    rows = outbox_of(session).status()
    session.printer.rows(rows, STATUS_COLUMNS, name="topic", kind="topic")
    for row in rows:
        if row.parked:
            say(f"topic {row.topic}: nobody subscribes, {row.parked} messages are parked")
        if row.blocked_keys:
            say(
                f"topic {row.topic}: {row.blocked_keys} keys wait for a decision;"
                " `pgqueue outbox list --state dead`, then `replay` or `skip`"
            )


@verb(app)
def subscriptions(session: Session) -> None:
    """Who wants which topics."""
    session.printer.rows(
        outbox_of(session).subscriptions(), SUBSCRIPTION_COLUMNS, name="sink", kind="subscription"
    )


@verb(app, "list", watch=True)
def list_messages(
    session: Session,
    *,
    state: State = None,
    topic: Topic = None,
    sink: SinkName = None,
    limit: Limit = 50,
    after: Annotated[
        str | None, typer.Option("--after", help="Go on from here.", metavar="PLACE", show_default=False)
    ] = None,
) -> None:
    """Messages that somebody has still to get, oldest first, a row for each of those; with --state dead those given up."""
    from pgqueue.control.outbox import MessagePlace

    place = None if after is None else MessagePlace.parse(after)
    page = outbox_of(session).page(state=state, topic=topic, sink=sink, limit=limit, after=place)
    session.printer.rows(page.rows, COLUMNS, name="message_id", kind="message")
    if page.after is not None:
        say(f"more: --after {page.after}")


@verb(app)
def replay(
    session: Session,
    *,
    ids: MessageIds = None,
    state: State = None,
    topic: Topic = None,
    sink: SinkName = None,
    everything: Everything = False,
    rate: Rate = 0,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Deliver messages again that were given up, or at once if they wait for their next try. Default: --state dead."""
    return _do(
        session,
        Asked(
            ids,
            _filtered(ids, state, topic, sink),
            everything,
            dry_run,
            yes,
            reason,
            "replay",
            "messages",
            rate,
        ),
        {"state": state or "dead", "topic": topic, "sink": sink},
    )


@verb(app)
def skip(
    session: Session,
    *,
    ids: MessageIds = None,
    state: State = None,
    topic: Topic = None,
    sink: SinkName = None,
    everything: Everything = False,
    rate: Rate = 0,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Give messages up for good; their keys go on without them. Default: --state dead."""
    return _do(
        session,
        Asked(
            ids,
            _filtered(ids, state, topic, sink),
            everything,
            dry_run,
            yes,
            reason,
            "skip",
            "messages",
            rate,
        ),
        {"state": state or "dead", "topic": topic, "sink": sink},
    )


def _filtered(ids: list[int] | None, state: str | None, topic: str | None, sink: str | None) -> bool:
    # Beside ids, --sink says for whom; alone it is a filter.
    return state is not None or topic is not None or (sink is not None and not ids)


def _do(session: Session, asked: Asked, where: Mapping[str, str | None]) -> int:
    outbox = outbox_of(session)
    targets = chosen(session, asked, lambda: outbox.matching(**where))
    if not targets:
        return 0
    each = outbox.each_replay if asked.deed == "replay" else outbox.each_skip
    words = None if asked.ids else " ".join(f"{name}:{value}" for name, value in where.items() if value)

    def good(row: Mapping[str, Any]) -> bool:
        return row["verdict"] in {"replayed", "skipped"}

    return carry_out(
        session,
        asked,
        len(targets),
        (
            {"message_id": number, "verdict": verdict}
            for number, verdict in each(targets, where["sink"], asked.reason)
        ),
        columns=("message_id", "verdict"),
        name="message_id",
        good=good,
        unknown=lambda row: row["verdict"] == "unknown",
        words=words,
    )
