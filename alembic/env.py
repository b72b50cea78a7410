"""Alembic's way into our migrations: on a connection that storage/migrate hands over, as SQL text, or for a developer.

Run by Alembic alone. A developer's own call (`alembic upgrade head`) takes the database from the settings;
`pgqueue db upgrade` is the door for everybody else.
"""

from __future__ import annotations

from alembic import context
from pgqueue.storage import frozen, migrate


def run() -> None:
    handed_over = context.config.attributes.get("connection")
    if context.is_offline_mode():
        frozen.configure(context, None)
        with context.begin_transaction():
            frozen.prepare(context.get_context())
            context.run_migrations()
    elif handed_over is not None:
        frozen.configure(context, handed_over)
        context.run_migrations()
    else:
        with migrate.developer_connection() as connection:
            frozen.configure(context, connection)
            if not context.get_context().opts.get("dont_mutate", False):  # `alembic current` only looks
                frozen.prepare(context.get_context())
            context.run_migrations()


run()
