"""The schema files, the frozen revisions and what they leave in a database are one and the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from rig.database import ROOT, Database

from pgqueue.errors import ConflictError
from pgqueue.storage import migrate
from pgqueue.storage.drift import describe_schema, diff, expected_schema

pytestmark = pytest.mark.proves("OP1")

FREEZE = "python tests/migrations/freeze.py"
# Of these a description keeps less than the server says, so that servers and restored dumps agree.
EXACTLY = """SELECT c.relname::text, pg_get_viewdef(c.oid) FROM pg_class c
             WHERE c.relnamespace = 'pgqueue'::regnamespace AND c.relkind = 'v'
             UNION ALL SELECT k.conname::text, pg_get_constraintdef(k.oid) FROM pg_constraint k
             WHERE k.connamespace = 'pgqueue'::regnamespace AND k.conrelid IS DISTINCT FROM to_regclass('pgqueue.alembic_version') ORDER BY 1, 2"""
# Every object of a database that is not Postgres's own, by catalog; what a downgrade to base must not leave.
EVERYTHING = """
SELECT 'schema', nspname::text FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
UNION ALL SELECT 'relation', oid::regclass::text FROM pg_class WHERE oid >= 16384 AND relkind NOT IN ('t', 'i', 'I')
UNION ALL SELECT 'function', oid::regprocedure::text FROM pg_proc WHERE oid >= 16384
UNION ALL SELECT 'type', oid::regtype::text FROM pg_type WHERE oid >= 16384
UNION ALL SELECT 'default grants', oid::text FROM pg_default_acl
UNION ALL SELECT 'comment', objoid::text FROM pg_description WHERE objoid >= 16384 ORDER BY 1, 2"""


def fresh(database: Database) -> None:
    with database.connect() as conn:
        for file in sorted((ROOT / "sql" / "schema").glob("*.sql")):
            conn.execute(file.read_bytes())


def described(database: Database) -> dict[str, object]:
    with database.connect() as conn:
        return describe_schema(conn)


def freezer() -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("freeze", Path(__file__).with_name("freeze.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_frozen_files_are_the_schema_files_of_today() -> None:
    freeze = freezer()
    if freeze.RELEASED:
        pytest.skip("the revisions are released: what is equal is the result, see the next tests")
    for path, text in freeze.frozen_texts().items():
        assert path.read_text() == text, f"sql/schema has changed: run {FREEZE}"


def test_a_fresh_install_equals_an_upgraded_one(blank: Database) -> None:
    migrate.upgrade(blank.dsn)
    upgraded, exactly = described(blank), blank.connect().execute(EXACTLY).fetchall()
    migrate.downgrade(blank.dsn, "base")
    fresh(blank)
    differences = diff(described(blank), upgraded)
    assert not differences, f"fresh ≠ upgraded; run {FREEZE}:\n" + "\n".join(map(str, differences))
    assert blank.connect().execute(EXACTLY).fetchall() == exactly
    assert len(upgraded) > 200


def test_the_shipped_description_is_the_same_on_every_server(blank: Database) -> None:
    fresh(blank)
    differences = diff(expected_schema(), described(blank))
    assert not differences, f"expected.json is not sql/schema of today; run {FREEZE}:\n" + "\n".join(
        map(str, differences)
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "ALTER TABLE pgqueue.jobs ALTER COLUMN attempt SET DEFAULT 1",
            'column pgqueue.jobs.attempt: default is "1", expected "0"',
        ),
        (
            "ALTER TABLE pgqueue.jobs DROP CONSTRAINT jobs_state_check",
            "constraint pgqueue.jobs.jobs_state_check: missing",
        ),
        (
            "DROP INDEX pgqueue.dead_letter_jobs_fingerprint_idx",
            "index pgqueue.dead_letter_jobs_fingerprint_idx: missing",
        ),
        ("ALTER TABLE pgqueue.jobs ADD COLUMN x int", "column pgqueue.jobs.x: not expected"),
        ("COMMENT ON TABLE pgqueue.jobs IS NULL", "table pgqueue.jobs: comment is nothing, expected"),
        (
            "GRANT SELECT ON pgqueue.jobs TO PUBLIC",
            'table pgqueue.jobs: grants is ["PUBLIC: SELECT"], expected',
        ),
        (
            "ALTER FUNCTION pgqueue.wake(text) SET search_path = public",
            "function pgqueue.wake(queue text): settings is",
        ),
        ("ALTER TABLE pgqueue.jobs RESET (autovacuum_vacuum_threshold)", "table pgqueue.jobs: options is"),
        (
            "CREATE TRIGGER t BEFORE DELETE ON pgqueue.jobs FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "trigger pgqueue.jobs.t: not expected",
        ),
    ],
)
def test_drift_is_told(blank18: Database, change: str, said: str) -> None:
    migrate.upgrade(blank18.dsn)
    before = described(blank18)
    blank18.connect().execute(change)
    differences = diff(before, described(blank18))
    assert len(differences) == 1, "\n".join(map(str, differences))
    assert str(differences[0]).startswith(said)


def test_a_change_inside_a_function_or_view_is_told(blank18: Database) -> None:
    migrate.upgrade(blank18.dsn)
    before = described(blank18)
    function = blank18.one("SELECT pg_get_functiondef('pgqueue.wake(text)'::regprocedure)")
    view = blank18.one("SELECT pg_get_viewdef('pgqueue.dead_letter_summary'::regclass)")
    assert "count(*)" in view
    blank18.connect().execute(function.replace("BEGIN", "BEGIN PERFORM 1;", 1))
    blank18.connect().execute(
        "CREATE OR REPLACE VIEW pgqueue.dead_letter_summary AS " + view.replace("count(*)", "count(1)")
    )
    assert [str(found).partition(" is ")[0] for found in diff(before, described(blank18))] == [
        "function pgqueue.wake(queue text): body",
        "view pgqueue.dead_letter_summary: definition",
    ]


def test_downgrade_to_base_leaves_nothing(blank: Database) -> None:
    before = blank.connect().execute(EVERYTHING).fetchall()
    migrate.upgrade(blank.dsn)
    assert len(blank.connect().execute(EVERYTHING).fetchall()) > len(before) + 50
    migrate.downgrade(blank.dsn, "base")
    assert blank.connect().execute(EVERYTHING).fetchall() == before


def test_up_down_up_is_the_same(blank18: Database) -> None:
    migrate.upgrade(blank18.dsn)
    first = described(blank18)
    migrate.downgrade(blank18.dsn, "base")
    migrate.upgrade(blank18.dsn)
    assert described(blank18) == first


def test_every_object_has_a_comment(blank18: Database) -> None:
    migrate.upgrade(blank18.dsn)
    silent = [
        name
        for name, facts in described(blank18).items()
        if re.match(r"(schema|table|view|function|column) ", name)
        and not re.match(r"table pgqueue\.\w+_default$", name)
        and isinstance(facts, dict)
        and not facts.get("comment")
    ]
    views = {name.split()[1] for name in described(blank18) if name.startswith("view ")}
    silent = [name for name in silent if name.split()[1].rpartition(".")[0] not in views]
    assert silent == []
    version_table = (
        """SELECT count(*) FROM pg_description WHERE objoid = 'pgqueue.alembic_version'::regclass"""
    )
    assert blank18.one(version_table) == 3


def open_to_all(database: Database) -> list[str]:
    return [
        name
        for name, facts in described(database).items()
        if isinstance(facts, dict) and "PUBLIC" in json.dumps(facts.get("grants"))
    ]


@pytest.mark.parametrize("revision", migrate.revisions())
def test_public_may_do_nothing_at_any_revision(blank18: Database, revision: str) -> None:
    """Each revision says anew what Public loses: a function that one of them adds is open to everybody until then."""
    migrate.upgrade(blank18.dsn, revision)
    assert open_to_all(blank18) == []
    assert (
        blank18.one(
            "SELECT count(*) FROM pg_class, aclexplode(relacl) a WHERE relname = 'alembic_version' AND a.grantee = 0"
        )
        == 0
    )
    blank18.connect().execute("CREATE FUNCTION pgqueue.planted() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    assert open_to_all(blank18) == ["function pgqueue.planted()"], "the test sees what it looks for"


def test_revisions_are_one_line_that_the_file_names_tell() -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "alembic"))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())[::-1]
    assert [script.revision for script in scripts] == migrate.revisions()
    assert [script.down_revision for script in scripts] == [None, *migrate.revisions()[:-1]]
    assert ScriptDirectory.from_config(config).get_current_head() == migrate.head()
    for script in scripts:
        path = Path(script.path)
        assert path.name.startswith(script.revision.removeprefix("pgqueue_") + "_")
        assert script.module.code_from in migrate.revisions()
        assert script.module.code_from <= script.revision
        for kind in (".sql", ".down.sql"):
            assert path.with_suffix(kind).read_text().strip()
    assert "pgqueue" in scripts[0].branch_labels


def test_a_restored_dump_is_at_head_and_the_same(blank: Database) -> None:
    """Fault of the field: versions, comments or rights lost by dump and restore."""
    migrate.upgrade(blank.dsn)
    before = described(blank)
    programs = blank.server.bin_dir
    dump = subprocess.run(
        [programs / "pg_dump", "-n", "pgqueue", blank.dsn], capture_output=True, check=True
    ).stdout
    blank.connect().execute("DROP SCHEMA pgqueue CASCADE")
    assert migrate.check(blank.dsn).kind == "missing"
    env = {**os.environ, "PGOPTIONS": "-c client_min_messages=warning"}
    restored = subprocess.run(
        [programs / "psql", "-q", "-v", "ON_ERROR_STOP=1", blank.dsn],
        input=dump,
        capture_output=True,
        env=env,
    )
    assert restored.returncode == 0, restored.stderr.decode()
    assert migrate.check(blank.dsn).kind == "at_head"
    assert [str(found) for found in diff(before, described(blank))] == []


def test_downgrade_refuses_to_lose_schedules_that_people_made(blank: Database) -> None:
    migrate.upgrade(blank.dsn)
    conn = blank.connect()
    put = """SELECT pgqueue.put_schedule('{"name": "s", "task": "t", "cron": "0 0 * * *"}', %s)"""
    conn.execute(put, ["sql"])
    with pytest.raises(ConflictError, match=r"downgrade to pgqueue_0001 loses 1 schedules.*--force"):
        migrate.downgrade(blank.dsn, "pgqueue_0001")
    assert migrate.check(blank.dsn).found == "pgqueue_0002"  # what came after them is gone, they are not
    conn.execute(put, ["code"])
    migrate.downgrade(blank.dsn, "pgqueue_0001")
    migrate.upgrade(blank.dsn)
    conn.execute(put, ["sql"])
    migrate.downgrade(blank.dsn, "base", force=True)
    assert migrate.check(blank.dsn).kind == "missing"


@pytest.mark.proves("P6")
@pytest.mark.parametrize("what", ["job", "dead letter", "message"])
def test_downgrade_refuses_to_lose_jobs_unless_forced(blank: Database, what: str) -> None:
    migrate.upgrade(blank.dsn)
    conn = blank.connect()
    conn.execute("SELECT pgqueue.enqueue('t')")
    if what == "dead letter":
        conn.execute("""INSERT INTO pgqueue.dead_letter_jobs (job_id, queue, task, args, priority, reason, attempts, max_attempts,
            first_failed_at, failed_at, created_at, job_created_at)
            SELECT id, queue, task, args, priority, 'gave_up', 1, 1, now(), now(), now(), created_at FROM pgqueue.jobs""")
        conn.execute("DELETE FROM pgqueue.jobs")
    if what == "message":
        conn.execute("DELETE FROM pgqueue.jobs")
        conn.execute("SELECT pgqueue.emit('ride.completed')")
    loss = migrate.jobs_at_stake(blank.dsn)
    assert (loss.live, loss.dead, loss.messages) == {
        "job": (1, 0, 0),
        "dead letter": (0, 1, 0),
        "message": (0, 0, 1),
    }[what]
    with pytest.raises(ConflictError, match=f"loses {loss}.*--force") as refused:
        migrate.downgrade(blank.dsn, "base")
    assert "\n" not in str(refused.value)
    assert migrate.check(blank.dsn).kind == "at_head"
    assert migrate.jobs_at_stake(blank.dsn) == loss
    migrate.downgrade(blank.dsn, "base", force=True)
    assert migrate.check(blank.dsn).kind == "missing"


def test_downgrade_leaves_other_peoples_objects_in_the_schema_alone(blank18: Database) -> None:
    migrate.upgrade(blank18.dsn)
    conn = blank18.connect()
    conn.execute("CREATE TABLE pgqueue.theirs (id int)")
    migrate.downgrade(blank18.dsn, "base")
    assert conn.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'pgqueue'::regnamespace"
    ).fetchall() == [("theirs",)]


def test_downgrade_refuses_to_break_what_depends_on_it(blank18: Database) -> None:
    migrate.upgrade(blank18.dsn)
    conn = blank18.connect()
    conn.execute("CREATE VIEW public.mine AS SELECT id FROM pgqueue.jobs")
    with pytest.raises(ConflictError, match="other objects depend on it; drop what depends"):
        migrate.downgrade(blank18.dsn, "base")
    # Each revision is a step of its own: those after the one that refused are taken back.
    assert migrate.check(blank18.dsn).found == "pgqueue_0001"
    conn.execute("DROP VIEW public.mine")
    migrate.downgrade(blank18.dsn, "base")


def test_upgrade_refuses_a_schema_of_that_name_that_is_not_ours(blank18: Database) -> None:
    conn = blank18.connect()
    conn.execute("CREATE SCHEMA pgqueue")
    conn.execute("CREATE TABLE pgqueue.jobs (theirs int)")
    assert migrate.check(blank18.dsn).kind == "half_done"
    with pytest.raises(ConflictError, match="1 of its tables there, and no revision recorded"):
        migrate.upgrade(blank18.dsn)
    conn.execute("DROP TABLE pgqueue.jobs")
    # A function is no relation, so this one is met by the revision itself.
    conn.execute("CREATE FUNCTION pgqueue.wake(queue text) RETURNS void LANGUAGE sql AS ''")
    with pytest.raises(ConflictError, match="that pgqueue did not make"):
        migrate.upgrade(blank18.dsn)
    assert migrate.check(blank18.dsn).kind == "missing"


def test_an_empty_schema_made_by_an_administrator_is_taken(blank18: Database) -> None:
    blank18.connect().execute("CREATE SCHEMA pgqueue")
    migrate.upgrade(blank18.dsn)
    assert migrate.check(blank18.dsn).kind == "at_head"


def test_a_hostile_search_path_reaches_no_migration(blank18: Database) -> None:
    conn = blank18.connect()
    conn.execute("CREATE SCHEMA evil")
    conn.execute(
        "CREATE FUNCTION evil.to_char(date, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$"
    )
    conn.execute(
        "CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$"
    )
    blank18.connect().execute(
        psycopg.sql.SQL("ALTER DATABASE {} SET search_path = evil, pg_catalog").format(
            psycopg.sql.Identifier(blank18.name)
        )
    )
    migrate.upgrade(blank18.dsn)
    assert [str(found) for found in diff(expected_schema(), described(blank18))] == []


@pytest.mark.parametrize("form", ["RETURN {}", "BEGIN ATOMIC SELECT {}; END", "AS 'SELECT {}'"])
def test_a_changed_body_is_seen_however_it_is_written(database: Database, form: str) -> None:
    """A body in standard SQL is kept parsed: its text, which a function of another kind has, is empty."""
    conn = database.connect()
    head = "CREATE OR REPLACE FUNCTION pgqueue.answer() RETURNS integer LANGUAGE sql "
    conn.execute((head + form.format(1)).encode())
    before = describe_schema(conn)
    conn.execute((head + form.format(1)).encode())
    assert diff(before, describe_schema(conn)) == []
    conn.execute((head + form.format(2)).encode())
    (found,) = diff(before, describe_schema(conn))
    assert (found.subject, found.fact) == ("function pgqueue.answer()", "body")
