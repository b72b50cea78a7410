"""A test's own database and how the template it is cloned from comes to be; used by conftest and by tests.

It may open psycopg connections to the embedded servers and run the project's own schema.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from pgqueue.embedded import EmbeddedPostgres

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An embedded server in the shape that pytest-postgresql's `depends_on` wants."""

    host: str
    port: int
    user: str
    password: str = ""
    options: str = ""
    maintenance_dbname: str = "postgres"
    template_dbname: str = "template1"

    @classmethod
    def of(cls, server: EmbeddedPostgres) -> Endpoint:
        return cls(host=str(server.socket_dir), port=server.port, user=server.user)


@dataclass(slots=True)
class Database:
    """One database: where it is, and connections that end with the test."""

    name: str
    server: EmbeddedPostgres
    _open: list[psycopg.Connection[Any]] = field(default_factory=list)

    @property
    def dsn(self) -> str:
        return self.server.dsn(self.name)

    @property
    def sqlalchemy_url(self) -> str:
        """The same place as SQLAlchemy spells it."""
        return self.dsn.replace("postgresql://", "postgresql+psycopg://", 1)

    def dsn_as(self, user: str) -> str:
        """The DSN of another role; over the socket no password is asked."""
        return self.server.dsn(self.name, user=user)

    def connect(self, **kwargs: Any) -> psycopg.Connection[Any]:
        """An autocommit connection unless `autocommit=False`; `user="…"` logs in as that role."""
        kwargs.setdefault("autocommit", True)
        connection = psycopg.connect(self.dsn, **kwargs)
        self._open.append(connection)
        return connection

    def one(self, statement: str, params: Any = None) -> Any:
        """The first column of the first row, on a connection of its own."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            row = connection.execute(statement, params).fetchone()
            return None if row is None else row[0]

    def close(self) -> None:
        while self._open:
            self._open.pop().close()


def migrate_template(*, host: str, port: int, user: str, dbname: str, **_: Any) -> None:
    """Bring the template to the newest schema: what `pgqueue db upgrade` does, or the schema files in order."""
    dsn = f"postgresql://{user}@/{dbname}?host={quote(host, safe='')}&port={port}"
    if importlib.util.find_spec("pgqueue.storage") and importlib.util.find_spec("pgqueue.storage.migrate"):
        from pgqueue.storage.migrate import upgrade

        upgrade(dsn)
        return
    with psycopg.connect(dsn, autocommit=True) as connection:
        for file in sorted((ROOT / "sql" / "schema").glob("*.sql")):
            connection.execute(file.read_text())
