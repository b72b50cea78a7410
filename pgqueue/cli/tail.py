"""`pgqueue jobs tail`: attempts as they end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pgqueue.cli import jobs
from pgqueue.cli.bulk import Queue, Task
from pgqueue.cli.session import Session, say, verb

if TYPE_CHECKING:
    from pgqueue.control.tail import Settled

WIDTHS: Final = {
    "at": 27,
    "id": 10,
    "task": 24,
    "queue": 12,
    "state": 10,
    "reason": 12,
    "attempt": 7,
    "wait_s": 8,
    "run_s": 8,
    "error_type": 0,
}


def register(main: typer.Typer) -> None:
    """Hang the verb into `pgqueue jobs`."""
    del main
    verb(jobs.app)(tail)


def tail(
    session: Session,
    *,
    queue: Queue = None,
    task: Task = None,
    last: Annotated[
        int, typer.Option("-n", "--last", min=0, max=1_000, help="So many of the past hour first.")
    ] = 10,
    every: Annotated[str, typer.Option("--every", help="How often to look.")] = "1s",
    lasting: Annotated[
        str | None, typer.Option("--for", help="Stop after this: 30s.", show_default=False)
    ] = None,
) -> None:
    """Follow attempts as they end: succeeded, to be tried again, dead, cancelled. Ctrl-C ends it. JSON comes line by line."""
    from pgqueue.control.tail import follow
    from pgqueue.core.durations import parse_duration

    every_s = parse_duration(every, field="every", minimum_s=0.1)
    for_s = None if lasting is None else parse_duration(lasting, field="for")

    def told() -> Iterator[Settled]:
        for one in follow(session.desk, queue=queue, task=task, last=last, every_s=every_s, for_s=for_s):
            if isinstance(one, int):
                say(f"more than {one:,} ended since the last look; the oldest are left out")
            else:
                yield one

    session.printer.stream(told(), WIDTHS, name="id")
