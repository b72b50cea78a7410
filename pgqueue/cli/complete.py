"""What a shell offers at `<Tab>` where the database knows the names. Silent whatever goes wrong.

The options and arguments of cli/bulk and of the nouns name these functions; typer's own completion calls them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pgqueue.control.names import Kind


def _offered(kind: Kind) -> Callable[[typer.Context, str], list[str]]:
    def offer(ctx: typer.Context, incomplete: str) -> list[str]:
        with contextlib.suppress(Exception):  # a settings file with a mistake, a driver that is not there, …
            from pgqueue.control.names import known_names
            from pgqueue.settings import load_settings

            return list(known_names(load_settings(database_url=_dsn(ctx)).database_url, kind, incomplete))
        return []

    return offer


def _dsn(ctx: typer.Context) -> str | None:
    """The --dsn that stands on the line so far, after the verb or before the noun."""
    here: object = ctx
    while here is not None:
        params = getattr(here, "params", {})
        if params.get("dsn"):
            return str(params["dsn"][-1])
        here = getattr(here, "parent", None)
    return None


queue_names = _offered("queue")
task_names = _offered("task")
schedule_names = _offered("schedule")
rule_names = _offered("rule")
topic_names = _offered("topic")
worker_names = _offered("worker")
