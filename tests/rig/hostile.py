"""A search_path that means harm: a schema that shadows what our SQL calls, each shadow raising when it is reached."""

from __future__ import annotations

import psycopg
from psycopg import sql
from rig.database import ROOT, Database

_NAMES = "SELECT coalesce(array_agg(DISTINCT p.proname::text), '{}') FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace"

_FUNCTIONS = """
DO $plant$
DECLARE
  f record;
BEGIN
  FOR f IN SELECT p.oid, p.proname, pg_get_function_identity_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
      FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f'
        AND p.proname = ANY (string_to_array(current_setting('rig.names'), ','))
        AND 'internal'::regtype <> ALL (p.proargtypes) AND '"any"'::regtype <> ALL (p.proargtypes) LOOP
    BEGIN
      EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION ''hijacked: %s''; END $f$',
        f.proname, f.arguments, f.result, f.proname);
    EXCEPTION WHEN OTHERS THEN
      RAISE NOTICE 'not shadowed: % (%)', f.proname, SQLERRM;
    END;
  END LOOP;
END $plant$
"""

_OPERATORS = """
DO $plant$
DECLARE
  o record;
  n integer := 0;
BEGIN
  FOR o IN SELECT p.oprname, p.oprleft::regtype AS l, p.oprright::regtype AS r, p.oprresult::regtype AS result
      FROM pg_operator p WHERE p.oprnamespace = 'pg_catalog'::regnamespace AND p.oprkind = 'b'
        AND p.oprname IN ('=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '||', '~', '!~', '->', '->>', '#>>')
        AND p.oprleft = ANY (ARRAY['bigint', 'integer', 'smallint', 'text', 'uuid', 'timestamptz', 'interval', 'jsonb',
          'double precision', 'boolean', 'anycompatiblearray']::regtype[])
        AND p.oprright = ANY (ARRAY['bigint', 'integer', 'smallint', 'text', 'uuid', 'timestamptz', 'interval', 'jsonb',
          'double precision', 'boolean', 'anycompatiblearray', 'anycompatible']::regtype[]) LOOP
    n := n + 1;
    EXECUTE format('CREATE FUNCTION evil.operator_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION ''hijacked: %s''; END $f$',
      n, o.l, o.r, o.result, o.oprname);
    EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.operator_%s)', o.oprname, o.l, o.r, n);
  END LOOP;
END $plant$
"""


def plant(database: Database) -> None:
    """Make the schema `evil` and put it first in the search_path of every new connection to this database."""
    conn = database.connect()
    used = set(conn.execute(_NAMES).fetchone()[0])  # type: ignore[index]
    text = "".join(path.read_text() for path in (ROOT / "sql").rglob("*.sql"))
    names = sorted(name for name in used if f"{name}(" in text)
    assert len(names) > 60, "the functions that our SQL calls were not found"
    conn.execute("CREATE SCHEMA evil")
    conn.execute("SELECT set_config('rig.names', %s, false)", [",".join(names)])
    conn.execute(_FUNCTIONS.encode())
    conn.execute(_OPERATORS.encode())
    for table in (
        "jobs",
        "job_history",
        "dead_letter_jobs",
        "queues",
        "claims",
        "workers",
        "tasks",
        "sleepers",
    ):
        conn.execute(sql.SQL("CREATE TABLE evil.{} (harm int)").format(sql.Identifier(table)))
    conn.execute("GRANT USAGE ON SCHEMA evil TO PUBLIC")
    planted = conn.execute(
        "SELECT count(*) FROM pg_proc WHERE pronamespace = 'evil'::regnamespace"
    ).fetchone()
    assert planted is not None
    assert planted[0] > 200
    conn.execute(
        sql.SQL("ALTER DATABASE {} SET search_path = evil, pg_catalog, public").format(
            sql.Identifier(database.name)
        )
    )
    with psycopg.connect(database.dsn) as probe:
        try:
            probe.execute("SELECT clock_timestamp()")
        except psycopg.errors.RaiseException as error:
            assert "hijacked" in str(error)  # noqa: PT017 - the rig proves that it can harm
        else:
            raise AssertionError("the shadows are not reached")
