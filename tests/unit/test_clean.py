"""Cleaning and cutting of foreign text: what Postgres refuses is spelled out, what is too long keeps its ends."""

from __future__ import annotations

import pytest

from pgqueue.core.clean import clean_text, cut_bytes, cut_chars, hide_row_values


@pytest.mark.proves("I6", "S21")
@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain é🚕", "plain é🚕"),
        ("line\n\ttabbed", "line\n\ttabbed"),
        ("a\0b", "a\\x00b"),
        ("a\r\nb\rc", "a\nb\\x0dc"),
        ("\x1b[31mred\x7f\x9b", "\\x1b[31mred\\x7f\\x9b"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), "caf\\udce9"),
        ("\x9f\xa0", "\\x9f\xa0"),
        ("\ud800", "\\ud800"),
        ("\ud83d\ude95", "\\ud83d\\ude95"),
    ],
)
def test_what_cannot_be_stored_is_spelled_out(text, cleaned):
    assert clean_text(text) == cleaned
    assert clean_text(cleaned) == cleaned


@pytest.mark.proves("I6")
def test_the_whole_of_latin_1_survives_as_storable_text():
    cleaned = clean_text("".join(map(chr, range(256))))
    assert cleaned.encode()
    assert not [c for c in cleaned if not c.isprintable() and c not in "\n\t\xa0\xad"]


@pytest.mark.proves("I6")
@pytest.mark.parametrize("character", ["x", "é", "€", "🚕"])
@pytest.mark.parametrize("bytes_max", [40, 48, 49, 60, 100, 8_192])
def test_a_cut_text_fits_and_keeps_both_ends(character, bytes_max):
    fits = "x" * bytes_max
    assert cut_bytes(fits, bytes_max) == fits
    text = f"HEAD{character * bytes_max}TAIL"
    cut = cut_bytes(text, bytes_max)
    assert len(cut.encode()) <= bytes_max
    if bytes_max >= 100:
        assert cut.startswith("HEAD")
        assert cut.endswith("TAIL")
        assert "bytes left out" in cut


def test_the_note_of_a_cut_tells_how_much_is_missing():
    head, note, tail = cut_bytes("x" * 1_000, 100).split("\n")
    assert note == f"… {1_000 - len(head) - len(tail)} bytes left out …"
    assert abs(len(head) - 2 * len(tail)) <= 2


def test_a_cut_of_50_mb_keeps_the_note_within_the_limit():
    cut = cut_bytes("x" * 50_000_000, 8_192)
    assert len(cut.encode()) <= 8_192
    assert "left out" in cut


def test_characters_are_cut_in_the_middle():
    assert cut_chars("x" * 10, 10) == "x" * 10
    assert cut_chars("aaaaXXXbbbb", 8) == "aaaa\n… 3 characters left out …\nbbbb"


@pytest.mark.proves("S8")
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("no such thing", ("no such thing",)),
        ("duplicate key\nDETAIL:  Key (email)=(hunter2) already exists.", ("duplicate key", "DETAIL")),
        ("bad row\nDETAIL:  Failing row contains (1, hunter2\n, hunter2).\nHINT:  Fix it.", ("bad row", "HINT:  Fix it.")),
        ("bad row\nDETAIL:  (hunter2)\nCONTEXT:  PL/pgSQL", ("CONTEXT:  PL/pgSQL",)),
        (repr(ValueError("dup\nDETAIL:  Key (a)=(hunter2)\nHINT:  x")), ("ValueError", "HINT")),
        ("DETALLE:  La clave (hunter2) existe", ("DETALLE",)),
        ("DÉTAIL : La clé (hunter2) existe", ("DÉTAIL",)),
        ("failed [SQL: INSERT …]\n[parameters: {'a': 'hunter2]\\n'}]\n(Background on this error at: https://x)", ("[SQL", "(Background")),
        ("failed\n[parameters: ('hunter2',)]", ("failed", "[parameters: hidden]")),
    ],
)  # fmt: skip
def test_row_values_that_drivers_quote_are_hidden(text, kept):
    hidden = hide_row_values(text)
    assert "hunter2" not in hidden
    for words in kept:
        assert words in hidden
