"""Several of our processes under one parent: `worker --processes`, `worker` on several databases, and `all`.

A member's address is handed on in its environment, where others cannot read it. The parent runs no job.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgqueue.cli.session import Session, say
from pgqueue.errors import ConfigurationError

if TYPE_CHECKING:
    from pgqueue.settings import Settings


@dataclass(frozen=True, slots=True)
class Member:
    """One process to be: the verb, its arguments, and its database; None: the one of the settings."""

    verb: str
    arguments: Sequence[str]
    dsn: str | None = None


def run_group(session: Session, members: Sequence[Member], ports: Mapping[str, int]) -> int:
    """Start the members and see to them until all have ended; returns the exit code."""
    from pgqueue.core.events import Events
    from pgqueue.observe.logs import LogListener, configure_logging
    from pgqueue.observe.serve import serve_observability
    from pgqueue.worker.family import FamilyVitals, ports_of
    from pgqueue.worker.processes import Processes, Program

    settings = _settings(session, members).model_copy(update=dict(ports))
    configure_logging(settings)
    events = Events()
    events.listen(LogListener(settings))
    children = [ports_of(settings, number) for number in range(len(members))]
    several = len({member.dsn for member in members}) > 1
    parent = Processes(
        [
            Program(
                [*_command(member, several=several), *own.options],
                _environment(member),
                role=member.verb,
                database=_place(member) if several else None,
            )
            for member, own in zip(members, children, strict=True)
        ],
        events,
        grace_s=settings.grace_s,
    )
    # The children serve the metrics; health is asked of the parent, and it asks them.
    parents = settings.model_copy(update={"metrics_port": None})
    with serve_observability(parents, events, FamilyVitals(parent, children), component="supervisor"):
        return parent.run(signals=True)


def _settings(session: Session, members: Sequence[Member]) -> Settings:
    """The settings that hold for all. With several databases there is no such thing as the direct address."""
    from pgqueue.settings import load_settings, redact_dsn

    given = list(dict.fromkeys(member.dsn for member in members if member.dsn is not None))
    if len(given) < 2:
        return session.settings
    if any(redact_dsn(dsn) != dsn for dsn in given):
        say(
            "pgqueue: a password in --dsn is seen by everyone on this machine; use a file for them: ~/.pgpass"
        )
    settings = load_settings(database_url=given[0])
    if settings.direct_database_url:
        raise ConfigurationError(
            "direct_database_url: is the address of one database and --dsn names several; give each addresses past"
            " a pooler, and unset it"
        )
    for warning in settings.warnings:
        say(f"pgqueue: {warning}")
    return settings


def _command(member: Member, *, several: bool) -> list[str]:
    named = ["--name-database"] if several else []
    inherits = ["--inherit-address"] if member.dsn else []
    return [sys.executable, "-m", "pgqueue", member.verb, *member.arguments, "--lifeline", *inherits, *named]


def _environment(member: Member) -> dict[str, str]:
    environment = dict(os.environ)
    if member.dsn:
        environment["PGQUEUE_DATABASE_URL"] = member.dsn
    return environment


def _place(member: Member) -> str:
    from pgqueue.storage.connect import place_of

    return place_of(member.dsn or "")
