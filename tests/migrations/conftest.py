"""Databases without our schema, on both servers, and a later release to upgrade to."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from rig.database import ROOT, Database

from pgqueue.embedded import EmbeddedPostgres
from pgqueue.storage import known, migrate

HEAD = known.head()
NEXT = f"pgqueue_{int(HEAD[-4:]) + 1:04}"

_numbers = itertools.count(1)

NEXT_PY = '''"""A later release's revision."""
from pathlib import Path
from pgqueue.storage import frozen

revision = "NEXT"
down_revision = "HEAD"
branch_labels = None
depends_on = None
code_from = "pgqueue_0001"


def upgrade() -> None:
    frozen.upgrade(Path(__file__), revision, code_from)


def downgrade() -> None:
    frozen.downgrade(Path(__file__), down_revision)
'''


def _blank(server: EmbeddedPostgres) -> Iterator[Database]:
    name = f"blank_{next(_numbers)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    database = Database(name=name, server=server)
    try:
        yield database
    finally:
        database.close()
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(params=["18", "15"])
def blank(request: pytest.FixtureRequest) -> Iterator[Database]:
    """An empty database, on the newest and on the oldest supported server."""
    yield from _blank(request.getfixturevalue("pg" if request.param == "18" else "pg15"))


@pytest.fixture
def blank18(pg: EmbeddedPostgres) -> Iterator[Database]:
    """An empty database on PostgreSQL 18."""
    yield from _blank(pg)


@dataclass(frozen=True, slots=True)
class Release:
    """Revisions as a later release ships them: ours and one more."""

    folder: Path
    _patch: pytest.MonkeyPatch

    def go_back(self) -> None:
        """From here on the code under test is the release before again."""
        self._patch.undo()

    def code_from(self, revision: str) -> None:
        """Say that the last revision may only be used by code that knows `revision`."""
        script = self.folder / "versions" / f"{NEXT[-4:]}_next.py"
        script.write_text(
            script.read_text().replace('code_from = "pgqueue_0001"', f'code_from = "{revision}"')
        )


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Release]:
    """The code under test knows one more revision, which adds a column to the hot table."""
    folder = tmp_path / "alembic"
    shutil.copytree(ROOT / "alembic", folder, ignore=shutil.ignore_patterns("__pycache__"))
    versions = folder / "versions"
    name = f"{NEXT[-4:]}_next"
    (versions / f"{name}.py").write_text(NEXT_PY.replace("NEXT", NEXT).replace("HEAD", HEAD))
    (versions / f"{name}.sql").write_text("ALTER TABLE pgqueue.jobs ADD COLUMN note text;\n")
    (versions / f"{name}.down.sql").write_text("ALTER TABLE pgqueue.jobs DROP COLUMN note;\n")
    with monkeypatch.context() as patch:
        for module in (migrate, known):
            patch.setattr(module, "alembic_dir", lambda: folder)
        yield Release(folder, patch)
