"""Logins that are members of one of the four roles each, on a test's own database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import psycopg
from psycopg import sql
from rig.database import Database
from rig.rights import ROLES

Login = Callable[[str], str]


def make_logins(database: Database) -> Login:
    """The DSN of a login that is a member of `pgqueue_<role>` alone; `nobody` is a member of none."""
    admin = database.connect()
    for role in (*ROLES, "nobody"):
        name = sql.Identifier(f"login_{role}")
        with contextlib.suppress(psycopg.errors.DuplicateObject):
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        if role != "nobody":
            admin.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(f"pgqueue_{role}"), name))
    return lambda role: database.dsn_as(f"login_{role}")
