"""The ready-made queries of sql/dba run as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from rig.database import ROOT, Database

FILES = sorted((ROOT / "sql" / "dba").glob("*.sql"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_runs(database: Database, path: Path) -> None:
    conn = database.connect()
    conn.execute("SELECT pgqueue.enqueue('t')")
    conn.execute("SET search_path = pgqueue")
    assert conn.execute(path.read_text()).description is not None
