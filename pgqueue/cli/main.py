"""The command line's front: global options, the table of nouns, and the one place where errors become exit codes.

`run` is what the script `pgqueue`, `python -m pgqueue` and the thin doors call.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from pgqueue.cli import (
    alerts,
    audit,
    bench,
    db,
    demo,
    dlq,
    everything,
    exporter,
    health,
    jobs,
    look,
    outbox,
    queues,
    relay,
    retention,
    scheduler,
    schedules,
    tail,
    top,
    work,
)
from pgqueue.cli.again import spelled_out
from pgqueue.cli.session import DSN, NO_HEADERS, OUTPUT, UTC, VERBOSE, Common, Output
from pgqueue.errors import InvalidInput, PgQueueError

# Typer carries a click of its own in later releases and uses the library in earlier ones: the base of usage
# errors is found through a name that is public in both.
_ClickError: Final[Any] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="pgqueue",
    help="A job queue that lives in your Postgres.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    ctx: typer.Context,
    *,
    dsn: Annotated[list[str] | None, DSN] = None,
    output: Annotated[Output | None, OUTPUT] = None,
    verbose: Annotated[bool, VERBOSE] = False,
    no_headers: Annotated[bool, NO_HEADERS] = False,
    utc: Annotated[bool, UTC] = False,
) -> None:
    common = ctx.ensure_object(Common)
    common.dsns, common.output, common.verbose, common.no_headers, common.utc = (
        dsn or [],
        output,
        verbose,
        no_headers,
        utc,
    )


NOUNS: Final = (
    work,
    scheduler,
    relay,
    everything,
    jobs,
    tail,
    dlq,
    queues,
    retention,
    schedules,
    outbox,
    alerts,
    audit,
    look,
    top,
    health,
    exporter,
    bench,
)
for noun in NOUNS:
    noun.register(app)
app.command()(demo.demo)
app.add_typer(db.app, name="db")


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    _open_streams()
    sys.exit(main(sys.argv[1:] if arguments is None else arguments))


def main(arguments: Sequence[str]) -> int:  # noqa: PLR0911 - one way out per kind of error
    """Run one command and return its exit code; nothing but SystemExit gets out."""
    common = Common()
    if any(_is_garbled(argument) for argument in arguments):
        _complain("pgqueue: an argument is not UTF-8 text; write it in UTF-8")
        return InvalidInput.exit_code
    try:
        code = app(spelled_out(arguments), prog_name="pgqueue", standalone_mode=False, obj=common)
    except PgQueueError as error:
        return _failed(error, str(error), error.exit_code, verbose=common.verbose)
    except _ClickError as error:
        return _misused(error)
    except typer.Abort:
        _complain("stopped before anything was changed")
        return 1
    except OSError as error:
        return _failed(error, f"{type(error).__name__}: {error.strerror}", 1, verbose=common.verbose)
    except Exception as error:  # noqa: BLE001 - the last line of defence; what it was stands below
        hint = "" if common.verbose else "; run it again with -v for the traceback"
        return _failed(error, f"unexpected {type(error).__name__}{hint}", 1, verbose=common.verbose)
    return code if isinstance(code, int) else 0


def _failed(error: BaseException, message: str, code: int, *, verbose: bool) -> int:
    if verbose:
        from pgqueue.core.failure import describe
        from pgqueue.core.redact import Redactor

        # Frames without values: the exception's own text may quote a row.
        _complain(describe(error, task="pgqueue", redact=Redactor()).traceback or "")
    _complain("\n".join(f"pgqueue: {line}" for line in message.splitlines()))
    return code


def _misused(error: Any) -> int:
    context = getattr(error, "ctx", None)
    text = str(error.format_message())
    if "\n" in text:  # the help that a noun without a verb answers with
        _complain(text)
    else:
        path = context.command_path if context is not None else "pgqueue"
        _complain(f"pgqueue: {text.rstrip('.')}; `{path} --help` shows what there is")
    return int(error.exit_code)


def _complain(text: str) -> None:
    try:
        typer.echo(text, err=True)
    except OSError:
        return  # nobody listens; the exit code still speaks


def _open_streams() -> None:
    """Make sure that 0, 1 and 2 are streams of ours, and that words which they cannot spell do no harm.

    Were one closed, the next file or socket would get its number, and talk meant for people would go there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the life of the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_garbled(argument: str) -> bool:
    """Whether the shell passed bytes that are no UTF-8: Python smuggles them in as lone surrogates."""
    return any("\ud800" <= character <= "\udfff" for character in argument)
