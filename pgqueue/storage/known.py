"""Which revisions this code knows: the files of `alembic/versions`. Asks no database and imports no driver."""

from __future__ import annotations

from pgqueue.storage.statements import alembic_dir


def revisions() -> list[str]:
    """Every revision this code knows, oldest first; they are one line without branches."""
    return [
        f"pgqueue_{path.name[:4]}"
        for path in sorted((alembic_dir() / "versions").glob("[0-9][0-9][0-9][0-9]_*.py"))
    ]


def head() -> str:
    """The newest revision this code knows, the one it expects."""
    return revisions()[-1]
