"""A shell's completion: names that the database knows, quickly or not at all, and never a word beside them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rig.database import Database

from pgqueue.control.names import Kind, known_names


def offered(line: str, dsn: str, cwd: Path) -> tuple[list[str], str]:
    """What bash is offered for the last word of `line`."""
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-m", "pgqueue"],
        env={
            **os.environ,
            "PGQUEUE_DATABASE_URL": dsn,
            "_PGQUEUE_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout.split(), done.stderr


@pytest.fixture
def named(database: Database) -> Database:
    conn = database.connect()
    conn.execute("INSERT INTO pgqueue.queues (name) VALUES ('critical'), ('cold'), ('mail')")
    conn.execute(
        "INSERT INTO pgqueue.tasks (name, queue, priority, max_attempts) VALUES ('capture', 'critical', 5, 1)"
    )
    conn.execute("INSERT INTO pgqueue.schedules (name, task, every_s) VALUES ('nightly', 'capture', 60)")
    conn.execute("SELECT pgqueue.subscribe('ride.done', 'capture')")
    return database


def test_names_that_begin_so(named: Database) -> None:
    wanted: list[tuple[Kind, str, list[str]]] = [
        ("queue", "c", ["cold", "critical"]),
        ("queue", "C", []),
        ("queue", "%", []),
        ("task", "", ["capture"]),
        ("schedule", "night", ["nightly"]),
        ("rule", "NoW", ["NoWorkers"]),
        ("topic", "ride", ["ride.done"]),
        ("worker", "", []),
    ]
    for kind, prefix, names in wanted:
        assert known_names(named.dsn, kind, prefix, limit_s=30) == names, (kind, prefix)


def test_the_shell_is_offered_them_also_from_the_address_on_the_line(named: Database, tmp_path: Path) -> None:
    # Longer than the limit only on a machine that is busy with something else: then nothing is offered, and it is asked again.
    for line, dsn, wanted in (
        ("pgqueue queues pause c", named.dsn, ["cold", "critical"]),
        (f"pgqueue --dsn {named.dsn} jobs cancel --task ca", "host=127.0.0.1 port=1", ["capture"]),
        ("pgqueue que", "host=127.0.0.1 port=1", ["queues"]),
    ):
        found, err = [], ""
        for _ in range(10):
            found, err = offered(line, dsn, tmp_path)
            if found:
                break
        assert (found, err) == (wanted, "")


def test_whatever_goes_wrong_nothing_is_said(
    empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known_names(empty_database.dsn, "queue", "") == []
    assert known_names("host=127.0.0.1 port=1", "queue", "") == []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert known_names(f"host=127.0.0.1 port={silent.getsockname()[1]}", "queue", "", limit_s=0.05) == []
    (tmp_path / "pgqueue.toml").write_text("nonsense = 1\n")
    assert offered("pgqueue queues pause c", empty_database.dsn, tmp_path) == ([], "")
