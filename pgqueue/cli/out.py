"""Answers on stdout: a table for people, JSON, JSON lines, CSV or names for programs. Stable names, ISO-UTC times.

What a terminal shows is free of control characters, whatever is stored. Colour only on a terminal, and never
where NO_COLOR says so.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any, Final
from unicodedata import combining, east_asian_width

from pgqueue.cli.session import Output
from pgqueue.core.durations import format_duration

CELL_CHARS_MAX: Final = 80
# Controls, and the marks that reorder or break lines.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BOLD, _RED, _YELLOW, _GREEN = "1", "31", "33", "32"
_COLOURS: Final = {
    "FAIL": _RED,
    "dead": _RED,
    "stale": _RED,
    "WARN": _YELLOW,
    "held": _YELLOW,
    "draining": _YELLOW,
    "PASS": _GREEN,
}

Row = Any  # a mapping, or one of the control room's frozen rows


class Printer:
    """Writes rows or one object in the form asked for."""

    def __init__(self, output: Output, *, headers: bool = True, utc: bool = False) -> None:
        self.output = output
        self._headers = headers
        self._utc = utc

    def rows(self, rows: Iterable[Row], columns: Sequence[str], *, name: str, kind: str = "job") -> int:
        """Write rows and return how many. Tables and CSV show `columns`, `-o name` shows `kind/row[name]`."""
        maps = (mapping_of(row) for row in rows)
        match self.output:
            case Output.JSON:
                data = [plain(row) for row in maps]
                _write(_json(data))
                return len(data)
            case Output.JSONL:
                return _write_each(_json(plain(row)) for row in maps)
            case Output.NAME:
                return _write_each(f"{kind}/{row[name]}" for row in maps)
            case Output.CSV:
                return self._csv(maps, columns)
            case Output.TABLE:
                return self._table(list(maps), columns)

    def one(self, row: Row, *, name: str, kind: str = "job") -> None:
        """Write one object: a line per field in a table."""
        fields_of = mapping_of(row)
        match self.output:
            case Output.JSON | Output.JSONL:
                _write(_json(plain(fields_of)))
            case Output.NAME:
                _write(f"{kind}/{fields_of[name]}")
            case Output.CSV:
                self._csv(iter([fields_of]), list(fields_of))
            case Output.TABLE:
                width = max(len(key) for key in fields_of)
                for key, value in fields_of.items():
                    lines = [visible(line) for line in self._words(value).splitlines()] or ["-"]
                    for head, line in zip_longest([key], lines, fillvalue=""):
                        _write(f"{_painted(head.ljust(width), _BOLD)}  {line}".rstrip())

    def stream(
        self, rows: Iterable[Row], columns: Mapping[str, int], *, name: str, kind: str = "job"
    ) -> None:
        """Write rows as they come, each shown at once. `columns`: with their widths in tables; JSON comes line by line."""
        maps = (mapping_of(row) for row in rows)
        if self._headers and self.output is Output.TABLE:
            _write(_painted(_line(list(columns), list(columns.values())), _BOLD))
        if self._headers and self.output is Output.CSV:
            csv.writer(sys.stdout, lineterminator="\n").writerow(columns)
        self.flush()
        for row in maps:
            match self.output:
                case Output.JSON | Output.JSONL:
                    _write(_json(plain(row)))
                case Output.NAME:
                    _write(f"{kind}/{row[name]}")
                case Output.CSV:
                    values = [_text(_plain(row.get(column))) for column in columns]
                    csv.writer(sys.stdout, lineterminator="\n").writerow(values)
                case Output.TABLE:
                    cells = [_cut(visible(_text(_plain(row.get(column))))) for column in columns]
                    _write(_line(cells, list(columns.values()), paint=True))
            self.flush()

    def document(self, value: Any) -> None:
        """Write a JSON value by itself."""
        _write(_json(_plain(value)))

    def line(self, text: str) -> None:
        """Write a line of words."""
        _write(visible(text))

    def clear(self) -> None:
        """Begin a new picture: an empty screen on a terminal, the next lines elsewhere."""
        if sys.stdout.isatty() and self.output is Output.TABLE:
            sys.stdout.write("\x1b[H\x1b[2J")

    def flush(self) -> None:
        """Show what was written; a reader that is gone is noticed here."""
        sys.stdout.flush()

    def _csv(self, rows: Iterator[Mapping[str, Any]], columns: Sequence[str]) -> int:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        if self._headers:
            writer.writerow(columns)
        count = 0
        for count, row in enumerate(rows, 1):  # noqa: B007 - the count is the answer
            writer.writerow([_text(_plain(row.get(column))) for column in columns])
        return count

    def _table(self, rows: list[Mapping[str, Any]], columns: Sequence[str]) -> int:
        cells = [[_cut(visible(self._words(row.get(column)))) for column in columns] for row in rows]
        widths = [
            max([len(column), *(_width(line[i]) for line in cells)]) for i, column in enumerate(columns)
        ]
        if self._headers:
            _write(_painted(_line(columns, widths), _BOLD))
        for line in cells:
            _write(_line(line, widths, paint=True))
        return len(rows)

    def _words(self, value: Any) -> str:
        if isinstance(value, datetime) and not self._utc and sys.stdout.isatty():
            return _ago(value)
        return _text(_plain(value))


def mapping_of(row: Row) -> Mapping[str, Any]:
    """A row's values by name."""
    if is_dataclass(row):
        return {field.name: getattr(row, field.name) for field in fields(row)}
    found: Mapping[str, Any] = row
    return found


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: times ISO in UTC, everything else as it is or as text."""
    return {key: _plain(value) for key, value in row.items()}


def visible(text: str) -> str:
    """Text with its control characters spelled out: stored words must not steer a terminal."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return _json(value) if isinstance(value, list | dict) else str(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")


def _write_each(lines: Iterable[str]) -> int:
    count = 0
    for count, line in enumerate(lines, 1):  # noqa: B007 - the count is the answer
        _write(line)
    return count


def _line(cells: Sequence[str], widths: Sequence[int], *, paint: bool = False) -> str:
    padded = []
    for cell, width in zip(cells, widths, strict=True):
        space = " " * max(0, width - _width(cell))
        padded.append((_painted(cell, _COLOURS.get(cell, "")) if paint else cell) + space)
    return "  ".join(padded).rstrip()


def _cut(text: str) -> str:
    """On a terminal a long cell is cut; what goes into a pipe stays whole."""
    return (
        text if len(text) <= CELL_CHARS_MAX or not sys.stdout.isatty() else text[: CELL_CHARS_MAX - 1] + "…"
    )


def _width(text: str) -> int:
    """Columns on a terminal: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _painted(text: str, colour: str) -> str:
    if not colour or os.environ.get("NO_COLOR") or not (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")):
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def _ago(moment: datetime) -> str:
    seconds = (datetime.now(UTC) - moment).total_seconds()
    words = format_duration(abs(seconds) if abs(seconds) < 1 else float(round(abs(seconds))))
    return f"{words} ago" if seconds >= 0 else f"in {words}"
