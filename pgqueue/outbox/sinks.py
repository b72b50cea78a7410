"""What messages are handed to: the promise every sink keeps, and the sink that is a function of the application.

Made by the App's decorators, opened by the relay. A sink returns when its receiver has the message, and raises
otherwise; what it raises decides what becomes of the message (core/delivery.py).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pgqueue.core.delivery import POISON, SINK_RETRY
from pgqueue.core.message import Message, Parcel, check_pattern, check_sink
from pgqueue.core.retry import Retry
from pgqueue.errors import ConfigurationError
from pgqueue.settings import Settings

CONCURRENCY_MAX: Final = 64
CLOSE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class SinkPolicy:
    """What all sinks have: a name, the topics they want, and how patient they are.

    on_poison: whether later messages of a key wait (`block`) or go on (`skip`) once a message of it has become a
    dead letter · concurrency: how many lines one relay delivers to it at a time.
    """

    name: str
    topics: tuple[str, ...]
    retry: Retry
    on_poison: str
    concurrency: int


class Sender(Protocol):
    """An opened sink. `send` is called from several threads at once."""

    def send(self, parcel: Parcel) -> None:
        """Deliver; return once the receiver has it."""

    def close(self) -> None:
        """Let go of connections."""


class Sink(Protocol):
    """A sink as the application defined it."""

    @property
    def policy(self) -> SinkPolicy:
        """Its name, topics and patience."""

    def open(self, settings: Settings) -> Sender:
        """Make ready to send. Raises ConfigurationError for what cannot work."""


class RefusedError(Exception):
    """The receiver answered, but did not take the message. `outage`: others would fare no better."""

    def __init__(self, reason: str, *, outage: bool = False) -> None:
        self.outage = outage
        super().__init__(reason)


def sink_policy(
    name: str,
    topics: Iterable[str] | str,
    *,
    retry: Retry | None = None,
    on_poison: str = "block",
    concurrency: int = 8,
) -> SinkPolicy:
    """Check what all sinks have. Raises InvalidName, ConfigurationError."""
    wanted = (topics,) if isinstance(topics, str) else tuple(topics)
    if on_poison not in POISON:
        raise ConfigurationError(f"sink {name}: on_poison is one of {', '.join(POISON)}")
    if not 1 <= concurrency <= CONCURRENCY_MAX:
        raise ConfigurationError(f"sink {name}: concurrency is out of range; 1 to {CONCURRENCY_MAX}")
    return SinkPolicy(
        check_sink(name),
        tuple(dict.fromkeys(map(check_pattern, wanted))),
        retry or SINK_RETRY,
        on_poison,
        concurrency,
    )


@dataclass(frozen=True, slots=True)
class FunctionSink:
    """A function that takes a Message, as `@app.sink` registers it."""

    policy: SinkPolicy
    function: Callable[[Message], Any]

    def open(self, settings: Settings) -> Sender:
        """Async functions get an event loop of their own, in a thread."""
        del settings
        if inspect.iscoroutinefunction(self.function):
            return _LoopSender(self.function)
        return _FunctionSender(self.function)


class _FunctionSender:
    def __init__(self, function: Callable[[Message], Any]) -> None:
        self._function = function

    def send(self, parcel: Parcel) -> None:
        self._function(parcel.opened())

    def close(self) -> None:
        """Nothing is held."""


class _LoopSender:
    """One loop for all messages, so that a client made in it stays usable."""

    def __init__(self, function: Callable[[Message], Any]) -> None:
        self._function = function
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pgqueue-sink-loop", daemon=True)
        self._thread.start()

    def send(self, parcel: Parcel) -> None:
        asyncio.run_coroutine_threadsafe(self._function(parcel.opened()), self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()
