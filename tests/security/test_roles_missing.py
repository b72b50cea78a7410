"""A cluster without the roles, and an owner who may not make them: what is said, and how it is mended."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from rig.database import Database

from pgqueue.cli.main import main
from pgqueue.control.desk import Desk
from pgqueue.control.doctor import examine
from pgqueue.control.roles import Roles
from pgqueue.embedded import EmbeddedPostgres
from pgqueue.storage import migrate
from pgqueue.storage.drift import describe_schema, diff, expected_schema

pytestmark = pytest.mark.proves("S4")

ROLES = ["pgqueue_producer", "pgqueue_worker", "pgqueue_operator", "pgqueue_reader"]


@pytest.fixture(scope="module")
def bare() -> Iterator[EmbeddedPostgres]:
    """A server of the module's own: roles belong to the whole cluster."""
    with EmbeddedPostgres(settings={"fsync": "off"}) as server:
        yield server


@pytest.fixture
def owned(bare: EmbeddedPostgres) -> Iterator[Database]:
    """A database whose owner is nobody special, on a server without our roles."""
    with psycopg.connect(bare.dsn(), autocommit=True) as admin:
        admin.execute("CREATE ROLE app LOGIN")
        admin.execute("CREATE DATABASE owned OWNER app")
    database = Database(name="owned", server=bare)
    yield database
    database.close()
    with psycopg.connect(bare.dsn(), autocommit=True) as admin:
        admin.execute("DROP DATABASE owned WITH (FORCE)")
        for role in (*ROLES, "app"):
            admin.execute(f"DROP ROLE IF EXISTS {role}".encode())


def test_the_schema_works_without_the_roles_and_says_so(
    owned: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_owner, as_admin = owned.dsn_as("app"), owned.dsn
    assert main(["db", "upgrade", "--dsn", as_owner]) == 0
    assert "may not create them; see `pgqueue db roles`" in capsys.readouterr().err
    with psycopg.connect(as_owner) as conn:
        assert [str(found) for found in diff(expected_schema(), describe_schema(conn))] == []
        assert conn.execute("SELECT pgqueue.enqueue('t')").fetchone() is not None
    (finding,) = [one for one in examine(Desk(as_owner, via="cli")) if one.check == "roles"]
    assert (finding.verdict, finding.fix) == ("WARN", "pgqueue db roles")
    assert all(role in finding.message for role in ROLES)

    assert main(["db", "roles", "--dsn", as_owner]) == 1
    talk = capsys.readouterr()
    assert all(f"CREATE ROLE {role} NOLOGIN;\n" in talk.out for role in ROLES)
    assert "role pgqueue_worker is missing" in talk.err
    assert main(["db", "roles", "--apply", "--dsn", as_owner]) == 4
    assert "let an administrator run" in capsys.readouterr().err

    # The printed script, run as an administrator, is all it takes.
    assert main(["db", "roles", "--dsn", as_admin]) == 1
    with psycopg.connect(as_admin, autocommit=True) as conn:
        conn.execute(capsys.readouterr().out.encode())
    assert main(["db", "roles", "--dsn", as_owner]) == 0
    roles = Roles(Desk(as_owner, via="cli"))
    assert (roles.missing(), roles.faults()) == ([], [])
    # From here on the owner can repeat the grant alone.
    with psycopg.connect(as_owner, autocommit=True) as conn:
        conn.execute("REVOKE SELECT ON pgqueue.queues FROM pgqueue_reader")
    assert [str(fault) for fault in roles.faults()] == ["pgqueue_reader lacks SELECT on TABLE pgqueue.queues"]
    assert main(["db", "roles", "--apply", "--dsn", as_owner]) == 0
    assert roles.faults() == []


def test_an_owner_who_may_create_roles_makes_them_and_a_downgrade_leaves_them(owned: Database) -> None:
    with psycopg.connect(owned.dsn, autocommit=True) as admin:
        admin.execute("ALTER ROLE app CREATEROLE")
        migrate.upgrade(owned.dsn_as("app"))
        migrate.downgrade(owned.dsn_as("app"), "base")
        left = admin.execute("SELECT count(*) FROM pg_roles WHERE rolname = ANY (%s)", [ROLES]).fetchone()
        assert left == (4,)
        migrate.upgrade(owned.dsn_as("app"))
        assert Roles(Desk(owned.dsn, via="cli")).faults() == []


def test_a_role_that_leads_to_the_owner_is_told(owned: Database) -> None:
    migrate.upgrade(owned.dsn)
    with psycopg.connect(owned.dsn, autocommit=True) as admin:
        admin.execute("ALTER SCHEMA pgqueue OWNER TO app")
        admin.execute("GRANT app TO pgqueue_worker")
        faults = Roles(Desk(owned.dsn, via="cli")).faults()
        assert "pgqueue_worker is a member of app, who owns the schema" in [str(fault) for fault in faults]


def test_many_databases_of_a_cluster_make_the_roles_at_once(bare: EmbeddedPostgres) -> None:
    import threading

    names = [f"many_{n}" for n in range(4)]
    with psycopg.connect(bare.dsn(), autocommit=True) as admin:
        for role in ROLES:
            admin.execute(f"DROP ROLE IF EXISTS {role}".encode())
        for name in names:
            admin.execute(f"CREATE DATABASE {name}".encode())
        errors: list[BaseException] = []

        def upgrade(name: str) -> None:
            try:
                migrate.upgrade(bare.dsn(name))
            except BaseException as error:  # shown below
                errors.append(error)

        threads = [threading.Thread(target=upgrade, args=[name]) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        for name in names:
            assert Roles(Desk(bare.dsn(name), via="cli")).faults() == []
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        for role in ROLES:
            admin.execute(f"DROP ROLE {role}".encode())
