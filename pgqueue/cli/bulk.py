"""What every deed on many objects shares: which ones, how many, whether that is meant, how far it has come."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pgqueue.cli.bar import Bar
from pgqueue.cli.complete import queue_names, task_names
from pgqueue.cli.session import Session, say
from pgqueue.errors import InvalidOption, NotFoundError

if TYPE_CHECKING:
    from pgqueue.control.desk import Matched

SAMPLE: Final = 5
ID_MAX: Final = 2**63 - 1

_ID: Final = re.compile(r"(?:[a-z]+/)?([0-9]{1,19})")


def job_id(text: str) -> int:
    """Read an id as people have it, or as `-o name` writes it: 12 or job/12."""
    match = _ID.fullmatch(text)
    number = int(match[1]) if match else 0
    if not 1 <= number <= ID_MAX:
        raise typer.BadParameter("a job id is a positive integer, such as 12 or job/12")
    return number


Ids = Annotated[
    list[int] | None,
    typer.Argument(metavar="ID…", help="Job ids.", show_default=False, parser=job_id),
]
JobId = Annotated[int, typer.Argument(metavar="ID", help="Job id.", parser=job_id)]
Reason = Annotated[
    str | None, typer.Option("--reason", help="Why; it stands in the audit.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Everything = Annotated[bool, typer.Option("--all", help="All that match, without any filter.")]
Queue = Annotated[
    str | None,
    typer.Option("--queue", help="Only of this queue.", show_default=False, autocompletion=queue_names),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="Only of this task; capture* means a prefix.",
        show_default=False,
        autocompletion=task_names,
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        "-f",
        "--filter",
        metavar="FILTER",
        help="Only what this means: 'state:dead attempts:>3 age:>5m args.ride_id:12 error:\"declined\" -tag:x'.",
        show_default=False,
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILTER]…", help="The same as --filter, word by word.", show_default=False),
]
Rate = Annotated[
    float, typer.Option("--rate", min=0, help="So many a second; 0 = as fast as it goes.", metavar="N")
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Rows at most.")]


@dataclass(frozen=True, slots=True)
class Asked:
    """How the objects of a deed were named, and what is to become of them."""

    ids: Sequence[int] | None
    filtered: bool
    everything: bool
    dry_run: bool
    yes: bool
    reason: str | None
    deed: str
    things: str = "jobs"
    rate_per_s: float = 0


def chosen(session: Session, asked: Asked, find: Callable[[], Matched | list[int]]) -> list[int]:
    """Return the ids to act on; an empty list after a dry run.

    Raises NotFoundError when nothing matches, InvalidOption when it is not clear that it is meant.
    """
    counts = ""
    if asked.ids:
        if asked.filtered or asked.everything:
            raise InvalidOption("ids", "given together with a filter; give one of them")
        targets = list(dict.fromkeys(asked.ids))
    elif asked.filtered or asked.everything:
        found = find()
        targets = found if isinstance(found, list) else found.ids
        counts = "" if isinstance(found, list) else _spread(found)
    else:
        raise InvalidOption("ids", "none given; give some, a filter such as --queue, or --all")
    if not targets:
        raise NotFoundError(f"{asked.deed}: nothing matches")
    what = f"{len(targets)} {asked.things}"
    if asked.dry_run:
        more = f" and {len(targets) - SAMPLE} more" if len(targets) > SAMPLE else ""
        say(f"would {asked.deed} {what}: {', '.join(map(str, targets[:SAMPLE]))}{more}{counts}")
        return []
    session.desk.need_reason(asked.reason)
    session.desk.throttle(asked.rate_per_s)
    say(f"{asked.deed} {what} in {session.desk.place} ({session.desk.environment}){counts}")
    if not asked.ids and not asked.yes:
        if not sys.stdin.isatty():
            raise InvalidOption("--yes", f"needed to {asked.deed} {what} where nobody can be asked")
        typer.confirm(f"{asked.deed} {what}?", abort=True, err=True)
    return targets


def _spread(matched: Matched) -> str:
    """How many there are of each queue and task, the largest first."""
    return "".join(
        f"; {kind} {', '.join(f'{name} {n}' for name, n in tally.most_common(SAMPLE))}"
        for kind, tally in (("queues", matched.queues), ("tasks", matched.tasks))
    )


def filter_text(option: str | None, words: Sequence[str] | None = None) -> str:
    """One filter from the option and from what stood behind the verb."""
    return " ".join([*(words or ()), *([option] if option else [])])


def carry_out(
    session: Session,
    asked: Asked,
    total: int,
    done: Iterable[Mapping[str, Any]],
    *,
    columns: Sequence[str],
    name: str,
    good: Callable[[Mapping[str, Any]], bool],
    unknown: Callable[[Mapping[str, Any]], bool],
    words: str | None,
) -> int:
    """Write a row per object as the deed is done to it, and return the exit code.

    0 all done · 7 some could not be · 3 none was known · 4 none could be. `words`: the filter, for the audit row
    that sums a bulk deed up.
    """
    counts: Counter[str] = Counter()

    def told() -> Iterator[Mapping[str, Any]]:
        with Bar(asked.deed, total, session.output) as bar:
            for row in done:
                counts["good" if good(row) else "unknown" if unknown(row) else "refused"] += 1
                bar.at(counts.total())
                yield row

    def note() -> None:
        if words is not None:
            target = f"{asked.things} {words}"
            session.desk.note(
                asked.deed.replace(" ", "_"), target, asked.reason, matched=total, changed=counts["good"]
            )

    try:
        session.printer.rows(told(), columns, name=name)
    except KeyboardInterrupt:
        say(f"{asked.deed}: interrupted; at least {counts['good']} of {total} are done")
        note()
        raise
    note()
    if counts["good"] == counts.total():
        return 0
    if counts["good"]:
        say(f"{asked.deed}: {counts['good']} of {counts.total()} done; the others say why")
        return 7
    return 4 if counts["refused"] else 3
