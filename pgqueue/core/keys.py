"""Idempotency keys: how long one is held, what a second use means, and keys made from a job's arguments. Pure.

Called by the producer's options; the database repeats the words in pgqueue.check_key_options.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

import orjson

from pgqueue.core.names import KEY_BYTES_MAX
from pgqueue.errors import InvalidName, InvalidOption

PREFIX: Final = "unique:"
_UNPRINTABLE: Final = re.compile("[\x7f-\x9f]")


class KeyScope(StrEnum):
    """How long a key is held: for a time, for ever, while its job is live, while its job waits for its first start."""

    TIME = "time"
    FOREVER = "forever"
    LIVE = "live"
    WAITING = "waiting"


class Conflict(StrEnum):
    """What a second use of a held key means."""

    RETURN_EXISTING = "return_existing"
    RAISE = "raise"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class KeyOfArguments:
    """Makes a job's key from the arguments named, or from all of them: the same values, the same key."""

    names: tuple[str, ...] | None

    @classmethod
    def of(cls, unique: Any) -> Self:
        """Read the option `unique`: a name, some names, or True for all arguments. Raises InvalidOption."""
        if unique is True:
            return cls(None)
        names = (unique,) if isinstance(unique, str) else unique
        if (
            isinstance(names, Sequence)
            and not isinstance(names, bytes)
            and all(isinstance(name, str) and name.isidentifier() for name in names)
        ):
            return cls(tuple(sorted(set(names))))
        raise InvalidOption("unique", 'must be True, or names of arguments such as ("ride_id",)')

    def __call__(self, args: Mapping[str, object]) -> str:
        """The key: readable while it is short, a digest when it is not."""
        missing = [name for name in self.names or () if name not in args]
        if missing:
            raise InvalidName(
                "unique", f"names the argument {missing[0]!r}, which this job does not have; pass it"
            )
        chosen = dict(args) if self.names is None else {name: args[name] for name in self.names}
        # What is no JSON was refused before; numbers that are equal but spelt apart (1 and 1.0) are apart.
        text = orjson.dumps(chosen, option=orjson.OPT_SORT_KEYS).decode()
        key = PREFIX + text
        if len(key.encode()) <= KEY_BYTES_MAX and not _UNPRINTABLE.search(key):
            return key
        return f"{PREFIX}sha256:{hashlib.sha256(text.encode()).hexdigest()}"
