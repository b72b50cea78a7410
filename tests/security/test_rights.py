"""Each role has exactly its rights on each table, column, sequence and function, and no way to the owner."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from rig.database import Database
from rig.logins import make_logins
from rig.rights import FUNCTIONS, HIDDEN, NOTHING, RELATIONS, ROLES

from pgqueue.control.desk import Desk
from pgqueue.control.roles import Roles

pytestmark = pytest.mark.proves("S4")

OF_RELATIONS = {
    "SELECT": "S",
    "INSERT": "I",
    "UPDATE": "U",
    "DELETE": "D",
    "TRUNCATE": "",
    "REFERENCES": "",
    "TRIGGER": "",
}
OF_COLUMNS = ("SELECT", "INSERT", "UPDATE", "REFERENCES")
OF_SEQUENCES = {"USAGE": "u", "SELECT": "", "UPDATE": ""}

RELATIONS_OF = """SELECT c.oid, c.relname::text, c.relkind = 'S', c.relispartition FROM pg_class c
    WHERE c.relnamespace = 'pgqueue'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')"""
COLUMNS_OF = """SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped"""
FUNCTIONS_OF = "SELECT p.oid, p.proname::text FROM pg_proc p WHERE p.pronamespace = 'pgqueue'::regnamespace"


def letters_of(table: dict[str, Any], name: str, role: str) -> str:
    assert name in table, (
        f"{name} has no line in tests/rig/rights.py: say there and in 85_roles.sql who may do what with it"
    )
    return "" if role == "nobody" else str(table[name][ROLES.index(role)])


def walk(conn: psycopg.Connection[Any]) -> list[str]:
    """Every right that is other than the table says; `nobody` stands for Public."""
    wrong: list[str] = []

    def check(asked: str, where: Any, right: str, role: str, expected: bool, what: str) -> None:
        marks = ", ".join(["%s"] * (2 + len(where)))
        text = f"SELECT has_{asked}_privilege({marks})"
        row = conn.execute(text.encode(), [f"login_{role}", *where, right]).fetchone()
        assert row is not None
        if row[0] is not expected:
            wrong.append(f"{role}: {right} on {what} is {row[0]}")

    relations = conn.execute(RELATIONS_OF).fetchall()
    functions = conn.execute(FUNCTIONS_OF).fetchall()
    assert len(relations) > 20
    assert len(functions) > 30
    for role in (*ROLES, "nobody"):
        check("schema", ["pgqueue"], "USAGE", role, role != "nobody", "the schema")
        check("schema", ["pgqueue"], "CREATE", role, False, "the schema")
        for oid, name, is_sequence, is_partition in relations:
            letters = (
                "" if is_partition and not name.endswith("_default") else letters_of(RELATIONS, name, role)
            )
            if is_sequence:
                for right, letter in OF_SEQUENCES.items():
                    check("sequence", [oid], right, role, bool(letter) and letter in letters, name)
                continue
            for right, letter in OF_RELATIONS.items():
                check("table", [oid], right, role, bool(letter) and letter in letters, name)
            for (column,) in conn.execute(COLUMNS_OF, [oid]).fetchall():
                for right in OF_COLUMNS:
                    letter = OF_RELATIONS[right]
                    partly = right == "SELECT" and "s" in letters and column not in HIDDEN
                    check(
                        "column",
                        [oid, column],
                        right,
                        role,
                        partly or (bool(letter) and letter in letters),
                        f"{name}.{column}",
                    )
        for oid, name in functions:
            check("function", [oid], "EXECUTE", role, "X" in letters_of(FUNCTIONS, name, role), name)
    return wrong


def test_every_right_is_as_the_table_says(any_database: Database) -> None:
    make_logins(any_database)
    assert walk(any_database.connect()) == []


@pytest.mark.parametrize(
    ("grant", "found"),
    [
        ("GRANT TRUNCATE ON pgqueue.jobs TO pgqueue_worker", "worker: TRUNCATE on jobs is True"),
        (
            "GRANT SELECT (args) ON pgqueue.dead_letter_jobs TO pgqueue_reader",
            "reader: SELECT on dead_letter_jobs.args is True",
        ),
        (
            "REVOKE EXECUTE ON FUNCTION pgqueue.cancel FROM pgqueue_producer",
            "producer: EXECUTE on cancel is False",
        ),
        ("GRANT EXECUTE ON FUNCTION pgqueue.wake TO PUBLIC", "nobody: EXECUTE on wake is True"),
        ("GRANT USAGE ON SEQUENCE pgqueue.job_seq TO pgqueue_reader", "reader: USAGE on job_seq is True"),
    ],
)
def test_the_walk_and_doctor_find_what_is_planted(database: Database, grant: str, found: str) -> None:
    make_logins(database)
    conn = database.connect()
    roles = Roles(Desk(database.dsn, via="python"))
    assert roles.faults() == []
    conn.execute(grant)
    assert found in walk(conn)
    assert len(roles.faults()) == 1
    roles.apply()
    # What Public was given by hand, no grant of ours takes back.
    assert (roles.faults() == []) is ("PUBLIC" not in grant)


def test_no_role_leads_to_the_owner_or_to_another_of_the_four(database: Database) -> None:
    make_logins(database)
    graph = """SELECT r.rolname, o.rolname FROM pg_roles r, pg_roles o
        WHERE r.rolname LIKE 'pgqueue\\_%' AND r.oid <> o.oid AND pg_has_role(r.oid, o.oid, 'MEMBER')"""
    assert database.connect().execute(graph).fetchall() == []
    able = """SELECT rolname FROM pg_roles WHERE rolname LIKE 'pgqueue\\_%'
        AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolcanlogin OR rolreplication OR rolbypassrls)"""
    assert database.connect().execute(able).fetchall() == []


def test_what_is_made_later_is_closed(database: Database) -> None:
    """A day's partition, and whatever the owner adds by hand, is reached by none of the roles."""
    make_logins(database)
    conn = database.connect()
    before = {name for _, name, _, _ in conn.execute(RELATIONS_OF).fetchall()}
    conn.execute("SELECT pgqueue.ensure_partitions(20)")
    conn.execute("CREATE TABLE pgqueue.extra (id int)")
    made = {name: oid for oid, name, _, _ in conn.execute(RELATIONS_OF).fetchall() if name not in before}
    assert len(made) > 20
    for name, oid in made.items():
        for role in (*ROLES, "nobody"):
            for right in OF_RELATIONS:
                row = conn.execute(
                    "SELECT has_table_privilege(%s, %s, %s)", [f"login_{role}", oid, right]
                ).fetchone()
                assert row == (False,), f"{role}: {right} on {name}"


REFUSED = {
    "producer": [
        "SELECT args FROM pgqueue.jobs",
        "SELECT * FROM pgqueue.job_history",
        "SELECT * FROM pgqueue.dead_letter_jobs",
        "SELECT * FROM pgqueue.queue_health",
        "INSERT INTO pgqueue.jobs DEFAULT VALUES",
        "DELETE FROM pgqueue.jobs",
        "SELECT pgqueue.run_now(1)",
        "SELECT pgqueue.job_timeline(1)",
        "SELECT nextval('pgqueue.job_seq')",
    ],
    "worker": [
        "INSERT INTO pgqueue.jobs DEFAULT VALUES",
        "UPDATE pgqueue.job_history SET args = '{}'",
        "DELETE FROM pgqueue.dead_letter_jobs",
        "UPDATE pgqueue.queues SET paused_at = NULL",
        "DELETE FROM pgqueue.schedules",
        "SELECT * FROM pgqueue.operator_audit",
        "SELECT pgqueue.redrive(1)",
        "SELECT pgqueue.note_operation('a', 'b', 'c', 'd', 'e')",
        "DROP TABLE pgqueue.job_history_default",
    ],
    "operator": [
        "UPDATE pgqueue.jobs SET priority = 0",
        "DELETE FROM pgqueue.dead_letter_jobs",
        "INSERT INTO pgqueue.operator_audit (actor, via, action, target) VALUES ('a', 'b', 'c', 'd')",
        "UPDATE pgqueue.operator_audit SET actor = 'someone else'",
        "DELETE FROM pgqueue.operator_audit",
        "TRUNCATE pgqueue.operator_audit",
        "SELECT pgqueue.drop_partition(1)",
        "UPDATE pgqueue.queues SET paused_at = now()",
    ],
    "reader": [
        "SELECT * FROM pgqueue.jobs",
        "SELECT args FROM pgqueue.job_history",
        "SELECT result FROM pgqueue.job_history",
        "SELECT headers FROM pgqueue.dead_letter_jobs",
        "SELECT traceback FROM pgqueue.dead_letter_jobs",
        "SELECT * FROM pgqueue.dedup_keys",
        "SELECT pgqueue.enqueue('t')",
        "SELECT pgqueue.cancel(1)",
        "SELECT pgqueue.pause('default')",
    ],
    "nobody": [
        "SELECT pgqueue.enqueue('t')",
        "SELECT * FROM pgqueue.queue_health",
        "SELECT pgqueue.wake('default')",
        "SELECT * FROM pgqueue.alembic_version",
    ],
}


@pytest.mark.proves("S16")
@pytest.mark.parametrize(
    ("role", "text"), [(role, text) for role, texts in REFUSED.items() for text in texts]
)
def test_what_a_role_may_not_do_is_refused(database: Database, role: str, text: str) -> None:
    with (
        psycopg.connect(make_logins(database)(role)) as conn,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        conn.execute(text.encode())


def test_the_dbas_question_is_answered_to_a_reader(database: Database) -> None:
    with psycopg.connect(make_logins(database)("reader"), options="-c search_path=pgqueue") as conn:
        text = """SELECT job_id, error_message, failed_at FROM dead_letter_jobs WHERE created_at > NOW() - INTERVAL '24 HOURS'"""
        assert conn.execute(text).fetchall() == []


def test_a_producer_enqueues_and_cannot_read_what_it_enqueued(database: Database) -> None:
    with psycopg.connect(make_logins(database)("producer"), autocommit=True) as conn:
        row = conn.execute("""SELECT pgqueue.enqueue('t', '{"card": "4111"}')""").fetchone()
        assert row is not None
        many = conn.execute("""SELECT pgqueue.enqueue_many('t', ARRAY['{}', '{}']::jsonb[])""").fetchall()
        assert len(many) == 2
        assert conn.execute("SELECT pgqueue.cancel(%s, 'a mistake')", row).fetchone() == ("cancelled",)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("SELECT args FROM pgqueue.job_history")
    audit = database.connect().execute("SELECT actor, db_role, action FROM pgqueue.operator_audit").fetchall()
    assert audit == [("login_producer", "login_producer", "cancel")]


@pytest.mark.proves("S16")
def test_an_operator_may_name_another_but_the_login_stays_in_the_row(database: Database) -> None:
    with psycopg.connect(make_logins(database)("operator"), autocommit=True) as conn:
        conn.execute("SELECT pgqueue.pause('default', 'why', actor => 'somebody else')")
    audit = (
        database.connect()
        .execute("SELECT actor, db_role, action, reason FROM pgqueue.operator_audit")
        .fetchall()
    )
    assert audit == [("somebody else", "login_operator", "pause", "why")]


def test_nothing_is_granted_by_default(database: Database) -> None:
    assert NOTHING not in {FUNCTIONS["enqueue"], RELATIONS["jobs"]}
    text = """SELECT d.defaclobjtype, a.grantee::regrole FROM pg_default_acl d, aclexplode(d.defaclacl) a
        WHERE d.defaclnamespace = 'pgqueue'::regnamespace AND a.grantee <> d.defaclrole"""
    assert database.connect().execute(text).fetchall() == []
