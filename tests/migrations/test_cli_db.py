"""`pgqueue db …`: answers on stdout, talk on stderr, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import subprocess

import pytest
from rig.database import Database
from typer.testing import CliRunner, Result

from pgqueue.cli import db
from pgqueue.errors import ConfigurationError, ConflictError, DatabaseUnreachable, InvalidOption
from pgqueue.storage import migrate

HEAD = migrate.head()

pytestmark = pytest.mark.proves("I26", "OP1")


def call(database: Database | None, *args: str, dsn: str = "") -> Result:
    where = ["--dsn", database.dsn if database else dsn] if args[0] != "sql" else []
    return CliRunner().invoke(db.app, [*args, *where])


def test_a_life(blank: Database) -> None:
    done = call(blank, "check")
    assert done.exit_code == 6
    assert "run `pgqueue db upgrade`" in done.stderr
    assert "missing" in done.stdout
    assert call(blank, "current", "-o", "name").stdout == "base\n"

    done = call(blank, "upgrade", "--dry-run")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", f"would upgrade from base to {HEAD}\n")
    assert migrate.check(blank.dsn).kind == "missing"

    done = call(blank, "upgrade")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", f"upgraded from base to {HEAD}\n")
    assert call(blank, "upgrade").stderr == f"at {HEAD} already: nothing to do\n"
    assert call(blank, "current", "-o", "name").stdout == f"{HEAD}\n"

    done = call(blank, "check", "-o", "json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "state": "at_head",
        "revision": HEAD,
        "expected": HEAD,
        "usable": True,
    }
    assert (
        call(blank, "check", "-o", "csv").stdout
        == f"state,revision,expected,usable\nat_head,{HEAD},{HEAD},true\n"
    )
    assert call(blank, "check").stdout.splitlines() == [
        "state    revision      expected      usable",
        f"at_head  {HEAD}  {HEAD}  true",
    ]

    blank.connect().execute("SELECT pgqueue.enqueue('t')")
    done = call(blank, "downgrade", "base", "--dry-run")
    assert (
        done.stderr
        == f"would downgrade from {HEAD} to base\nwould lose 1 live jobs and 0 dead letters that wait for a decision\n"
    )
    done = call(blank, "downgrade", "base")
    assert isinstance(done.exception, ConflictError)
    assert "--force" in str(done.exception)
    done = call(blank, "downgrade", "base", "--force")
    assert (done.exit_code, done.stdout) == (0, "")
    assert (
        done.stderr
        == f"downgraded from {HEAD} to base\nlost 1 live jobs and 0 dead letters that wait for a decision\n"
    )
    assert call(blank, "downgrade", "base").stderr == "at base already: nothing to do\n"


def test_sql_is_data_alone() -> None:
    done = call(None, "sql")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == migrate.sql()
    assert done.stdout.lstrip().startswith("BEGIN;")
    assert call(None, "sql", "head", "base").stdout == migrate.sql("head", "base")


def test_sql_reaches_psql(blank18: Database) -> None:
    text = call(None, "sql").stdout
    psql = [blank18.server.bin_dir / "psql", "-qX", "-v", "ON_ERROR_STOP=1", blank18.dsn]
    assert subprocess.run(psql, input=text, capture_output=True, text=True).returncode == 0
    assert migrate.check(blank18.dsn).kind == "at_head"


@pytest.mark.parametrize(
    ("args", "dsn", "kind", "code"),
    [
        (("upgrade",), "host=/nowhere", DatabaseUnreachable, 5),
        (("check",), "host=/nowhere", DatabaseUnreachable, 5),
        (("upgrade", "pgqueue_9999"), "host=/nowhere", InvalidOption, 2),
        (("upgrade",), "not a dsn", ConfigurationError, 78),
    ],
)
def test_errors_leave_with_their_exit_code(
    args: tuple[str, ...], dsn: str, kind: type[Exception], code: int
) -> None:
    done = call(None, *args, dsn=dsn)
    assert isinstance(done.exception, kind)
    assert done.exception.exit_code == code  # type: ignore[attr-defined]
    assert done.stdout == ""


@pytest.mark.parametrize(
    "args",
    [("downgrade",), ("upgrade", "--nonsense"), ("check", "-o", "xml"), ("upgrade", "--lock-wait", "-1")],
)
def test_wrong_usage_is_exit_2(args: tuple[str, ...]) -> None:
    assert CliRunner().invoke(db.app, list(args)).exit_code == 2


def test_the_database_comes_from_the_settings_and_past_a_pooler(
    blank18: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", "postgresql://pooler.invalid/x")
    monkeypatch.setenv("PGQUEUE_DIRECT_DATABASE_URL", blank18.dsn)
    done = CliRunner().invoke(db.app, ["upgrade"])
    assert (done.exit_code, done.exception) == (0, None)
    assert migrate.check(blank18.dsn).kind == "at_head"
