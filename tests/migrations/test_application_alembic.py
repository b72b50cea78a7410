"""An application that runs our revisions among its own, on each driver SQLAlchemy users have, and as text."""

from __future__ import annotations

import asyncio
import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from rig.database import Database
from sqlalchemy.ext.asyncio import create_async_engine

from alembic import command
from pgqueue import migrations
from pgqueue.storage import migrate
from pgqueue.storage.drift import describe_schema, diff, expected_schema

pytestmark = pytest.mark.proves("OP1")

ENV = """
import sqlalchemy as sa
from alembic import context
from pgqueue import migrations

metadata = sa.MetaData()
sa.Table("rides", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("job_id", sa.BigInteger))
options = dict(
    target_metadata=metadata,
    include_schemas=True,
    include_name=migrations.include_name,
    include_object=migrations.include_object,
)
if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"}, **options)
else:
    context.configure(connection=context.config.attributes["connection"], **options)
with context.begin_transaction():
    context.run_migrations()
"""
RIDES = """
from alembic import op
import sqlalchemy as sa

revision = "rides1"
down_revision = None
branch_labels = ("rides",)
depends_on = "pgqueue_0001"


def upgrade():
    op.create_table("rides", sa.Column("id", sa.Integer, primary_key=True), sa.Column("job_id", sa.BigInteger))
    op.execute("INSERT INTO rides (id, job_id) VALUES (1, pgqueue.enqueue('first'))")


def downgrade():
    op.drop_table("rides")
"""


@pytest.fixture
def application(tmp_path: Path) -> Config:
    """A project with an `alembic.ini` as docs/guides/migrations.md says."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENV)
    (tmp_path / "versions" / "rides1.py").write_text(RIDES)
    ours = migrations.version_locations().replace("%", "%%")
    (tmp_path / "alembic.ini").write_text(
        f"[alembic]\nscript_location = %(here)s\npath_separator = newline\n"
        f"version_locations =\n  %(here)s/versions\n  {ours}\n"
    )
    return Config(tmp_path / "alembic.ini", stdout=io.StringIO())


def run(application: Config, database: Database, driver: str, verb: Any, *args: Any, **kwargs: Any) -> None:
    """`alembic VERB` on one connection of `driver`, as an env.py for sync or async engines does it."""

    def go(connection: sa.Connection) -> None:
        application.attributes["connection"] = connection
        verb(application, *args, **kwargs)
        connection.commit()

    query = {"host": str(database.server.socket_dir), "port": str(database.server.port)}
    url = sa.URL.create(f"postgresql+{driver}", username="postgres", database=database.name, query=query)
    if driver == "asyncpg":

        async def go_async() -> None:
            engine = create_async_engine(url)
            try:
                async with engine.connect() as connection:
                    await connection.run_sync(go)
            finally:
                await engine.dispose()

        asyncio.run(go_async())
        return
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            go(connection)
    finally:
        engine.dispose()


def assert_whole(database: Database) -> None:
    assert migrate.check(database.dsn).kind == "at_head"
    with database.connect() as conn:
        migrate.require_head(conn)
        assert [str(found) for found in diff(expected_schema(), describe_schema(conn))] == []


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_both_branches_up_and_down(blank: Database, application: Config, driver: str) -> None:
    run(application, blank, driver, command.upgrade, "heads")
    assert_whole(blank)
    assert blank.one("SELECT count(*) FROM rides JOIN pgqueue.jobs j ON j.id = job_id") == 1
    # Our own door agrees that there is nothing to do.
    migrate.upgrade(blank.dsn)
    run(application, blank, driver, command.check)
    blank.connect().execute("DELETE FROM pgqueue.jobs")
    run(application, blank, driver, command.downgrade, "rides@base")
    run(application, blank, driver, command.downgrade, "pgqueue@base")
    assert migrate.check(blank.dsn).kind == "missing"
    assert blank.one("SELECT to_regclass('rides')") is None
    assert blank.one("SELECT count(*) FROM alembic_version") == 0


def test_the_application_follows_what_our_own_door_did(blank18: Database, application: Config) -> None:
    migrate.upgrade(blank18.dsn)
    job = blank18.one("SELECT pgqueue.enqueue('before')")
    run(application, blank18, "psycopg", command.upgrade, "heads")
    assert_whole(blank18)
    assert blank18.one("SELECT count(*) FROM pgqueue.jobs WHERE id = %s", [job]) == 1
    blank18.connect().execute("DELETE FROM pgqueue.jobs")
    migrate.downgrade(blank18.dsn, "base")
    run(application, blank18, "psycopg", command.downgrade, "rides@base")
    run(application, blank18, "psycopg", command.downgrade, "pgqueue@base")
    assert blank18.one("SELECT count(*) FROM alembic_version") == 0


def test_the_application_refuses_to_lose_jobs_too(blank18: Database, application: Config) -> None:
    run(application, blank18, "psycopg", command.upgrade, "heads")
    with pytest.raises(sa.exc.DBAPIError, match="loses 1 jobs"):
        run(application, blank18, "psycopg", command.downgrade, "pgqueue@base")
    assert_whole(blank18)


def test_the_application_s_transaction_is_whole(
    blank18: Database, application: Config, tmp_path: Path
) -> None:
    script = tmp_path / "versions" / "rides1.py"
    script.write_text(script.read_text().replace("INSERT INTO rides", "INSERT INTO no_such_table"))
    with pytest.raises(sa.exc.ProgrammingError, match="no_such_table"):
        run(application, blank18, "psycopg", command.upgrade, "heads")
    assert migrate.check(blank18.dsn).kind == "missing"


def test_as_text_for_psql(blank: Database, application: Config) -> None:
    out = io.StringIO()
    application.output_buffer = out
    command.upgrade(application, "heads", sql=True)
    psql(blank, out.getvalue())
    assert_whole(blank)
    assert blank.one("SELECT count(*) FROM rides") == 1


def test_our_own_text_for_psql(blank: Database) -> None:
    psql(blank, migrate.sql())
    assert_whole(blank)
    blank.connect().execute("SELECT pgqueue.enqueue('t')")
    with pytest.raises(AssertionError, match="loses 1 jobs"):
        psql(blank, migrate.sql("head", "base"))
    assert_whole(blank)
    psql(blank, "SET pgqueue.downgrade_force = 'on';\n" + migrate.sql("head", "base"))
    assert migrate.check(blank.dsn).kind == "missing"


def psql(database: Database, text: str) -> None:
    command_line = [database.server.bin_dir / "psql", "-qX", "-v", "ON_ERROR_STOP=1", database.dsn]
    done = subprocess.run(command_line, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("search_path", ["public", "public, pgqueue", "pgqueue, public"])
@pytest.mark.parametrize("include_schemas", [True, False])
def test_autogenerate_sees_nothing_of_ours(
    database: Database, search_path: str, include_schemas: bool
) -> None:
    """Also where the role's search_path holds our schema, as a DBA's may: Alembic then takes our tables for its own."""
    metadata = sa.MetaData()
    sa.Table("rides", metadata, sa.Column("id", sa.Integer, primary_key=True), schema="public")
    database.connect().execute("CREATE TABLE public.rides (id serial PRIMARY KEY)")
    database.connect().execute("CREATE TABLE public.forgotten (id int)")
    engine = sa.create_engine(
        database.sqlalchemy_url, connect_args={"options": f"-c search_path={search_path.replace(' ', '')}"}
    )
    # A schema-less name is where search_path begins, so a table of the application's must be told apart as well.
    options = {"include_schemas": include_schemas}
    with engine.connect() as connection:
        unfiltered = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        filters = {"include_name": migrations.include_name, "include_object": migrations.include_object}
        filtered = compare_metadata(
            MigrationContext.configure(connection, opts={**options, **filters}), metadata
        )
    engine.dispose()

    def removed(found: list[Any]) -> set[str]:
        return {change[1].name for change in found if change[0] == "remove_table"}

    assert removed(filtered) == removed(unfiltered) & {"forgotten", "rides"}
    if include_schemas or "pgqueue" in search_path:
        assert "jobs" in removed(unfiltered)
    assert not [change for change in filtered if "pgqueue" in str(change)]


def test_a_table_of_the_application_s_with_a_name_of_ours_is_seen() -> None:
    theirs = sa.Table("jobs", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("salary", sa.Integer))
    ours = sa.Table(
        "jobs",
        sa.MetaData(),
        *[
            sa.Column(name.split(".")[2])
            for name in expected_schema()
            if name.startswith("column pgqueue.jobs.")
        ],
    )
    assert migrations.include_object(theirs, "jobs", "table", True, None)
    assert not migrations.include_object(ours, "jobs", "table", True, None)
