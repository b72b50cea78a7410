"""${message}. The SQL stands beside this file; once released, neither changes any more."""

from __future__ import annotations

from pathlib import Path

from pgqueue.storage import frozen

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}
# Programs whose own newest revision is this one or later run on the schema that this revision makes.
# Raise it only in a revision that takes away what the release before still uses.
code_from = ${repr(down_revision)}


def upgrade() -> None:
    frozen.upgrade(Path(__file__), revision, code_from)


def downgrade() -> None:
    frozen.downgrade(Path(__file__), down_revision)
