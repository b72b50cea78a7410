"""The doctor's look at the way to the database: encryption, pooler, the direct address, notifications, clocks, settings.

Called by control/doctor on its connection; opens others where an address has to be tried. Reads only.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, Final

import psycopg

from pgqueue.control.findings import Finding
from pgqueue.errors import DatabaseUnreachable
from pgqueue.settings import Settings
from pgqueue.storage.connect import LISTEN, connect, is_pooled, place_of
from pgqueue.storage.pooler import VERSION_MIN, PoolerFacts, ask_pooler
from pgqueue.storage.statements import statement

SKEW_S: Final = 1.0
HEARD_S: Final = 2.0
ENCRYPT: Final = "add sslmode=verify-full and sslrootcert=FILE to the address"


def address_checks(conn: psycopg.Connection[Any], settings: Settings | None) -> Iterator[Finding]:
    """Every check of this file; those of settings only where they are known."""
    yield tls_finding(conn.info.host, conn.info.hostaddr, encrypted=bool(conn.pgconn.ssl_in_use))
    pooled = is_pooled(conn)
    if pooled:
        yield pooler_finding(ask_pooler(_address(conn, settings)))
    if settings is not None:
        yield from _settings(settings)
        yield from _direct(conn, settings, pooled=pooled)
    yield _clock(conn)


def tls_finding(host: str, hostaddr: str, *, encrypted: bool) -> Finding:
    """Whether what goes over a network is encrypted."""
    if _is_here(host, hostaddr):
        return Finding("PASS", "encryption", "the database is on this machine")
    if encrypted:
        return Finding("PASS", "encryption", f"the connection to {host} is encrypted")
    return Finding(
        "WARN",
        "encryption",
        f"the connection to {host} is not encrypted: payloads cross the network",
        ENCRYPT,
    )


def pooler_finding(facts: PoolerFacts) -> Finding:
    """Whether prepared statements work through the pooler."""
    wanted = f"PgBouncer {VERSION_MIN[0]}.{VERSION_MIN[1]}"
    if facts.prepares:
        return Finding("PASS", "pooler version", f"{_said(facts)}: prepared statements work through it")
    if facts.version is None:
        return Finding(
            "WARN",
            "pooler version",
            "the pooler does not say what it is, so nothing is prepared through it",
            f"list this login in stats_users of pgbouncer.ini; {wanted} or later with max_prepared_statements = 200",
        )
    fix = f"upgrade to {wanted} or later, and " if facts.version < VERSION_MIN else ""
    return Finding(
        "WARN",
        "pooler version",
        f"{_said(facts)}: statements are not prepared through it",
        f"{fix}set max_prepared_statements = 200 in pgbouncer.ini",
    )


def _said(facts: PoolerFacts) -> str:
    major, minor = facts.version or (0, 0)
    return f"PgBouncer {major}.{minor}, max_prepared_statements = {facts.prepared_max or 0}"


def _settings(settings: Settings) -> Iterator[Finding]:
    for warning in settings.warnings:
        yield Finding("WARN", "settings", warning, "mend it where it is set; docs/reference/settings.md")
    if not settings.warnings:
        yield Finding("PASS", "settings", "nothing in them is unwise")


def _direct(conn: psycopg.Connection[Any], settings: Settings, *, pooled: bool) -> Iterator[Finding]:
    """The address for wake-ups, locks and leadership: that it is one, leads to the same place, and that tellings arrive."""
    dsn = settings.direct_database_url
    if not dsn and pooled:
        return  # the pooler's own finding says so
    try:
        with contextlib.closing(
            connect(settings.direct_dsn, LISTEN, connect_timeout_s=settings.connect_timeout_s, prepare=False)
        ) as direct:
            if dsn:
                yield _judge_direct(conn, direct, dsn)
            if not is_pooled(direct):
                yield _hears(direct)
    except DatabaseUnreachable as error:
        yield Finding("FAIL", "direct address", str(error), "mend direct_database_url")


def _judge_direct(conn: psycopg.Connection[Any], direct: psycopg.Connection[Any], dsn: str) -> Finding:
    check, place = "direct address", place_of(dsn)
    if is_pooled(direct):
        return Finding(
            "FAIL",
            check,
            f"{place} leads through a transaction pooler too",
            "set direct_database_url to the server's own port",
        )
    if _place(conn) != _place(direct):
        return Finding(
            "FAIL",
            check,
            f"{place} is another database than database_url's: workers would not hear of their jobs",
            "set direct_database_url to the same database past the pooler",
        )
    return Finding("PASS", check, f"{place} is the same database, past any pooler")


def _hears(direct: psycopg.Connection[Any]) -> Finding:
    token = secrets.token_hex(8)
    direct.execute(b"LISTEN pgqueue_doctor")
    direct.execute(statement("doctor_self_test"), {"token": token})
    until = time.monotonic() + HEARD_S
    for heard in direct.notifies(timeout=HEARD_S):
        if heard.payload == token:
            return Finding("PASS", "wake-ups", "a notification arrives")
        if time.monotonic() > until:
            break
    return Finding(
        "WARN",
        "wake-ups",
        f"a notification did not arrive within {HEARD_S:g} s: workers poll",
        "look for what stands between: a pooler, or a full queue of notifications",
    )


def _clock(conn: psycopg.Connection[Any]) -> Finding:
    before = time.time()
    row = conn.execute(statement("doctor_clock")).fetchone()
    here = (before + time.time()) / 2
    skew_s = 0.0 if row is None else row[0] - here
    words = (
        f"this host's clock is {abs(skew_s):.1f} s {'behind' if skew_s > 0 else 'ahead of'} the database's; pgqueue goes by the database's"
        if abs(skew_s) > SKEW_S
        else "this host and the database agree on the time"
    )
    return Finding("PASS", "clock", words)


def _place(conn: psycopg.Connection[Any]) -> str:
    row = conn.execute(statement("doctor_identity")).fetchone()
    return "" if row is None else str(row[0])


def _address(conn: psycopg.Connection[Any], settings: Settings | None) -> str:
    return conn.info.dsn if settings is None else settings.database_url


def _is_here(host: str, hostaddr: str) -> bool:
    """A socket file, or a loopback address."""
    for name in filter(None, (hostaddr, host)):
        if name.startswith(("/", "@")) or name == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ip_address(name).is_loopback
    return not host
