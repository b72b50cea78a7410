"""The command line starts without what only some verbs need: its help must not wait for drivers and settings."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = (
    "psycopg",
    "sqlalchemy",
    "pydantic",
    "pydantic_settings",
    "alembic",
    "croniter",
    "structlog",
    "httpx",
    "prometheus_client",
    "textual",
)


def test_the_front_of_the_command_line_imports_nothing_heavy() -> None:
    text = "import sys, pgqueue.cli.main; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "typer" in loaded
    assert loaded & set(HEAVY) == set()


WORKERS = ("pgqueue.app", "pgqueue.worker", "pgqueue.scheduler", "pgqueue.outbox", "pgqueue.observe")
DATABASE = ("psycopg", "pydantic_settings")
BIG = ("sqlalchemy", "alembic", "structlog", "croniter", "prometheus_client", "textual", "opentelemetry")


@pytest.mark.parametrize(
    ("verb", "without"),
    [
        ("version", (*DATABASE, *BIG, *WORKERS)),
        ("health --port 1", (*DATABASE, *BIG, *WORKERS)),
        ("jobs list", (*BIG, *WORKERS)),
        ("dlq list", (*BIG, *WORKERS)),
        ("queues list", (*BIG, *WORKERS)),
        ("stats", (*BIG, *WORKERS)),
        ("health", (*BIG, *WORKERS)),
        ("audit list", (*BIG, *WORKERS)),
    ],
)
def test_a_verb_imports_only_what_it_needs(verb: str, without: tuple[str, ...]) -> None:
    """Time differs between machines; what is imported does not, and is what the time goes into."""
    text = f"import sys; from pgqueue.cli.main import main; main({verb.split()!r}); sys.stderr.write(' '.join(sys.modules))"
    environment = {**os.environ, "PGQUEUE_DATABASE_URL": "host=127.0.0.1 port=1"}
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, env=environment
    )
    loaded = set(done.stderr.split())
    assert "typer" in loaded
    assert loaded & set(without) == set()
