"""What the README shows runs as written."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rig.database import Database

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def block(language: str, containing: str) -> str:
    found = [b for b in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in b]
    assert len(found) == 1
    return str(found[0])


def test_the_fifteen_lines_enqueue_run_and_settle_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUE_DATABASE_URL", database.dsn)
    conn = database.connect()
    conn.execute("CREATE TABLE captures (ride_id int, amount_cents int)")
    conn.execute("CREATE TABLE rides (id int, status text)")
    conn.execute("INSERT INTO rides VALUES (7, 'confirmed')")
    shown: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block("python", "capture_payment"), "README.md", "exec"), shown)
    shown["complete_ride"](database.dsn, 7)
    shown["complete_ride"](database.dsn, 7)
    assert shown["app"].worker("critical", concurrency=2, drain=True).run() == 0
    assert conn.execute("SELECT * FROM captures").fetchall() == [(7, 1250)]
    assert conn.execute("SELECT state, result FROM pgqueue.job_history").fetchall() == [
        ("succeeded", {"captured": 1250})
    ]
    shown["app"].close()
    assert "readme" not in sys.modules


def test_the_dbas_query_runs_as_written(database: Database) -> None:
    with psycopg.connect(database.dsn) as conn:
        for statement in block("sql", "dead_letter_jobs").strip().split(";\n"):
            conn.execute(statement)


def test_the_sql_enqueue_runs_as_written(database: Database) -> None:
    found = re.search(r"`(SELECT pgqueue\.enqueue\(.*?\);)`", README)
    assert found is not None
    assert database.one(found[1]) > 0


def test_links_lead_somewhere() -> None:
    root = Path(__file__).resolve().parents[2]
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (root / target).exists(), target
