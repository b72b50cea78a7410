"""What every verb of the command line shares: the common options, the settings, a connection, the output's form.

`verb(app)` registers a function whose first parameter is the Session; the options that make it are added here
once, so that they may stand before or after the noun.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, ParamSpec

import typer

from pgqueue.cli.again import INTERRUPTED_EXIT, WATCH, again

if TYPE_CHECKING:
    from pgqueue.cli.out import Printer
    from pgqueue.control.desk import Desk
    from pgqueue.settings import Settings

P = ParamSpec("P")

BROKEN_PIPE_EXIT: Final = 141  # as a program that SIGPIPE ended


class Output(StrEnum):
    """How an answer is written to stdout."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    NAME = "name"


@dataclass(slots=True)
class Common:
    """The common options as given so far: before the noun, then after the verb."""

    dsns: list[str] = field(default_factory=list)
    output: Output | None = None
    verbose: bool = False
    no_headers: bool = False
    utc: bool = False

    @property
    def dsn(self) -> str | None:
        """The database, if one was named. Raises InvalidOption for several."""
        if len(set(self.dsns)) > 1:
            from pgqueue.errors import InvalidOption

            raise InvalidOption(
                "--dsn", "given more than once; only `pgqueue worker` serves several databases"
            )
        return self.dsns[0] if self.dsns else None


DSN: Final = typer.Option(
    "--dsn",
    help="Database to work on; default: PGQUEUE_DATABASE_URL and the other settings.",
    show_default=False,
)
OUTPUT: Final = typer.Option("-o", "--output", help="Form of the answer.", show_default="table")
VERBOSE: Final = typer.Option("-v", "--verbose", help="Show the traceback of an error.")
NO_HEADERS: Final = typer.Option("--no-headers", help="Leave the heads of tables out.")
UTC: Final = typer.Option("--utc", help="Times of tables in UTC, not relative.")

METRICS_PORT: Final = typer.Option(
    "--metrics-port",
    min=0,
    max=65_535,
    help="Serve /metrics there, and health; 0 takes a free port.",
    show_default="the setting",
)
HEALTH_PORT: Final = typer.Option(
    "--health-port",
    min=0,
    max=65_535,
    help="Serve /healthz, /readyz and /startupz there; 0 takes a free port.",
    show_default="the setting",
)

_COMMON: Final = {
    "dsn": (list[str] | None, DSN, None),
    "output": (Output | None, OUTPUT, None),
    "verbose": (bool, VERBOSE, False),
    "no_headers": (bool, NO_HEADERS, False),
    "utc": (bool, UTC, False),
}


_WATCH_PARAMETER: Final = inspect.Parameter(
    "watch", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, WATCH]
)


@dataclass(frozen=True)
class Session:
    """One run of one verb."""

    common: Common = field(default_factory=Common)

    @property
    def output(self) -> Output:
        """The form asked for."""
        return self.common.output or Output.TABLE

    @cached_property
    def settings(self) -> Settings:
        """The settings, with --dsn over all else. Raises ConfigurationError with every problem at once."""
        from pgqueue.settings import load_settings, redact_dsn

        given = self.common.dsn
        if given is not None and redact_dsn(given) != given:
            say("pgqueue: a password in --dsn is seen by everyone on this machine; use PGQUEUE_DATABASE_URL")
        settings = load_settings(database_url=given)
        for warning in settings.warnings:
            say(f"pgqueue: {warning}")
        return settings

    @cached_property
    def printer(self) -> Printer:
        """Where answers go."""
        from pgqueue.cli.out import Printer

        return Printer(self.output, headers=not self.common.no_headers, utc=self.common.utc)

    @cached_property
    def desk(self) -> Desk:
        """The control room's desk for this run."""
        from pgqueue.control.desk import Desk

        return Desk(
            self.settings.database_url,
            via="cli",
            connect_timeout_s=self.settings.connect_timeout_s,
            environment=self.settings.environment,
        )


def given(**options: Any) -> dict[str, Any]:
    """Those of the options that stand on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def say(line: str) -> None:
    """Talk: a line on stderr, which no pipe mistakes for data."""
    typer.echo(line, err=True)


def verb(
    app: typer.Typer, name: str | None = None, *, watch: bool = False, **options: Any
) -> Callable[[Callable[Concatenate[Session, P], int | None]], Callable[Concatenate[Session, P], int | None]]:
    """Register a verb. Its function gets the Session first, and returns its exit code (None = 0).

    watch: give it the option `-w`, and call it again and again if that is there.
    """

    def register(
        function: Callable[Concatenate[Session, P], int | None],
    ) -> Callable[Concatenate[Session, P], int | None]:
        @functools.wraps(function)
        def entry(*args: Any, **kwargs: Any) -> None:
            ctx: typer.Context = kwargs.pop("ctx")
            given_here = {option: kwargs.pop(option) for option in _COMMON}
            own = Common(given_here.pop("dsn") or [], **given_here)
            every = kwargs.pop("watch") if watch else None
            session = Session(merged(ctx, own))
            try:
                code = again(
                    every, lambda: session.printer, functools.partial(function, session, *args, **kwargs)
                )
                sys.stdout.flush()
            except KeyboardInterrupt:
                # Typer would say that nothing was done, which only a question's answer can know.
                code = INTERRUPTED_EXIT
            except BrokenPipeError:
                # Typer would make a failure of it; a reader that has seen enough is none.
                _forget_stdout()
                code = BROKEN_PIPE_EXIT
            if code:
                raise typer.Exit(code)

        signature = inspect.signature(function, eval_str=True)
        parameters = [
            inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            # Typer takes arguments in the order of the parameters, whatever their kind.
            *(
                p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
                for p in list(signature.parameters.values())[1:]
            ),
            *([_WATCH_PARAMETER] if watch else []),
            *(
                inspect.Parameter(
                    option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
                )
                for option, (kind, info, default) in _COMMON.items()
            ),
        ]
        # Typer reads both of these; the function's own are for its callers.
        entry.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        entry.__annotations__ = {p.name: p.annotation for p in parameters}
        del entry.__wrapped__
        app.command(name, **options)(entry)
        return function

    return register


def merged(ctx: typer.Context, own: Common) -> Common:
    """What stood before the noun, with what stands after the verb over it."""
    before = ctx.find_object(Common)
    if before is not None:
        own.dsns = own.dsns or before.dsns
        own.output = own.output or before.output
        own.verbose |= before.verbose
        own.no_headers |= before.no_headers
        own.utc |= before.utc
        # The command line's end, which shows errors, looks at the first one.
        before.verbose = own.verbose
    return own


def _forget_stdout() -> None:
    """The interpreter flushes stdout once more as it leaves: into nothing, so that it does not complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
