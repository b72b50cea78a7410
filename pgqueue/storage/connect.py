"""The one place that opens pgqueue's own connections, for each room with its own settings.

Settings are made by one SET each and verified; start-up `options` would be refused by poolers. The caller's
connections are never touched here.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue.errors import DatabaseUnreachable
from pgqueue.storage.deadline import SETUP_S, deadline
from pgqueue.storage.faults import sqlstate_of

# A vanished host's locks are free after about 11 s, inside the 15 s lease; keepalives alone leave data in flight hanging.
CLIENT_KEEPALIVES: Final = {
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "6000",
}
SERVER_KEEPALIVES: Final = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "6000",
}


@dataclass(frozen=True, slots=True)
class Role:
    """What a room's connection is called and how long its statements may take (0 = no limit)."""

    name: str
    statement_timeout_ms: int = 10_000
    lock_timeout_ms: int = 2_000
    idle_in_transaction_ms: int = 10_000
    pins_search_path: bool = True
    read_only: bool = False


CLAIM: Final = Role("claim")
SETTLE: Final = Role("settle")
STEP: Final = Role("step")
PROGRESS: Final = Role("progress", statement_timeout_ms=3_000, lock_timeout_ms=500)
HEART: Final = Role("heart", statement_timeout_ms=3_000)
LISTEN: Final = Role("listen", statement_timeout_ms=0)
UPKEEP: Final = Role("upkeep", lock_timeout_ms=1_000)
# Counting and deleting by the batch may take longer than anything on a job's way.
CHORES: Final = Role("chores", statement_timeout_ms=60_000, lock_timeout_ms=1_000)
LEADER: Final = Role("leader")
RELAY: Final = Role("relay")
HEALTH: Final = Role("health", statement_timeout_ms=2_000, lock_timeout_ms=500)
METRICS: Final = Role("metrics", statement_timeout_ms=2_000, lock_timeout_ms=200)
CLI: Final = Role("cli", statement_timeout_ms=30_000)
# While somebody types.
COMPLETE: Final = Role("complete", statement_timeout_ms=300, lock_timeout_ms=100, read_only=True)
# A screen that is drawn again every two seconds must not burden what it watches.
TOP: Final = Role("top", statement_timeout_ms=2_000, lock_timeout_ms=200, read_only=True)
# A handler's tables are found by the application's own search_path; its time is bounded per job.
JOB: Final = Role(
    "job", statement_timeout_ms=0, lock_timeout_ms=0, idle_in_transaction_ms=0, pins_search_path=False
)
# Enqueues of their own transaction: as the application's role would.
PRODUCER: Final = Role("enqueue", pins_search_path=False)


def connect(
    dsn: str, role: Role, *, label: str = "", connect_timeout_s: float = 5, prepare: bool = True
) -> psycopg.Connection[Any]:
    """Open a connection in autocommit mode for `role`.

    `label` (a worker's short id) ends up in `application_name`, where a DBA finds the process. Raises
    DatabaseUnreachable with host and cause, never with the password.
    """
    try:
        conn = psycopg.connect(
            **connect_arguments(dsn, role, label=label, connect_timeout_s=connect_timeout_s)
        )
    except psycopg.Error as error:
        raise unreachable(dsn, error) from error
    try:
        if not prepare:
            conn.prepare_threshold = None
        with deadline(conn, SETUP_S):
            for text in session_settings(role):
                conn.execute(text)
    except psycopg.Error as error:
        conn.close()
        raise unreachable(dsn, error) from error
    return conn


def connect_arguments(dsn: str, role: Role, *, label: str, connect_timeout_s: float) -> dict[str, Any]:
    """Return psycopg's connect arguments for a room of ours; what the DSN says itself goes first."""
    given = conninfo_to_dict(dsn)
    defaults: dict[str, Any] = {"connect_timeout": str(max(2, round(connect_timeout_s)))}
    if not _is_local(given):
        defaults |= CLIENT_KEEPALIVES
    name = f"pgqueue/{role.name}" + (f"/{label}" if label else "")
    return {
        "conninfo": make_conninfo(
            dsn, **{k: v for k, v in defaults.items() if k not in given}, application_name=name
        ),
        "autocommit": True,
    }


def session_settings(role: Role) -> list[bytes]:
    """Return the SET statements of a room, to be run one by one: several in one string once did not take."""
    settings = {
        "statement_timeout": str(role.statement_timeout_ms),
        "lock_timeout": str(role.lock_timeout_ms),
        "idle_in_transaction_session_timeout": str(role.idle_in_transaction_ms),
        "default_transaction_isolation": "'read committed'",
        **SERVER_KEEPALIVES,
    }
    if role.read_only:
        settings["default_transaction_read_only"] = "on"
    if role.pins_search_path:
        settings["search_path"] = "pg_catalog"
    return [f"SET {name} = {value}".encode() for name, value in settings.items()]


def is_pooled(conn: psycopg.Connection[Any]) -> bool:
    """Whether a transaction pooler stands between: the pid of the handshake is not the backend's own."""
    with deadline(conn, SETUP_S):
        row = conn.execute(b"SELECT pg_catalog.pg_backend_pid()", prepare=False).fetchone()
    return row is not None and row[0] != conn.info.backend_pid


def place_of(dsn: str) -> str:
    """Name a database without its password: `user@host:port/dbname` as far as the DSN says it."""
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error:
        return "the database (its DSN cannot be read)"
    user = f"{given['user']}@" if given.get("user") else ""
    host = given.get("host") or given.get("hostaddr") or "the default host"
    port = f":{given['port']}" if given.get("port") else ""
    name = f"/{given['dbname']}" if given.get("dbname") else ""
    return f"{user}{host}{port}{name}"


def unreachable(dsn: str, error: psycopg.Error) -> DatabaseUnreachable:
    """Return the one line for a connection that could not be opened."""
    return DatabaseUnreachable(
        f"cannot connect to {place_of(dsn)}: {_cause(error)}; check the DSN and that the server runs"
    )


def _cause(error: psycopg.Error) -> str:
    state = sqlstate_of(error)
    if state is not None and getattr(error, "diag", None) is not None and error.diag.message_primary:
        return f"{error.diag.message_primary} ({state})"
    if isinstance(error, psycopg.ProgrammingError):
        # The words that libpq did not understand may be a password.
        return "the DSN is not readable"
    # libpq's text may repeat the host; it never holds the password. The last line is the last host's cause; lines
    # that begin with a tab are hints.
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    text = lines[-1] if lines else type(error).__name__
    return re.sub(r"^.*?(?:failed|error): ", "", text)[:300]


def _is_local(given: dict[str, Any]) -> bool:
    with contextlib.suppress(AttributeError):
        host = str(given.get("host") or "")
        return not host or host.startswith(("/", "@"))
    return False
