"""Alert rules, incidents and deliveries. The SQL stands beside this file; once released, neither changes any more."""

from __future__ import annotations

from pathlib import Path

from pgqueue.storage import frozen

revision = "pgqueue_0003"
down_revision = "pgqueue_0002"
branch_labels = None
depends_on = None
# Programs whose own newest revision is this one or later run on the schema that this revision makes.
code_from = "pgqueue_0001"


def upgrade() -> None:
    frozen.upgrade(Path(__file__), revision, code_from)


def downgrade() -> None:
    frozen.downgrade(Path(__file__), down_revision)
