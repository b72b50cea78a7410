"""Writes sql/schema down where installations find it: run `python tests/migrations/freeze.py` after changing it.

For developers. Until the first release it makes alembic/versions/0001_heart.sql and .down.sql anew; from then
on those never change and each change of sql/schema comes with a revision of its own. alembic/expected.json,
the description of the schema that `pgqueue doctor` compares a database with, is always made anew.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import psycopg

from pgqueue.embedded import EmbeddedPostgres
from pgqueue.storage.drift import EXPECTED_FILE, describe_schema
from pgqueue.storage.frozen import split_statements

ROOT = Path(__file__).resolve().parents[2]
FROZEN = ROOT / "alembic" / "versions" / "0001_heart.sql"
FROZEN_DOWN = ROOT / "alembic" / "versions" / "0001_heart.down.sql"
EXPECTED = ROOT / "alembic" / EXPECTED_FILE
# Set by the first release: 0001 is then somebody's database.
RELEASED = False
MAKES_SCHEMA = "CREATE SCHEMA IF NOT EXISTS pgqueue;\n"

_CREATED = re.compile(
    r"CREATE (?:OR REPLACE )?(TABLE|VIEW|SEQUENCE|FUNCTION) (pgqueue\.\w+)\b(?!\s+PARTITION OF)"
)

DOWN_HEAD = """\
-- squawk-ignore-file ban-drop-table, ban-drop-function, ban-drop-view, ban-drop-sequence
-- Takes the schema away again. It refuses while jobs would be lost; the version table and the schema itself
-- are left to the caller, who notes the new revision in between.
DO $$
DECLARE
  live bigint;
  dead bigint;
BEGIN
  LOCK TABLE pgqueue.jobs, pgqueue.dead_letter_jobs IN ACCESS EXCLUSIVE MODE;
  SELECT count(*) INTO live FROM pgqueue.jobs;
  SELECT count(*) INTO dead FROM pgqueue.dead_letter_jobs WHERE redriven_as IS NULL;
  IF live + dead > 0 AND current_setting('pgqueue.downgrade_force', true) IS DISTINCT FROM 'on' THEN
    RAISE EXCEPTION 'downgrade to base loses % jobs and % dead letters that wait for a decision', live, dead
      USING ERRCODE = 'PQ003', HINT = 'SET pgqueue.downgrade_force = ''on'' loses them';
  END IF;
END $$;
"""


def schema_text() -> str:
    """The schema files in the order of their names, as one text: a fresh install."""
    files = sorted((ROOT / "sql" / "schema").glob("*.sql"))
    return "\n".join(path.read_text(encoding="utf-8").strip() + "\n" for path in files)


def upgrade_text() -> str:
    """The same without the schema itself, which the migrator makes where it is not there.

    IF NOT EXISTS asks for CREATE on the database even then, which the owner of a schema need not have.
    """
    text = schema_text()
    assert text.count(MAKES_SCHEMA) == 1, f"sql/schema/00_schema.sql no longer says {MAKES_SCHEMA!r}"
    return text.replace(MAKES_SCHEMA, "")


def downgrade_text() -> str:
    """A DROP for each thing that `upgrade_text` makes, last made first."""
    made = [match for one in split_statements(upgrade_text()) if (match := _CREATED.match(one))]
    return DOWN_HEAD + "".join(f"DROP {match[1]} {match[2]};\n" for match in reversed(made))


def expected_text() -> str:
    """What the catalogs say of a database made by the schema files, on a server of its own."""
    with EmbeddedPostgres(settings={"fsync": "off"}) as server, psycopg.connect(server.dsn()) as conn:
        conn.execute(schema_text().encode())
        lines = (
            f"{json.dumps(name)}: {json.dumps(facts, ensure_ascii=False, sort_keys=True)}"
            for name, facts in describe_schema(conn).items()
        )
        return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    texts = {EXPECTED: expected_text()}
    if not RELEASED:
        texts |= {FROZEN: upgrade_text(), FROZEN_DOWN: downgrade_text()}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT), file=sys.stderr)


if __name__ == "__main__":
    main()
