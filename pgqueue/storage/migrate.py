"""Brings the schema to a revision and says which one it is at.

Called by the CLI (`pgqueue db …`), by workers and schedulers at their start (`require_head`), and by tests.
It opens one connection of its own per call and runs the revisions of alembic/versions through Alembic.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgqueue.errors import ConfigurationError, ConflictError, InvalidOption, SchemaMismatch
from pgqueue.storage.connect import Role, connect
from pgqueue.storage.known import head, revisions
from pgqueue.storage.migrate_faults import LocksTakenError, explained
from pgqueue.storage.revisions import SchemaState, require_head, state_of
from pgqueue.storage.statements import alembic_dir, statement

__all__ = [
    "Loss",
    "SchemaState",
    "check",
    "current",
    "developer_connection",
    "downgrade",
    "head",
    "jobs_at_stake",
    "require_head",
    "resolve",
    "revisions",
    "sql",
    "state_of",
    "upgrade",
]

LOCK_WAIT_S: Final = 60.0
LOCK_POLL_S: Final = 0.1
TABLE_LOCK_TRIES_MAX: Final = 5
TABLE_LOCK_PAUSE_S: Final = 1.0
MIGRATE: Final = Role("migrate", statement_timeout_ms=0, lock_timeout_ms=3_000, idle_in_transaction_ms=0)
SERVER_VERSION_MIN: Final = 150000
TRANSACTION_TIMEOUT_SINCE: Final = 170000
BASE: Final = "base"
HEAD: Final = "head"

# Alembic keeps the environment it runs in a module variable, so one thread at a time.
_alembic_turn = threading.Lock()


@dataclass(frozen=True, slots=True)
class Loss:
    """What a downgrade to `base` ends: live jobs, dead letters nobody has decided on, undelivered messages."""

    live: int
    dead: int
    messages: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return self.live + self.dead + self.messages

    def __str__(self) -> str:
        told = f" and {self.messages} messages of the outbox" if self.messages else ""
        return f"{self.live} live jobs and {self.dead} dead letters that wait for a decision{told}"


def resolve(revision: str) -> str:
    """`head` and every known revision (and `base`) as the name Alembic knows; InvalidOption for another."""
    known = [BASE, *revisions()]
    wanted = known[-1] if revision == HEAD else revision
    if wanted not in known:
        raise InvalidOption(
            "revision", f"not one this release knows; write head or one of {', '.join(known)}"
        )
    return wanted


def current(dsn: str) -> str | None:
    """The revision the database at `dsn` (libpq URI or keywords) is at; None before the first."""
    return check(dsn).found


def check(dsn: str) -> SchemaState:
    """What state the schema in the database at `dsn` is in. Changes nothing."""
    with _connection(dsn) as conn, explained("check"):
        return state_of(conn)


def upgrade(dsn: str, revision: str = HEAD, *, lock_wait_s: float = LOCK_WAIT_S) -> None:
    """Bring the database at `dsn` up to `revision`, each revision in a transaction of its own.

    Many callers at once are fine: one does it, the others wait for it, at most `lock_wait_s` seconds.
    Raises ConflictError (locks held by others, a foreign schema of this name), SchemaMismatch (the database
    is newer than this code), ConfigurationError (a right is missing, a read-only server),
    DatabaseUnreachable. Whatever happens, the database is at the revision before or after, never between.
    """
    known = [BASE, *revisions()]
    target = resolve(revision)
    with _connection(dsn) as conn:
        _walk(conn, target, known, lock_wait_s=lock_wait_s, force=False, down=False)
        if target == known[-1]:
            # Shipped rules that somebody deleted come back; to be rid of one it is disabled.
            with explained("restoring alert rules"):
                conn.execute(statement("restore_alert_rules"))
                conn.commit()


def downgrade(dsn: str, revision: str, *, force: bool = False, lock_wait_s: float = LOCK_WAIT_S) -> None:
    """Take the database at `dsn` back to `revision` (`base` removes everything that pgqueue made).

    Raises ConflictError if jobs, or schedules that people made, would be lost, unless `force`; other errors as
    `upgrade`.
    """
    known = [BASE, *revisions()]
    target = resolve(revision)
    with _connection(dsn) as conn:
        if target == BASE and not force and _look(conn, known) != BASE:
            _refuse_loss(conn)
        _walk(conn, target, known, lock_wait_s=lock_wait_s, force=force, down=True)


def jobs_at_stake(dsn: str) -> Loss:
    """What a downgrade to `base` of the database at `dsn` would lose. The schema must be there."""
    with _connection(dsn) as conn, explained("counting jobs"):
        row = conn.execute(statement("migrate_at_stake")).fetchone()
        return Loss(*row) if row else Loss(0, 0)


def sql(from_revision: str = BASE, to_revision: str = HEAD) -> str:
    """The SQL that leads from one revision to another, as one transaction, for those who run it by hand."""
    known = [BASE, *revisions()]
    start, end = resolve(from_revision), resolve(to_revision)
    if start == end:
        raise InvalidOption("revision", f"from and to are both {start}; there is nothing to write")
    from alembic import command  # noqa: PLC0415 - costs 0.3 s, and a worker's start does not need it

    out = io.StringIO()
    with _alembic_turn:
        move = command.upgrade if known.index(end) > known.index(start) else command.downgrade
        move(_config(out), f"{start}:{end}", sql=True)
    return out.getvalue()


@contextmanager
def developer_connection() -> Iterator[Any]:
    """For `alembic upgrade head` at the top of a checkout: one transaction on the database of the settings."""
    from pgqueue.settings import load_settings  # noqa: PLC0415 - no other caller needs settings here

    with _connection(load_settings().database_url) as conn, explained("alembic"):
        _require_server(conn)
        with _sqlalchemy_over(conn) as link, link.begin():
            yield link


def _walk(
    conn: psycopg.Connection[Any],
    target: str,
    known: list[str],
    *,
    lock_wait_s: float,
    force: bool,
    down: bool,
) -> None:
    link: Any = None
    tries = 0
    while True:
        # Without the lock first: a deployment that has nothing to do waits for nobody.
        at = _look(conn, known)
        if at == target or (known.index(at) > known.index(target)) != down:
            _refuse_other_way(at, target, known)
            return
        if link is None:
            _require_server(conn)
            link = _sqlalchemy_over(conn)
        goal = known[known.index(at) + (-1 if down else 1)]
        action = f"{'downgrade' if down else 'upgrade'} from {at} to {goal}"
        try:
            with explained(action):
                _lock(conn, lock_wait_s)
                if _position(state_of(conn), known) == at:
                    _step(conn, link, goal, down=down, force=force)
                    if goal == target:
                        return
                conn.commit()
            tries = 0
        except LocksTakenError:
            conn.rollback()
            tries += 1
            if tries >= TABLE_LOCK_TRIES_MAX:
                raise ConflictError(_tables_taken(conn, action, tries)) from None
            time.sleep(TABLE_LOCK_PAUSE_S)


def _refuse_loss(conn: psycopg.Connection[Any]) -> None:
    """Before the first step, so that nothing is taken away on the way to a revision that refuses."""
    with explained("counting jobs"):
        row = conn.execute(statement("migrate_at_stake")).fetchone()
        conn.rollback()
    loss = Loss(*row) if row else Loss(0, 0)
    if loss.total:
        raise ConflictError(f"downgrade to base loses {loss}; see to them first, or add --force")


def _look(conn: psycopg.Connection[Any], known: list[str]) -> str:
    with explained("reading the schema's state"):
        state = state_of(conn)
        conn.rollback()
    return _position(state, known)


def _require_server(conn: psycopg.Connection[Any]) -> None:
    if conn.info.server_version < SERVER_VERSION_MIN:
        raise ConfigurationError(
            f"PostgreSQL {conn.info.server_version // 10000}: too old; pgqueue needs 15 or later"
        )
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise ConfigurationError(
            f"database {conn.info.dbname}: its encoding is {encoding}; jobs are JSON and need a database in UTF8"
        )


def _position(state: SchemaState, known: list[str]) -> str:
    if state.kind == "missing":
        return BASE
    if state.kind == "half_done":
        raise ConflictError(state.sentence)
    if state.found not in known:
        raise SchemaMismatch(
            f"database schema: at revision {state.found}, which this code does not know; use the release that made it"
        )
    return state.found


def _refuse_other_way(at: str, target: str, known: list[str]) -> None:
    if at == target:
        return
    where = f"the database is at {at}"
    if known.index(at) > known.index(target):
        raise ConflictError(f"upgrade to {target}: {where} already; `pgqueue db downgrade` goes back")
    raise ConflictError(f"downgrade to {target}: {where} only; `pgqueue db upgrade` goes on")


def _step(conn: psycopg.Connection[Any], link: Any, goal: str, *, down: bool, force: bool) -> None:
    """One revision up or down, in the transaction that is open on `conn`; ends that transaction."""
    from alembic import command  # noqa: PLC0415 - costs 0.3 s, and a worker's start does not need it

    if force:
        conn.execute(statement("migrate_allow_loss"))
    config = _config(io.StringIO())
    config.attributes["connection"] = link
    with _alembic_turn, link.begin():
        # Alembic makes its version table, inside the schema, before it runs the first revision.
        conn.execute(statement("migrate_make_schema"))
        (command.downgrade if down else command.upgrade)(config, goal)


def _lock(conn: psycopg.Connection[Any], wait_s: float) -> None:
    """Open a transaction that holds the migration lock. Tried anew each time: a waiting one would hold a snapshot."""
    deadline = time.monotonic() + wait_s
    while True:
        conn.execute(statement("migrate_settings"))
        if conn.info.server_version >= TRANSACTION_TIMEOUT_SINCE:
            conn.execute(statement("migrate_no_transaction_timeout"))
        if conn.execute(statement("migrate_try_lock")).fetchone() == (True,):
            return
        if time.monotonic() >= deadline:
            holder = conn.execute(statement("migrate_lock_holder")).fetchone()
            conn.rollback()
            who = f"process {holder[0]} ({holder[1] or 'without a name'})" if holder else "others in turn"
            raise ConflictError(
                f"migration lock: held by {who} for longer than {wait_s:g} s; wait for it to finish, or end it with"
                " pg_terminate_backend, then run the command again"
            )
        conn.rollback()
        time.sleep(LOCK_POLL_S)


def _tables_taken(conn: psycopg.Connection[Any], step: str, tries: int) -> str:
    row = conn.execute(statement("migrate_table_holders")).fetchone()
    conn.rollback()
    pids = ", ".join(str(pid) for pid in row[0]) if row else ""
    who = f"processes {pids} use the tables" if pids else "its users let go of the tables only now"
    return f"{step}: a table was locked for longer than 3 s, {tries} times; {who}; end long transactions or try again later"


@contextmanager
def _connection(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    try:
        conninfo_to_dict(dsn)
    except psycopg.Error:
        # libpq repeats the part it cannot read, which may be a password.
        raise ConfigurationError(
            "database URL: not one that libpq can read; write postgresql://user@host/name or keywords"
        ) from None
    conn = connect(dsn, MIGRATE, prepare=False)
    try:
        conn.autocommit = False
        yield conn
    finally:
        conn.close()


def _sqlalchemy_over(conn: psycopg.Connection[Any]) -> Any:
    """SQLAlchemy over `conn`, which stays ours to close. Rolls back, so make it before a transaction begins."""
    import sqlalchemy as sa  # noqa: PLC0415 - costs 0.2 s, and a worker's start does not need it

    engine = sa.create_engine(
        "postgresql+psycopg://",
        creator=lambda: conn,
        poolclass=sa.pool.StaticPool,
        pool_reset_on_return=None,
        use_native_hstore=False,
    )
    with explained("connecting"):
        return engine.connect()


def _config(out: io.StringIO) -> Any:
    from alembic.config import Config  # noqa: PLC0415 - as above

    config = Config(stdout=out, output_buffer=out)
    # The ini format takes a percent sign for the start of a reference.
    config.set_main_option("script_location", str(alembic_dir()).replace("%", "%%"))
    return config
