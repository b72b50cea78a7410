"""The command line starts without what only some verbs need: its help must not wait for drivers and settings."""

from __future__ import annotations

import subprocess
import sys

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
