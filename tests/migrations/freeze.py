"""Writes sql/schema down where installations find it: run `python tests/migrations/freeze.py` after changing it.

For developers. Until the first release it makes the SQL files of alembic/versions anew; from then on those never
change and each change of sql/schema comes with a revision of its own. alembic/expected.json,
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
VERSIONS = ROOT / "alembic" / "versions"
SCHEMA = ROOT / "sql" / "schema"
EXPECTED = ROOT / "alembic" / EXPECTED_FILE
# Set by the first release: these revisions are then somebody's database.
RELEASED = False
HEART = "0001_heart"
# Schema files that came after the heart, by the revision that brings them; what Public loses is said anew in each.
LATER = {"0002_time": ("45_schedules.sql",), "0003_alerts": ("82_alerts.sql",)}
PRIVILEGES = "90_privileges.sql"
MAKES_SCHEMA = "CREATE SCHEMA IF NOT EXISTS pgqueue;\n"

_CREATED = re.compile(
    r"CREATE (?:OR REPLACE )?(TABLE|VIEW|SEQUENCE|FUNCTION) (pgqueue\.\w+)\b(?!\s+PARTITION OF)"
)

DOWN_HEADS = {
    HEART: """\
-- squawk-ignore-file ban-drop-table, ban-drop-function, ban-drop-view, ban-drop-sequence
-- Takes the schema away again. It refuses while jobs would be lost; the version table and the schema itself
-- are left to the caller, who notes the new revision in between.
DO $$
DECLARE
  live bigint;
  dead bigint;
  told bigint;
BEGIN
  LOCK TABLE pgqueue.jobs, pgqueue.dead_letter_jobs, pgqueue.outbox, pgqueue.outbox_dead_letters IN ACCESS EXCLUSIVE MODE;
  SELECT count(*) INTO live FROM pgqueue.jobs;
  SELECT count(*) INTO dead FROM pgqueue.dead_letter_jobs WHERE redriven_as IS NULL;
  SELECT count(*) INTO told FROM (SELECT o.id FROM pgqueue.outbox o UNION SELECT d.message_id FROM pgqueue.outbox_dead_letters d) m;
  IF live + dead + told > 0 AND current_setting('pgqueue.downgrade_force', true) IS DISTINCT FROM 'on' THEN
    RAISE EXCEPTION 'downgrade to base loses % jobs, % dead letters that wait for a decision and % messages', live, dead, told
      USING ERRCODE = 'PQ003', HINT = 'SET pgqueue.downgrade_force = ''on'' loses them';
  END IF;
END $$;
""",
    "0002_time": """\
-- squawk-ignore-file ban-drop-table, ban-drop-function, ban-drop-view
-- Takes schedules and their fire log away again. Those that code defines come back with it; those that people
-- made would not.
DO $$
DECLARE
  made bigint;
BEGIN
  LOCK TABLE pgqueue.schedules IN ACCESS EXCLUSIVE MODE;
  SELECT count(*) INTO made FROM pgqueue.schedules WHERE source <> 'code';
  IF made > 0 AND current_setting('pgqueue.downgrade_force', true) IS DISTINCT FROM 'on' THEN
    RAISE EXCEPTION 'downgrade to pgqueue_0001 loses % schedules that no code defines', made
      USING ERRCODE = 'PQ003', HINT = 'SET pgqueue.downgrade_force = ''on'' loses them';
  END IF;
END $$;
""",
    "0003_alerts": """\
-- squawk-ignore-file ban-drop-table, ban-drop-function, ban-drop-view
-- Takes alerts away again: rules that people changed, and the record of incidents, are lost; jobs are not touched.
""",
}


def schema_text(names: set[str] | None = None) -> str:
    """The schema files (of these names) in the order of their names, as one text: all of them are a fresh install."""
    files = sorted(path for path in SCHEMA.glob("*.sql") if names is None or path.name in names)
    return "\n".join(path.read_text(encoding="utf-8").strip() + "\n" for path in files)


def frozen_texts() -> dict[Path, str]:
    """Every SQL file of alembic/versions, as it is to be."""
    texts = {}
    for revision in (HEART, *LATER):
        up = upgrade_text(revision)
        texts[VERSIONS / f"{revision}.sql"] = up
        texts[VERSIONS / f"{revision}.down.sql"] = downgrade_text(revision, up)
    return texts


def upgrade_text(revision: str) -> str:
    """The schema files that `revision` brings, as one text.

    Without the schema itself, which the migrator makes where it is not there: IF NOT EXISTS asks for CREATE on the
    database even then, which the owner of a schema need not have.
    """
    if revision in LATER:
        return schema_text({*LATER[revision], PRIVILEGES})
    later = {name for names in LATER.values() for name in names}
    text = schema_text({path.name for path in SCHEMA.glob("*.sql")} - later)
    assert text.count(MAKES_SCHEMA) == 1, f"sql/schema/00_schema.sql no longer says {MAKES_SCHEMA!r}"
    return text.replace(MAKES_SCHEMA, "")


def downgrade_text(revision: str, up: str) -> str:
    """A DROP for each thing that `up` makes, last made first."""
    made = [match for one in split_statements(up) if (match := _CREATED.match(one))]
    return DOWN_HEADS[revision] + "".join(f"DROP {match[1]} {match[2]};\n" for match in reversed(made))


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
        texts |= frozen_texts()
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT), file=sys.stderr)


if __name__ == "__main__":
    main()
