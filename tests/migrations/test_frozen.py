"""Frozen SQL is cut into exactly the statements that a person would see."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig.database import ROOT

from pgqueue.errors import ConfigurationError
from pgqueue.storage.frozen import split_statements

PIECES = st.sampled_from(
    [
        "SELECT 1",
        "SELECT ';' -- not; here\n, 2",
        "SELECT 'it''s; fine'",
        "SELECT E'a\\';b'",
        'SELECT 1 AS "odd;""name"',
        "DO $$ BEGIN PERFORM 1; PERFORM '$'; END $$",
        "DO $body$ BEGIN PERFORM $$;$$; END $body$",
        "SELECT $1::text, a$b, 1/2, '%I', ':name'",
    ]
)


@given(st.lists(PIECES, min_size=1, max_size=6), st.booleans())
def test_joined_statements_come_apart_again(pieces: list[str], ended: bool) -> None:
    text = "-- head; of the file\n" + ";\n\n".join(pieces) + (";\n" if ended else "\n-- tail; of the file")
    assert list(split_statements(text)) == [piece.replace(" -- not; here", " ") for piece in pieces]


@pytest.mark.parametrize("text", ["", "\n", "-- only; a comment", ";;\n;"])
def test_nothing_is_no_statement(text: str) -> None:
    assert list(split_statements(text)) == []


@pytest.mark.parametrize(
    "text", ["SELECT 'never ends", 'SELECT "never', "DO $$ BEGIN", "DO $a$ $$ $b$", "SELECT 1 /* ; */"]
)
def test_what_is_not_closed_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(ConfigurationError, match="frozen SQL, line 3:"):
        list(split_statements("SELECT 1;\n\n" + text))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "alembic" / "versions").glob("*.sql")), ids=lambda path: path.name
)
def test_nothing_of_a_frozen_file_is_lost(path: Path) -> None:
    text = path.read_text()
    whole = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("--"))
    kept = " ".join(split_statements(text))
    assert sorted(kept.replace(";", "").split()) == sorted(whole.replace(";", "").split())
