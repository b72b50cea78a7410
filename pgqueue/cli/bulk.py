"""What every deed on many objects asks first: which ones, how many, and whether that is meant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from pgqueue.cli.session import say
from pgqueue.errors import NotFoundError

SAMPLE = 5

Ids = Annotated[list[int] | None, typer.Argument(metavar="ID…", help="Job ids.", show_default=False)]
Reason = Annotated[
    str | None, typer.Option("--reason", help="Why; it stands in the audit.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Everything = Annotated[bool, typer.Option("--all", help="All that match, without any filter.")]
Queue = Annotated[str | None, typer.Option("--queue", help="Only of this queue.", show_default=False)]
Task = Annotated[
    str | None, typer.Option("--task", help="Only of this task; capture* means a prefix.", show_default=False)
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Rows at most.")]


def chosen(
    ids: Sequence[int] | None,
    find: Callable[[], list[int]],
    *,
    filtered: bool,
    everything: bool,
    dry_run: bool,
    yes: bool,
    deed: str,
) -> list[int]:
    """Return the ids to act on; an empty list after a dry run. Raises NotFoundError when nothing matches."""
    if ids:
        if filtered or everything:
            raise typer.BadParameter("give ids or a filter, not both")
        targets = list(dict.fromkeys(ids))
    elif filtered or everything:
        targets = find()
    else:
        raise typer.BadParameter("give ids, a filter such as --queue, or --all")
    if not targets:
        raise NotFoundError(f"{deed}: nothing matches")
    if dry_run:
        more = f" and {len(targets) - SAMPLE} more" if len(targets) > SAMPLE else ""
        say(f"would {deed} {len(targets)}: {', '.join(map(str, targets[:SAMPLE]))}{more}")
        return []
    if not ids and not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter(f"{deed} {len(targets)} jobs: add --yes, since nobody can be asked here")
        typer.confirm(f"{deed} {len(targets)} jobs?", abort=True, err=True)
    return targets
