"""Answers on stdout: the same rows in each form, nothing that steers a terminal, values hidden by default."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from pgqueue.cli.bulk import job_id
from pgqueue.cli.hide import hidden, revealed
from pgqueue.cli.out import Printer, visible
from pgqueue.cli.session import Output
from pgqueue.core.redact import Redactor

BARBADOS = timezone(timedelta(hours=-4))


@dataclass(frozen=True, slots=True)
class Row:
    id: int
    note: str | None
    at: datetime
    share: float
    tags: list[str]


ROWS = [
    Row(1, "plain", datetime(2026, 11, 1, 8, tzinfo=BARBADOS), 0.25, ["a", "b"]),
    Row(2, "a,b\n\x1b[31mred\u202e", datetime(2026, 11, 2, tzinfo=UTC), 12.0, []),
    Row(3, None, datetime(2026, 11, 3, tzinfo=UTC), 1234.5678, ["é"]),
]
COLUMNS = ("id", "note", "at", "share", "tags")


@pytest.fixture(autouse=True)
def no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown(form: Output, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    assert Printer(form, **options).rows(ROWS, COLUMNS, name="id") == 3
    return capsys.readouterr().out


def test_json_is_one_array_with_times_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(shown(Output.JSON, capsys))
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert rows[0]["at"] == "2026-11-01T12:00:00Z"
    assert rows[1]["note"] == ROWS[1].note
    assert rows[2] == {
        "id": 3,
        "note": None,
        "at": "2026-11-03T00:00:00Z",
        "share": 1234.5678,
        "tags": ["é"],
    }


def test_jsonl_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(Output.JSONL, capsys).splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2, 3]


def test_csv_reads_back_with_its_newlines_and_commas(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(shown(Output.CSV, capsys), newline="")))
    assert rows[1]["note"] == ROWS[1].note
    assert (rows[0]["tags"], rows[2]["note"]) == ("a,b", "")
    assert shown(Output.CSV, capsys, headers=False).splitlines()[0].startswith("1,plain")


def test_names_can_be_given_back_as_ids(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(Output.NAME, capsys).splitlines()
    assert lines == ["job/1", "job/2", "job/3"]
    assert [job_id(line) for line in lines] == [1, 2, 3]


@pytest.mark.proves("S21")
def test_a_table_is_aligned_plain_and_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(Output.TABLE, capsys).splitlines()
    assert len(lines) == 4
    assert {line.index(word) for line, word in zip(lines, ("at", "2026", "2026", "2026"), strict=True)} == {
        lines[0].index("at")
    }
    assert "\\n\\x1b[31mred\\u202e" in lines[2]
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", "".join(lines))
    assert shown(Output.TABLE, capsys, headers=False).splitlines() == lines[1:]


def test_wide_characters_keep_their_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(Output.TABLE).rows([{"a": "日本", "b": 1}, {"a": "abcd", "b": 2}], ("a", "b"), name="b")
    assert capsys.readouterr().out == "a     b\n日本  1\nabcd  2\n"


def test_one_object_is_a_line_per_field(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(Output.TABLE).one({"id": 7, "traceback": "line 1\nline\x1b 2", "none": None}, name="id")
    assert (
        capsys.readouterr().out == "id         7\ntraceback  line 1\n           line\\x1b 2\nnone       -\n"
    )


def test_colour_only_where_it_is_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def verdict() -> str:
        Printer(Output.TABLE).rows([{"verdict": "FAIL"}], ("verdict",), name="verdict")
        return capsys.readouterr().out

    assert "\x1b[" not in verdict()  # not a terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[31mFAIL\x1b[0m" in verdict()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in verdict()


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x7f", "\x9b", "\r", "\u2028", "\u202e", "\udc80"])
def test_every_control_character_is_spelled_out(character: str) -> None:
    text = visible(f"a{character}b")
    assert text.isprintable()
    assert text.encode().startswith(b"a\\")


@pytest.mark.proves("S6")
def test_values_are_hidden_and_names_kinds_and_sizes_shown() -> None:
    row = {
        "id": 1,
        "args": {"ride_id": 7, "pin": "hunter2", "stops": [1, 2], "none": None, "deep": {"x": "hunter2"}},
        "headers": {"trace": "hunter2"},
        "result": "hunter2",
    }
    shape = hidden(row)
    assert shape["args"] == {
        "ride_id": "int",
        "pin": "str[7]",
        "stops": "list[2]",
        "none": "null",
        "deep": "dict[1]",
    }
    assert "hunter2" not in json.dumps(shape)


@pytest.mark.proves("S6")
def test_even_revealed_values_of_secret_names_stay_masked() -> None:
    row = revealed({"args": {"ride_id": 7, "password": "hunter2", "plate": "X 1"}}, Redactor(["plate"]))
    assert row["args"] == {"ride_id": 7, "password": "***", "plate": "***"}


@pytest.mark.parametrize("text", ["", "0", "-1", "job/", "job/x", "1.0", "1e3", str(2**63), "x" * 100, "٣"])
def test_what_is_no_job_id_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="positive integer"):
        job_id(text)
