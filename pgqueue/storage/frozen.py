"""Runs the frozen SQL of alembic/versions, statement by statement, through whatever Alembic it is called from.

Called by each `alembic/versions/NNNN_*.py` and by `alembic/env.py`. It works on Alembic's own connection
only: ours, or that of an application which runs our revisions among its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext

from alembic import op
from pgqueue.errors import ConfigurationError, ConflictError
from pgqueue.storage.statements import statement

SCHEMA: Final = "pgqueue"
VERSION_TABLE: Final = "alembic_version"

_REVISION = re.compile(r"pgqueue_[0-9]{4}")
_versions = sa.table(VERSION_TABLE, sa.column("version_num"), sa.column("code_from"), schema=SCHEMA)
# What a statement is made of, as far as finding its end needs it. Psycopg sends many statements at once,
# other drivers that an application may use (asyncpg) refuse that.
_TOKEN = re.compile(
    r"""
      --[^\n]*
    | (?P<quoted> (?<![\w$])[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"
                | (?<![\w$])(?P<tag>\$(?:[A-Za-z_]\w*)?\$).*?(?P=tag) )
    | (?P<open>/\*|'|"|(?<![\w$])\$(?:[A-Za-z_]\w*)?\$)
    | (?P<end>;)
    """,
    re.VERBOSE | re.DOTALL,
)


def split_statements(text: str) -> Iterator[str]:
    """The statements of an SQL file without their comments and semicolons, in order.

    Block comments and `BEGIN ATOMIC` bodies are not understood: a frozen file is ours and plain.
    Raises ConfigurationError for what is not closed.
    """
    parts: list[str] = []
    start = 0
    for token in _TOKEN.finditer(text):
        if token["quoted"] is not None:
            continue
        if token["open"] is not None:
            line = text.count("\n", 0, token.start()) + 1
            raise ConfigurationError(
                f"frozen SQL, line {line}: a quote that never ends, or a block comment; write -- comments"
            )
        parts.append(text[start : token.start()])
        start = token.end()
        if token["end"] is not None:
            whole, parts = "".join(parts).strip(), []
            if whole:
                yield whole
    whole = "".join([*parts, text[start:]]).strip()
    if whole:
        yield whole


def upgrade(script: Path, revision: str, code_from: str) -> None:
    """Run `NNNN_name.sql` beside `script`; from a foreign Alembic also note the revision in our own table.

    Such a run is skipped when `pgqueue db upgrade` has been there before, so the two doors agree.
    """
    context = op.get_context()
    if not _is_foreign(context):
        _run(context, script.with_suffix(".sql"))
        return
    found = None if context.as_sql else _lock_and_read(context)
    if found is not None and found >= revision:
        return
    _execute(context, statement("migrate_make_schema"))
    _run(context, script.with_suffix(".sql"))
    _execute(context, statement("migrate_version_table"))
    _describe_version_table(context)
    context.execute(_versions.delete())
    context.execute(_versions.insert().values(version_num=_literal(revision), code_from=_literal(code_from)))


def downgrade(script: Path, down_revision: str | None) -> None:
    """Run `NNNN_name.down.sql` beside `script`; the counterpart of `upgrade`."""
    context = op.get_context()
    if not _is_foreign(context):
        _run(context, script.with_suffix(".down.sql"))
        return
    if not context.as_sql:
        found = _lock_and_read(context)
        if found is None or (down_revision is not None and found <= down_revision):
            return
    _run(context, script.with_suffix(".down.sql"))
    if down_revision is None:
        _leave(context)
    else:
        values = {
            "version_num": _literal(down_revision),
            "code_from": _literal(_code_from(context, down_revision)),
        }
        context.execute(_versions.update().values(values))


def configure(environment: Any, connection: sa.Connection | None) -> None:
    """Set Alembic (the module `alembic.context`) up for our own version table.

    On `connection`, or for SQL text if it is None.
    """
    environment.configure(
        connection=connection,
        dialect_name="postgresql",
        # Percent signs are doubled for the driver's own paramstyle, which a person's psql would not undo.
        dialect_opts={"paramstyle": "named"},
        version_table=VERSION_TABLE,
        version_table_schema=SCHEMA,
        on_version_apply=_after_step,
    )


def prepare(context: MigrationContext) -> None:
    """What storage/migrate does on its connection before Alembic starts, for those who start Alembic themselves."""
    for name in ("migrate_settings", "migrate_wait_lock", "migrate_make_schema"):
        _execute(context, statement(name))


def _after_step(ctx: MigrationContext, step: Any, heads: set[str], run_args: dict[str, Any]) -> None:
    """Alembic's hook, in the step's transaction and after it wrote the new revision down."""
    del step, run_args
    if not heads:
        _leave(ctx)
        return
    _describe_version_table(ctx)
    ctx.execute(_versions.update().values(code_from=_literal(_code_from(ctx, next(iter(heads))))))


def _describe_version_table(context: MigrationContext) -> None:
    _execute(context, statement("migrate_code_column"))
    _execute(context, statement("migrate_describe_table"))


def _leave(context: MigrationContext) -> None:
    _execute(context, statement("migrate_drop_version_table"))
    _execute(context, statement("migrate_drop_schema"))


def _is_foreign(context: MigrationContext) -> bool:
    return (context.version_table_schema, context.version_table) != (SCHEMA, VERSION_TABLE)


def _lock_and_read(context: MigrationContext) -> str | None:
    """The revision our own table names, once no other migrator is at work."""
    connection = context.connection
    if connection is None:
        raise ConflictError("pgqueue's revisions: Alembic has no connection; run them online or with --sql")
    connection.execute(_text(statement("migrate_wait_lock")))
    recorded, relations, _ = connection.execute(_text(statement("migrate_state"))).one()
    if not recorded:
        return None
    rows = connection.execute(_text(statement("migrate_recorded"))).all()
    if len(rows) > 1 or (not rows and relations):
        raise ConflictError("schema pgqueue: half made; run `pgqueue db check` and mend it first")
    return str(rows[0][0]) if rows else None


def _code_from(context: MigrationContext, revision: str) -> str:
    environment = context.environment_context
    script = environment.script.get_revision(revision) if environment is not None else None
    if script is None:
        raise ConfigurationError(f"revision {revision}: not among alembic/versions; install pgqueue again")
    return str(script.module.code_from)


def _run(context: MigrationContext, file: Path) -> None:
    for one in split_statements(file.read_text(encoding="utf-8")):
        _execute(context, one)


def _execute(context: MigrationContext, sql: str | bytes) -> None:
    context.execute(_text(sql))


def _text(sql: str | bytes) -> sa.TextClause:
    """`sql` as it stands: without the backslashes SQLAlchemy takes `:name` for a parameter."""
    plain = sql.decode() if isinstance(sql, bytes) else sql
    return sa.text(plain.replace(":", r"\:"))


def _literal(revision: str) -> sa.ColumnElement[str]:
    if _REVISION.fullmatch(revision) is None:
        raise ConfigurationError("revision: not of the form pgqueue_0001")
    return sa.literal_column(f"'{revision}'", sa.String)
