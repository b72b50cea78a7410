"""Where settings come from: the file nearest to the working folder, and the environment's database URLs.

Called by `pgqueue.settings` alone. It reads files and decides nothing about values; what is wrong with a
file is returned as text, so that all problems can be told at once.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

OWN_FILES = ("pgqueue.toml", "pgqueue.yaml", "pgqueue.yml")
PYPROJECT = "pyproject.toml"
CONFIG_ENV = "PGQUEUE_CONFIG"
ENV_PREFIX = "PGQUEUE_"
# Variables of this package that are no settings.
OTHER_ENV = {"CONFIG", "ACTOR"}
# An unknown variable this close to a known name is a typing error; others are left alone, because Kubernetes
# gives every container variables like PGQUEUE_SERVICE_HOST when a service is called pgqueue.
ENV_TYPO_CUTOFF = 0.8
FILE_BYTES_MAX = 1_048_576

_SCHEME = re.compile(r"postgres(?:ql)?(?:\+[a-z0-9_]+)?://", re.IGNORECASE)
_ANY_SCHEME = re.compile(r"[a-z][a-z0-9+._-]*://", re.IGNORECASE)
_KEYWORD_PASSWORD = re.compile(r"((?:^|[\s?&])password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileValues:
    """What one configuration file said: `label` is how messages name it."""

    label: str = ""
    path: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_config_file(start: Path | None) -> FileValues:
    """The values of `PGQUEUE_CONFIG`'s file, or of the first configuration at or above `start`."""
    named = os.environ.get(CONFIG_ENV)
    if named:
        return _read(Path(named))
    try:
        folder = (start or Path.cwd()).resolve()
    except FileNotFoundError:
        return FileValues(problems=("the working folder no longer exists: start from another one",))
    for directory in (folder, *folder.parents):
        found = [_read(directory / name) for name in OWN_FILES if (directory / name).is_file()]
        pyproject = directory / PYPROJECT
        if pyproject.is_file():
            table = _read(pyproject)
            if table.values or table.problems:
                found.append(table)
        if len(found) > 1:
            names = " and ".join(str(one.path) for one in found)
            return FileValues(problems=(f"{names} both configure pgqueue: keep one of them",))
        if found:
            return found[0]
    return FileValues()


def named_values(file: FileValues, problems: list[str]) -> dict[str, Any]:
    """The file's values under the table's names; durations as text, so that 30 without a unit is refused."""
    values = {name: value for name, value in file.values.items() if not name.startswith("_")}
    # Underscored names would be taken for pydantic's own switches.
    problems += [f"{name} in {file.label}: no such setting" for name in file.values if name.startswith("_")]
    if "retry_policy" in values:
        policy = values.pop("retry_policy")
        retry = values.setdefault("retry", {})
        if isinstance(retry, dict) and "default" not in retry:
            values["retry"] = {**retry, "default": policy}
        else:
            problems.append(f"retry_policy in {file.label}: retry.default is set as well; keep one of them")
    for name, value in values.items():
        if name.endswith("_s") and isinstance(value, int | float) and not isinstance(value, bool):
            values[name] = str(value)
    return values


def unknown_variables(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Problems and warnings for `PGQUEUE_*` variables that are none of the settings `names`."""
    known = {*(name.upper() for name in names), *OTHER_ENV}
    problems, warnings = [], []
    for name in sorted(os.environ):
        own = name.upper().removeprefix(ENV_PREFIX)
        if own == name.upper() or own in known:
            continue
        nearest = difflib.get_close_matches(own, known, n=1, cutoff=ENV_TYPO_CUTOFF)
        if nearest:
            problems.append(f"{name}: no such setting; did you mean {ENV_PREFIX}{nearest[0]}?")
        else:
            warnings.append(f"{name} is set but is no setting of pgqueue: it is ignored")
    return problems, warnings


def normalise_dsn(value: str) -> str:
    """A database URL in the form libpq reads; SQLAlchemy's and Heroku's schemes are accepted.

    Raises ValueError (without the value) for a URL that is not Postgres's.
    """
    text = value.strip()
    if _SCHEME.match(text):
        return _SCHEME.sub("postgresql://", text, count=1)
    if _ANY_SCHEME.match(text) or (text and "=" not in text):
        raise ValueError(
            "is not a Postgres address: write postgresql://user@host:5432/dbname or host=… dbname=…"
        )
    return text


def redact_dsn(dsn: str) -> str:
    """The same address with `***` for each password, fit for a terminal or a log."""
    text = dsn
    if "://" in text:
        scheme, rest = text.split("://", 1)
        # Up to the last @: a password with an unescaped @, / or ? is still hidden whole.
        login, at, place = rest.rpartition("@")
        if at and ":" in login:
            rest = f"{login.split(':', 1)[0]}:***@{place}"
        text = f"{scheme}://{rest}"
    return _KEYWORD_PASSWORD.sub(r"\1***", text)


def holds_password(dsn: str) -> bool:
    """Whether a password stands in the address."""
    return redact_dsn(dsn) != dsn


def _read(path: Path) -> FileValues:  # noqa: PLR0911 - one way out for each way to be wrong
    label = f"{path} [tool.pgqueue]" if path.name == PYPROJECT else str(path)
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            return _refused(path, f"is larger than {FILE_BYTES_MAX} bytes: it is no configuration file")
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text) if path.suffix in {".yaml", ".yml"} else tomllib.loads(text)
    except UnicodeDecodeError:
        return _refused(path, "is not UTF-8 text: save it as UTF-8")
    except OSError as error:
        return _refused(path, f"cannot be read ({error.strerror}): check its name and its mode")
    except tomllib.TOMLDecodeError as error:
        return _refused(path, f"is not TOML: {error}")
    except yaml.YAMLError as error:
        # The error's own text quotes the line, which may hold a password: only its place is told.
        mark = getattr(error, "problem_mark", None)
        return _refused(path, "is not YAML" + (f": look at line {mark.line + 1}" if mark else ""))
    if path.name == PYPROJECT:
        tools = data.get("tool")
        data = tools.get("pgqueue") if isinstance(tools, dict) else None
    if data is None:
        data = {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        return _refused(path, "must hold one table of settings, name by name")
    return FileValues(label=label, path=path, values=data, warnings=_mode_warnings(path, data))


def _refused(path: Path, why: str) -> FileValues:
    return FileValues(path=path, problems=(f"{path}: {why}",))


def _mode_warnings(path: Path, data: Mapping[str, Any]) -> tuple[str, ...]:
    mode = path.stat().st_mode
    secrets = [
        name
        for name in ("database_url", "direct_database_url")
        if isinstance(data.get(name), str) and holds_password(data[name])
    ]
    warnings = []
    if secrets and mode & stat.S_IROTH:
        warnings.append(
            f"{path} holds a password ({', '.join(secrets)}) and everyone may read it: chmod o-r {path}"
        )
    if data and mode & stat.S_IWOTH:
        warnings.append(f"{path} may be changed by everyone on this machine: chmod o-w {path}")
    return tuple(warnings)
