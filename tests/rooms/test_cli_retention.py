"""`pgqueue queues keep`: one queue's history, shorter than the rest; refused where it makes no sense, audited where it is done."""

from __future__ import annotations

import psycopg
import pytest
from rig.database import Database

from pgqueue.cli.main import main


@pytest.fixture
def conn(database: Database) -> psycopg.Connection:
    conn = database.connect()
    conn.execute("INSERT INTO pgqueue.queues (name) VALUES ('mail')")
    return conn


def test_a_queue_keeps_its_history_shorter_and_as_all_again(
    database: Database, conn: psycopg.Connection
) -> None:
    def keep(*options: str) -> int:
        return main(["--dsn", database.dsn, "queues", "keep", "mail", *options])

    def days() -> int | None:
        row = conn.execute("SELECT history_days FROM pgqueue.queues WHERE name = 'mail'").fetchone()
        assert row is not None
        kept: int | None = row[0]
        return kept

    assert keep("--days", "3", "--dry-run") == 0
    assert days() is None
    assert keep("--days", "3", "--reason", "small talk") == 0
    assert days() == 3
    assert keep("--as-all") == 0
    assert days() is None
    assert conn.execute(
        "SELECT action, target, via, reason, detail FROM pgqueue.operator_audit ORDER BY id"
    ).fetchall() == [
        ("keep_history", "queue mail", "cli", "small talk", {"history_days": 3}),
        ("keep_history", "queue mail", "cli", None, {"history_days": None}),
    ]


@pytest.mark.parametrize("options", [[], ["--days", "0"], ["--days", "3", "--as-all"]])
def test_what_makes_no_sense_is_refused(
    database: Database, conn: psycopg.Connection, options: list[str]
) -> None:
    assert main(["--dsn", database.dsn, "queues", "keep", "mail", *options]) == 2
    assert conn.execute("SELECT count(*) FROM pgqueue.operator_audit").fetchone() == (0,)


def test_a_queue_nobody_knows_is_told(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dsn", database.dsn, "queues", "keep", "nowhere", "--days", "3"]) == 3
    assert "queue nowhere: not known" in capsys.readouterr().err
