"""The four roles of the database: whether they are there, and whether each has exactly its rights.

`pgqueue db roles` and `pgqueue doctor`. What each role is granted is written in the schema (role_rights).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from pgqueue.control.desk import Desk, read
from pgqueue.errors import ConflictError
from pgqueue.storage.statements import statement


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFault:
    """One right that is not as it should be. `owner`: the role is a member of the schema's owner, `privilege`."""

    object: str
    role: str
    privilege: str
    fault: Literal["missing", "unexpected", "owner"]

    def __str__(self) -> str:
        if self.fault == "owner":
            return f"{self.role} is a member of {self.privilege}, who owns the schema"
        has = "lacks" if self.fault == "missing" else "has, beyond its own,"
        return f"{self.role} {has} {self.privilege} on {self.object}"


class Roles:
    """Questions about the roles, and the grant. All methods raise DatabaseUnreachable and SchemaMismatch."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def missing(self) -> Sequence[str]:
        """Names of the roles that the cluster lacks."""
        with self._desk.connection("db roles") as conn:
            return missing_roles(conn)

    def faults(self) -> Sequence[RoleFault]:
        """What the roles that are there have too little or too much of in this database."""
        return self._desk.rows(RoleFault, "roles_faults")

    def script(self) -> str:
        """The SQL that makes missing roles and grants each its rights, for those who run it by hand."""
        with self._desk.connection("db roles") as conn:
            return "".join(f"{line}\n" for (line,) in conn.execute(statement("roles_script")).fetchall())

    def apply(self) -> None:
        """Make missing roles and grant each exactly its rights.

        Raises ConflictError if a role is still missing, DatabaseError without the right to grant.
        """
        with self._desk.connection("db roles") as conn:
            left = [name for (name,) in conn.execute(statement("roles_grant")).fetchall()]
        if left:
            raise ConflictError(
                f"roles {', '.join(left)}: missing, and this login may not create roles;"
                " let an administrator run what `pgqueue db roles` prints"
            )


def missing_roles(conn: psycopg.Connection[Any]) -> list[str]:
    """As Roles.missing, on a connection that is open already."""
    return [name for (name,) in conn.execute(statement("roles_missing")).fetchall()]


def role_faults(conn: psycopg.Connection[Any]) -> list[RoleFault]:
    """As Roles.faults, on a connection that is open already."""
    return read(conn, RoleFault, "roles_faults")
