"""`pgqueue health`: whether the queues are served, or whether one process of this machine is well; for probes and scripts."""

from __future__ import annotations

from typing import Annotated, Final

import orjson
import typer

from pgqueue.cli.queues import queues_of
from pgqueue.cli.session import Output, Session, verb
from pgqueue.errors import DatabaseUnreachable, SchemaMismatch

PROBE_TIMEOUT_S: Final = 5.0
_CODES: Final = {"database": DatabaseUnreachable.exit_code, "schema": SchemaMismatch.exit_code}


def register(app: typer.Typer) -> None:
    """Hang the verb into the command line."""
    verb(app)(health)


def health(
    session: Session,
    *,
    queue: Annotated[str | None, typer.Option("--queue", help="Only this queue.", show_default=False)] = None,
    max_lag: Annotated[str, typer.Option("--max-lag", help="A due job may wait so long.")] = "60s",
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=1,
            max=65_535,
            help="Ask the process on this machine that serves health or metrics there.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Exit code 0 if the schema fits, every queue with due jobs has a worker and none waits too long; else 1, 5 or 6."""
    from pgqueue.core.durations import parse_duration

    max_lag_s = parse_duration(max_lag, field="max_lag")
    if port is None:
        problems, code = list(queues_of(session).ailments(queue, max_lag_s=max_lag_s)), 1
    else:
        problems, code = _probe(port)
    if session.output is Output.TABLE:
        for problem in problems or ["healthy"]:
            session.printer.line(problem)
    else:
        session.printer.one({"healthy": not problems, "problems": problems}, name="healthy", kind="health")
    return code if problems else 0


def _probe(port: int) -> tuple[list[str], int]:
    """What a process of this machine says about itself, nothing if it is ready; and the exit code if it is not."""
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read(4096)
    except (OSError, HTTPException) as error:
        return [f"port {port}: no answer ({type(error).__name__}); does a process serve health there?"], 1
    finally:
        connection.close()
    if answer.status == 200:
        return [], 0
    failing = _failing(body)
    if not failing:
        return [f"port {port}: answers {answer.status}; is it a process of pgqueue?"], 1
    code = next((_CODES[name] for name in failing if name in _CODES), 1)
    return [f"port {port}: not ready: {', '.join(failing)}"], code


def _failing(body: bytes) -> list[str]:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    names = said.get("failing") if isinstance(said, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []
