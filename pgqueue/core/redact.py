"""Masking of secrets in text and mappings: the one function behind logs, errors, spans, CLI and web.

Called on everything that leaves the process as words; pure. Every pattern is bounded, so that hostile
text costs time in proportion to its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pgqueue.errors import InvalidOption

MASK = "***"
DEFAULT_NAMES: tuple[str, ...] = (
    "password",
    "passwd",
    "secret",
    "token",
    "authorization",
    "api_key",
    "apikey",
    "card",
    "cvv",
    "iban",
    "cookie",
    "private_key",
)

_DEPTH_MAX = 64
_SHORT_CHARS = 4  # so short a name also stands inside ordinary words ("discard"): only whole words count
_NAME_OK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\- ]{0,62}")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS = re.compile(r"[^a-z0-9]+")

# The quantifiers are possessive (`++`): what is matched once is never tried again. A URL's password may
# itself hold ":" or "@", so the whole word is taken and masked up to its last "@".
_URL = re.compile(r"""(://[^\s:/@'"<>]*+:)([^\s'"<>]*+)""")
_BEARER = re.compile(r"\b(bearer)\s{1,4}[A-Za-z0-9._~+/=:-]{6,}+", re.IGNORECASE)
_PEM = re.compile(
    r"-----BEGIN ([A-Z ]{0,40}PRIVATE KEY)-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL
)
# These headers hold lists with ";" and ",": masked to the end of the line or quote.
_HEADER = re.compile(
    r"""((?:cookie|authorization)\\{0,3}["']?\s{0,3}:[ \t]{0,3})"""
    r"""(\\{1,3}"[^"]*+"|\\{1,3}'[^']*+'|"[^"]*+"?|'[^']*+'?|[^\n]++)""",
    re.IGNORECASE,
)
_OPENING_QUOTE = re.compile(r"""(?:\\{1,3}|[rbu]{0,2})["']""")
_ASSIGNED = r"""[\w-]{0,40}\\{0,3}["']?\s{0,3}(?:=>|:=|==|[=:])\s{0,3}"""
_VALUE = (
    r"(?:"
    r"""\\{1,3}"[^"]*+"|\\{1,3}'[^']*+'|"""  # JSON inside a string
    r"""[rbu]{0,2}"(?:[^"\\]|\\.)*+"?|[rbu]{0,2}'(?:[^'\\]|\\.)*+'?|"""
    r"\[[^\]]*+\]?|\([^)]*+\)?|"
    r"""(?i:(?:basic|bearer|digest|token)\s{1,4})?[^\s,;&)}\]"'<>]++"""
    r")"
)


class Redactor:
    """Masks what stands behind a sensitive name, passwords in URLs, bearer tokens and private keys.

    `extra_names` extends the built-in names. Names are matched inside longer ones (`db_password`,
    `accessToken`, `X-Api-Key`); names of up to four letters only as whole words of them (`card_no`, not
    `discard`). Masking errs towards too much.
    """

    __slots__ = ("_long", "_pattern", "_short", "_words")

    def __init__(self, extra_names: Iterable[str] = ()) -> None:
        names = {_normal(name) for name in (*DEFAULT_NAMES, *_checked(extra_names))}
        self._short = frozenset(name for name in names if len(name) <= _SHORT_CHARS)
        self._long = tuple(sorted(names - self._short, key=lambda name: (-len(name), name)))
        # Most text holds none of these; asking so is far quicker than the pattern is.
        self._words = tuple(sorted({name.split("_")[0] for name in names}))
        long = "|".join(_spelled(name) for name in self._long)
        short = "|".join(_spelled(name) for name in sorted(self._short))
        capital = "|".join(re.escape(name.capitalize()) for name in sorted(self._short))
        # No prefix is matched: what comes before the word stays, and nothing is scanned twice.
        self._pattern = re.compile(
            rf"((?:(?i:{long})|(?<![A-Za-z])(?i:{short})(?![a-z])|(?<=[a-z])(?:{capital})(?![a-z])){_ASSIGNED})({_VALUE})",
            re.DOTALL,
        )

    def text(self, text: str) -> str:
        """Return `text` with every secret that can be recognised replaced by `***`."""
        if "-----BEGIN" in text:
            text = _PEM.sub(rf"-----BEGIN \1-----{MASK}", text)
        if "://" in text:
            text = _URL.sub(_mask_url, text)
        folded = text.lower()
        if "bearer" in folded:
            text = _BEARER.sub(rf"\1 {MASK}", text)
        if "cookie" in folded or "authorization" in folded:
            text = _HEADER.sub(_mask_value, text)
        if any(word in folded for word in self._words):
            text = self._pattern.sub(_mask_value, text)
        return text

    def mapping(self, mapping: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy with the values of sensitive names masked, at any depth, and other text redacted."""
        return self._copy_mapping(mapping, 1)

    def is_sensitive(self, name: str) -> bool:
        """Say whether a field of this name is masked."""
        normal = _normal(name)
        return any(word in normal for word in self._long) or not self._short.isdisjoint(normal.split("_"))

    def _copy_mapping(self, mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        return {
            key: MASK if isinstance(key, str) and self.is_sensitive(key) else self._copy(value, depth)
            for key, value in mapping.items()
        }

    def _copy(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return MASK if depth >= _DEPTH_MAX else self._copy_mapping(value, depth + 1)
        if isinstance(value, list | tuple):
            return MASK if depth >= _DEPTH_MAX else [self._copy(item, depth + 1) for item in value]
        return value


def _mask_url(match: re.Match[str]) -> str:
    before, found, host = match[2].rpartition("@")
    return f"{match[1]}{MASK}@{host}" if found and before else match[0]


def _mask_value(match: re.Match[str]) -> str:
    # Quotes stay, so that masked JSON is still JSON.
    quote = _OPENING_QUOTE.match(match[2])
    closing = quote[0].lstrip("rbu") if quote else ""
    return f"{match[1]}{quote[0] if quote else ''}{MASK}{closing}"


def _checked(names: Iterable[Any]) -> Iterable[str]:
    if isinstance(names, str):
        raise InvalidOption("redact", 'must be a list of names, such as ["passport_no"]')
    for name in names:
        if not isinstance(name, str) or not _NAME_OK.fullmatch(name):
            raise InvalidOption(
                "redact", "a name must be letters, digits, `_`, `-`, `.` or spaces", limit="1–63 characters"
            )
        yield name


def _normal(name: str) -> str:
    """Bring `apiKey`, `API-KEY` and `api key` to one form."""
    return _SEPARATORS.sub("_", _CAMEL.sub("_", name).lower()).strip("_")


def _spelled(name: str) -> str:
    return r"[_\-. ]?".join(re.escape(word) for word in name.split("_"))
