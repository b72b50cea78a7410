"""Answers on stdout: a table for people, JSON, JSON lines, CSV or names for programs. Stable names, ISO-UTC times."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pgqueue.cli.session import Output
from pgqueue.core.durations import format_duration

CELL_CHARS_MAX: Final = 80
_ESCAPES: Final = {c: f"\\x{c:02x}" for c in (*range(32), 127)}


class Printer:
    """Writes rows or one object in the form asked for."""

    def __init__(self, output: Output, *, headers: bool = True, utc: bool = False) -> None:
        self._output = output
        self._headers = headers
        self._utc = utc

    def rows(
        self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, name: str, kind: str = "job"
    ) -> int:
        """Write rows; `columns` are shown in tables and CSV, `name` is the key of `-o name`. Returns how many."""
        count = 0
        if self._output is Output.JSON:
            data = [plain(row) for row in rows]
            sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
            return len(data)
        if self._output is Output.JSONL:
            for row in rows:
                sys.stdout.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
                count += 1
            return count
        if self._output is Output.NAME:
            for row in rows:
                sys.stdout.write(f"{kind}/{row[name]}\n")
                count += 1
            return count
        if self._output is Output.CSV:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            if self._headers:
                writer.writerow(columns)
            for row in rows:
                values = plain(row)
                writer.writerow([_text(values.get(column)) for column in columns])
                count += 1
            return count
        return self._table(list(rows), columns)

    def one(self, row: Mapping[str, Any], *, name: str, kind: str = "job") -> None:
        """Write one object: a line per field in a table."""
        if self._output in {Output.JSON, Output.JSONL}:
            sys.stdout.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
        elif self._output is Output.NAME:
            sys.stdout.write(f"{kind}/{row[name]}\n")
        elif self._output is Output.CSV:
            self.rows([row], list(row), name=name, kind=kind)
        else:
            width = max(len(key) for key in row)
            for key, value in row.items():
                lines = (
                    _clean(self._cell(value, whole=True)).split("\\x0a") if value not in (None, "") else ["-"]
                )
                sys.stdout.write(f"{key:<{width}}  {lines[0]}\n")
                sys.stdout.writelines(f"{'':<{width}}  {line}\n" for line in lines[1:])

    def line(self, text: str) -> None:
        """Write a line as it is."""
        sys.stdout.write(text + "\n")

    def _table(self, rows: list[Mapping[str, Any]], columns: Sequence[str]) -> int:
        cells = [[_clean(self._cell(row.get(column))) for column in columns] for row in rows]
        widths = [max([len(column), *(len(line[i]) for line in cells)]) for i, column in enumerate(columns)]
        if self._headers:
            sys.stdout.write(_line(columns, widths))
        for line in cells:
            sys.stdout.write(_line(line, widths))
        return len(rows)

    def _cell(self, value: Any, *, whole: bool = False) -> str:
        if isinstance(value, datetime) and not self._utc and sys.stdout.isatty():
            return _ago(value)
        text = _text(_plain(value))
        return text if whole or len(text) <= CELL_CHARS_MAX else text[: CELL_CHARS_MAX - 1] + "…"


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: times ISO in UTC, everything else as it is or as text."""
    return {key: _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _clean(text: str) -> str:
    """Control characters of stored text must not reach a terminal."""
    return text.translate(_ESCAPES)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() + "\n"


def _ago(moment: datetime) -> str:
    seconds = (datetime.now(UTC) - moment).total_seconds()
    words = format_duration(abs(seconds) if abs(seconds) < 1 else float(round(abs(seconds))))
    return f"{words} ago" if seconds >= 0 else f"in {words}"
