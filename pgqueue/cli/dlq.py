"""`pgqueue dlq …`: dead letters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgqueue.cli.bar import Bar
from pgqueue.cli.bulk import (
    Asked,
    DryRun,
    Everything,
    Ids,
    JobId,
    Limit,
    Queue,
    Rate,
    Reason,
    Task,
    Where,
    Words,
    Yes,
    carry_out,
    chosen,
    filter_text,
)
from pgqueue.cli.complete import task_names
from pgqueue.cli.session import Output, Session, say, verb

if TYPE_CHECKING:
    from pgqueue.control.dead_letters import DeadFilter, DeadLetters

COLUMNS: Final = (
    "job_id",
    "task",
    "queue",
    "reason",
    "error_type",
    "error_message",
    "attempts",
    "failed_at",
    "redriven_as",
)
GROUP_COLUMNS: Final = (
    "error_fingerprint",
    "dead",
    "task",
    "queue",
    "reason",
    "error_type",
    "first_at",
    "last_at",
    "sample_message",
)

app = typer.Typer(
    name="dlq", help="Dead letters: what failed for good, why, and what to do with it.", no_args_is_help=True
)

Why = Annotated[
    str | None,
    typer.Option(
        "--because", help="Only with this reason: max_retries, rejected, worker_crash, …", show_default=False
    ),
]
Error = Annotated[
    str | None, typer.Option("--error-type", help="Only with this error class.", show_default=False)
]
ExactTask = Annotated[
    str | None,
    typer.Option("--task", help="Only of this task.", show_default=False, autocompletion=task_names),
]
Fingerprint = Annotated[
    str | None, typer.Option("--fingerprint", help="Only of this group.", show_default=False)
]
Since = Annotated[
    str | None, typer.Option("--since", help="Only from the last 24h, 30m, …", show_default=False)
]


def register(main: typer.Typer) -> None:
    """Hang the verbs into the command line."""
    main.add_typer(app)


@verb(app, "list", watch=True)
def list_letters(
    session: Session,
    *,
    words: Words = None,
    where: Where = None,
    queue: Queue = None,
    task: Task = None,
    because: Why = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    redriven: Annotated[bool, typer.Option("--redriven", help="Also those already redriven.")] = False,
    limit: Limit = 50,
    after: Annotated[
        str | None, typer.Option("--after", help="Go on where the last page ended.", show_default=False)
    ] = None,
) -> None:
    """Dead letters, newest first."""
    from pgqueue.control.dead_letters import DeadCursor

    meant = _filter(queue, task, because, error, fingerprint, since, filter_text(where, words))
    page = _letters(session).page(
        meant, limit=limit, waiting=not redriven, after=None if after is None else DeadCursor.parse(after)
    )
    session.printer.rows(page.rows, COLUMNS, name="job_id")
    if page.after is not None:
        looked = "" if len(page.rows) == limit else "looked at the newest 100,000; "
        say(f"{looked}more: --after {page.after}")


@verb(app, watch=True)
def groups(session: Session, *, queue: Queue = None, task: ExactTask = None, limit: Limit = 50) -> None:
    """Dead letters by cause, the most frequent first."""
    session.printer.rows(
        _letters(session).groups(queue=queue, task=task, limit=limit),
        GROUP_COLUMNS,
        name="error_fingerprint",
        kind="group",
    )


@verb(app, "get")
def get_letter(
    session: Session,
    *,
    job_id: JobId,
    show_args: Annotated[
        bool, typer.Option("--show-args", help="Show values of arguments and headers; audited.")
    ] = False,
    reason: Reason = None,
) -> None:
    """One dead letter with its error, traceback and attempts."""
    letters = _letters(session)
    row = letters.get(job_id)
    if show_args:
        letters.reveal(f"dead letter {job_id}", reason)
    session.printer.one(_shown(session, row, show_args=show_args), name="job_id")


@verb(app)
def redrive(
    session: Session,
    *,
    ids: Ids = None,
    where: Where = None,
    queue: Queue = None,
    task: Task = None,
    because: Why = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    everything: Everything = False,
    to_queue: Annotated[
        str | None, typer.Option("--to-queue", help="Run them in another queue.", show_default=False)
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", min=0, max=9, help="0 (first) to 9.", show_default=False)
    ] = None,
    rate: Annotated[float, typer.Option("--rate", min=0, help="So many a second; 0 = all at once.")] = 0,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Enqueue dead jobs again as new, linked jobs. Doing it twice makes no second job."""
    from pgqueue.core.names import check_queue

    if to_queue is not None:
        check_queue(to_queue)
    picked = _Picked.of(session, ids, queue, task, because, error, fingerprint, since, where)
    asked = Asked(ids, picked.filtered, everything, dry_run, yes, reason, "redrive", "dead letters")
    targets = picked.targets(session, asked)
    if not targets:
        return 0
    done = picked.letters.each_redrive(targets, reason, queue=to_queue, priority=priority, rate_per_s=rate)
    return carry_out(
        session,
        asked,
        len(targets),
        (
            {"job_id": one.job_id, "redriven_as": one.redriven_as, "redriven_before": one.redriven_before}
            for one in done
        ),
        columns=("job_id", "redriven_as", "redriven_before"),
        name="redriven_as",
        good=lambda row: row["redriven_as"] is not None,
        unknown=lambda row: row["redriven_as"] is None,
        words=picked.words,
    )


@verb(app)
def discard(
    session: Session,
    *,
    ids: Ids = None,
    where: Where = None,
    queue: Queue = None,
    task: Task = None,
    because: Why = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    everything: Everything = False,
    rate: Rate = 0,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> int:
    """Give dead letters up: they move to the history as cancelled."""
    picked = _Picked.of(session, ids, queue, task, because, error, fingerprint, since, where)
    asked = Asked(ids, picked.filtered, everything, dry_run, yes, reason, "discard", "dead letters", rate)
    targets = picked.targets(session, asked)
    if not targets:
        return 0
    done = picked.letters.each_discard(targets, reason)
    return carry_out(
        session,
        asked,
        len(targets),
        ({"id": i, "verdict": "discarded" if ok else "unknown"} for i, ok in done),
        columns=("id", "verdict"),
        name="id",
        good=lambda row: row["verdict"] == "discarded",
        unknown=lambda row: row["verdict"] == "unknown",
        words=picked.words,
    )


@verb(app)
def export(
    session: Session,
    *,
    where: Where = None,
    queue: Queue = None,
    task: Task = None,
    because: Why = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    since: Since = None,
    show_args: Annotated[
        bool, typer.Option("--show-args", help="With the values of arguments and headers; audited.")
    ] = False,
    reason: Reason = None,
) -> None:
    """Write the waiting dead letters out, one JSON object a line (or another form with -o)."""
    from pgqueue.cli.out import Printer

    letters, meant = _letters(session), _filter(queue, task, because, error, fingerprint, since, where)
    if show_args:
        letters.reveal(f"dead letters {meant}", reason, matched=len(letters.matching(meant)))
    form = session.output if session.output is not Output.TABLE else Output.JSONL
    with Bar("export", None, form) as bar:

        def told() -> Iterator[dict[str, Any]]:
            for count, row in enumerate(letters.export(meant), 1):
                bar.at(count)
                yield _shown(session, row, show_args=show_args)

        count = Printer(form, headers=not session.common.no_headers).rows(
            told(), (*COLUMNS, "args", "traceback"), name="job_id"
        )
    say(f"{count} dead letters")


@dataclass(frozen=True, slots=True)
class _Picked:
    """The dead letters that a deed's options name."""

    letters: DeadLetters
    where: DeadFilter
    ids: list[int] | None
    filtered: bool

    @classmethod
    def of(cls, session: Session, ids: list[int] | None, *options: str | None) -> _Picked:
        return cls(_letters(session), _filter(*options), ids, any(option is not None for option in options))

    @property
    def words(self) -> str | None:
        return None if self.ids else str(self.where)

    def targets(self, session: Session, asked: Asked) -> list[int]:
        return chosen(session, asked, lambda: self.letters.matched(self.where))


def _letters(session: Session) -> DeadLetters:
    from pgqueue.control.dead_letters import DeadLetters

    return DeadLetters(session.desk)


def _filter(
    queue: str | None = None,
    task: str | None = None,
    because: str | None = None,
    error: str | None = None,
    fingerprint: str | None = None,
    since: str | None = None,
    where: str | None = None,
) -> DeadFilter:
    from pgqueue.control.dead_letters import AGE_MAX_S, DeadFilter
    from pgqueue.core.durations import parse_duration
    from pgqueue.core.filter import parse_filter

    age_s = AGE_MAX_S if since is None else parse_duration(since, field="since")
    return DeadFilter(
        queue, task, because, error, fingerprint, age_s, parse_filter(where or "", "dead letters")
    )


def _shown(session: Session, row: Any, *, show_args: bool) -> dict[str, Any]:
    from pgqueue.cli.hide import hidden, revealed
    from pgqueue.core.redact import Redactor

    return revealed(row, Redactor(session.settings.redact)) if show_args else hidden(row)
