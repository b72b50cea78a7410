"""What the code says about a database at another revision, without rights, or out of reach."""

from __future__ import annotations

from typing import Protocol

import psycopg
import pytest
from psycopg import sql
from rig.database import Database

from pgqueue.errors import (
    ConfigurationError,
    ConflictError,
    DatabaseUnreachable,
    InvalidOption,
    PgQueueError,
    SchemaMismatch,
)
from pgqueue.storage import migrate

HEAD = migrate.head()
NEXT = f"pgqueue_{int(HEAD[-4:]) + 1:04}"

pytestmark = pytest.mark.proves("I26", "F37")


class Release(Protocol):
    def code_from(self, revision: str) -> None: ...
    def go_back(self) -> None: ...


def one_line(error: pytest.ExceptionInfo[PgQueueError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "hunter2" not in text
    return text


def test_missing_then_at_head(blank: Database) -> None:
    state = migrate.check(blank.dsn)
    assert (state.kind, state.found, state.usable) == ("missing", None, False)
    assert migrate.current(blank.dsn) is None
    with pytest.raises(SchemaMismatch, match=rf"not there.*{HEAD}.*run `pgqueue db upgrade`") as refused:
        migrate.require_head(blank.connect())
    one_line(refused)
    assert refused.value.exit_code == 6
    migrate.upgrade(blank.dsn)
    assert migrate.current(blank.dsn) == HEAD
    assert migrate.check(blank.dsn).usable
    migrate.require_head(blank.connect())


def test_looking_changes_nothing(blank18: Database) -> None:
    migrate.check(blank18.dsn)
    migrate.current(blank18.dsn)
    assert blank18.one("SELECT count(*) FROM pg_namespace WHERE nspname = 'pgqueue'") == 0


def test_a_connection_of_any_row_factory_and_inside_a_transaction_is_fine(blank18: Database) -> None:
    migrate.upgrade(blank18.dsn)
    conn = blank18.connect(autocommit=False, row_factory=psycopg.rows.dict_row)
    conn.execute("CREATE TEMP TABLE mine ()")
    migrate.require_head(conn)
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


def test_older_database_names_both_revisions_and_the_command(
    blank18: Database, request: pytest.FixtureRequest
) -> None:
    migrate.upgrade(blank18.dsn)
    request.getfixturevalue("next_release")
    assert migrate.check(blank18.dsn).kind == "older"
    with pytest.raises(
        SchemaMismatch,
        match=f"at revision {HEAD}, this code expects {NEXT}; run `pgqueue db upgrade`",
    ) as refused:
        migrate.require_head(blank18.connect())
    one_line(refused)
    migrate.upgrade(blank18.dsn)
    assert migrate.check(blank18.dsn).kind == "at_head"


@pytest.mark.proves("OP2")
def test_the_release_before_runs_on_a_newer_schema_that_allows_it(
    blank18: Database, next_release: Release
) -> None:
    migrate.upgrade(blank18.dsn)
    next_release.go_back()
    state = migrate.check(blank18.dsn)
    assert (state.kind, state.found, state.expected, state.usable) == (
        "newer",
        NEXT,
        HEAD,
        True,
    )
    migrate.require_head(blank18.connect())
    assert blank18.one("SELECT pgqueue.enqueue('t')") > 0
    with pytest.raises(SchemaMismatch, match=f"{NEXT}, which this code does not know"):
        migrate.upgrade(blank18.dsn)
    with pytest.raises(SchemaMismatch, match=f"{NEXT}, which this code does not know"):
        migrate.downgrade(blank18.dsn, "base", force=True)


def test_the_release_before_refuses_a_newer_schema_that_forbids_it(
    blank18: Database, next_release: Release
) -> None:
    next_release.code_from(NEXT)
    migrate.upgrade(blank18.dsn)
    migrate.require_head(blank18.connect())
    next_release.go_back()
    assert migrate.check(blank18.dsn).kind == "newer_unknown"
    with pytest.raises(
        SchemaMismatch,
        match=rf"at revision {NEXT}.*knows {HEAD}.*install pgqueue ≥ one that knows {NEXT}",
    ) as refused:
        migrate.require_head(blank18.connect())
    one_line(refused)


def test_a_step_back_takes_the_floor_back_too(blank18: Database, next_release: Release) -> None:
    next_release.code_from(NEXT)
    migrate.upgrade(blank18.dsn)
    migrate.downgrade(blank18.dsn, HEAD)
    assert blank18.one("SELECT code_from FROM pgqueue.alembic_version") == "pgqueue_0001"
    migrate.upgrade(blank18.dsn, HEAD)
    with pytest.raises(ConflictError, match=f"downgrade to {NEXT}: the database is at {HEAD} only"):
        migrate.downgrade(blank18.dsn, NEXT)
    migrate.upgrade(blank18.dsn)
    with pytest.raises(ConflictError, match=f"upgrade to {HEAD}: the database is at {NEXT} already"):
        migrate.upgrade(blank18.dsn, HEAD)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DELETE FROM pgqueue.alembic_version", "no revision recorded"),
        ("INSERT INTO pgqueue.alembic_version VALUES ('pgqueue_0000')", "2 revisions"),
        (
            "DROP TABLE pgqueue.jobs, pgqueue.job_history, pgqueue.dead_letter_jobs CASCADE",
            "its tables are not there",
        ),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pgqueue.dedup_keys_expires_at_idx'::regclass",
            "invalid index dedup_keys_expires_at_idx",
        ),
    ],
)
def test_half_done_is_told_and_not_walked_on(blank18: Database, damage: str, said: str) -> None:
    migrate.upgrade(blank18.dsn)
    blank18.connect().execute(damage)
    assert migrate.check(blank18.dsn).kind == "half_done"
    with pytest.raises(SchemaMismatch, match=said) as refused:
        migrate.require_head(blank18.connect())
    one_line(refused)
    for change in (migrate.upgrade, lambda dsn: migrate.downgrade(dsn, "base", force=True)):
        with pytest.raises(ConflictError, match=said):
            change(blank18.dsn)


@pytest.mark.parametrize("revision", ["", "0001", "pgqueue_9999", "heads", "-1", "x'; DROP TABLE y"])
def test_an_unknown_revision_is_refused_before_anything(revision: str) -> None:
    for call in (migrate.upgrade, migrate.downgrade):
        with pytest.raises(InvalidOption, match="head or one of base, pgqueue_0001"):
            call("host=/nowhere", revision)


@pytest.mark.parametrize("dsn", ["hunter2", "postgresql://u:hunter2@[h/x", "postgresql://u@h/x?hunter2=1"])
def test_a_dsn_that_cannot_be_read_is_a_configuration_error_without_its_text(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="database URL") as refused:
        migrate.upgrade(dsn)
    one_line(refused)
    assert refused.value.exit_code == 78


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:hunter2@127.0.0.1:1/x", "host=/nowhere user=u password=hunter2 dbname=x"]
)
def test_a_server_that_is_not_there_is_exit_5(dsn: str) -> None:
    with pytest.raises(DatabaseUnreachable) as refused:
        migrate.upgrade(dsn)
    one_line(refused)
    assert refused.value.exit_code == 5


def test_a_database_that_is_not_there_is_exit_5(blank18: Database) -> None:
    with pytest.raises(DatabaseUnreachable, match="does not exist"):
        migrate.upgrade(blank18.server.dsn("nowhere"))


@pytest.fixture
def stranger(blank: Database) -> str:
    """A role without any right but to connect."""
    name = f"stranger_{blank.name}"
    with psycopg.connect(blank.dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    return name


def test_a_role_without_the_right_is_told_what_to_ask_for(blank: Database, stranger: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"upgrade from base to pgqueue_0001: 42501 .*CREATE on the database"
    ) as refused:
        migrate.upgrade(blank.dsn_as(stranger))
    one_line(refused)
    migrate.upgrade(blank.dsn)
    with pytest.raises(ConfigurationError, match="42501 permission denied for schema pgqueue"):
        migrate.check(blank.dsn_as(stranger))
    with (
        psycopg.connect(blank.dsn_as(stranger)) as conn,
        pytest.raises(ConfigurationError, match=r"42501.*pgqueue_\* role"),
    ):
        migrate.require_head(conn)


def test_a_role_may_own_a_schema_that_an_administrator_made(blank: Database, stranger: str) -> None:
    """Without CREATE on the database: CREATE SCHEMA IF NOT EXISTS would ask for it all the same."""
    blank.connect().execute(
        sql.SQL("CREATE SCHEMA pgqueue AUTHORIZATION {}").format(sql.Identifier(stranger))
    )
    migrate.upgrade(blank.dsn_as(stranger))
    assert migrate.check(blank.dsn_as(stranger)).kind == "at_head"


def test_a_read_only_server_is_told(blank: Database) -> None:
    blank.connect().execute(
        sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(sql.Identifier(blank.name))
    )
    with pytest.raises(ConfigurationError, match=r"25006.*DSN of the primary") as refused:
        migrate.upgrade(blank.dsn)
    one_line(refused)
    assert migrate.check(blank.dsn).kind == "missing"


def test_limits_that_a_database_sets_do_not_stop_a_migration(blank: Database) -> None:
    name = sql.Identifier(blank.name)
    for setting in (
        "statement_timeout = '1ms'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '1ms'",
        "default_transaction_isolation = serializable",
    ):
        blank.connect().execute(sql.SQL("ALTER DATABASE {} SET " + setting).format(name))
    if blank.server.version >= 17:
        blank.connect().execute(sql.SQL("ALTER DATABASE {} SET transaction_timeout = '100ms'").format(name))
    migrate.upgrade(blank.dsn)
    assert migrate.check(blank.dsn).kind == "at_head"


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_json_is_refused(blank18: Database, encoding: str) -> None:
    name = f"{blank18.name}_{encoding.lower()}"
    with psycopg.connect(blank18.server.dsn(), autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} ENCODING {} TEMPLATE template0").format(
                sql.Identifier(name), encoding
            )
        )
        try:
            with pytest.raises(ConfigurationError, match=f"its encoding is {encoding}.*UTF8"):
                migrate.upgrade(blank18.server.dsn(name))
        finally:
            admin.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
