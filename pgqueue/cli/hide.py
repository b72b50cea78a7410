"""What of a job's arguments, headers and result may be seen: their names, kinds and sizes; values only when asked for.

Used by the verbs that show or export one object whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pgqueue.cli.out import mapping_of
from pgqueue.core.redact import Redactor

_VALUES: Final = ("args", "headers", "result")


def hidden(row: Any) -> dict[str, Any]:
    """A job or dead letter without values: `{"ride_id": "int", "note": "str[40]"}`."""
    return _changed(row, _shape)


def revealed(row: Any, redactor: Redactor) -> dict[str, Any]:
    """The same with its values, but for those of names that are always masked (setting `redact`)."""
    return _changed(row, lambda value: redactor.mapping({"it": value})["it"])


def _changed(row: Any, change: Callable[[Any], Any]) -> dict[str, Any]:
    shown = dict(mapping_of(row))
    for name in _VALUES:
        if shown.get(name) is not None:
            shown[name] = change(shown[name])
    return shown


def _shape(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _kind(item) for key, item in value.items()}
    return _kind(value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    size = f"[{len(value)}]" if isinstance(value, str | list | dict) else ""
    return f"{type(value).__name__}{size}"
