"""Lines of messages on their way to a sink: the threads that deliver them, one message after the other.

Called by the relay, which takes lines and hears what became of their messages. Touches no database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Final

from pgqueue.core.message import Parcel
from pgqueue.errors import InvalidArguments
from pgqueue.outbox.sinks import Sender
from pgqueue.tracing import Carrier, Producing, TraceMode, publishing

SETTLE_EVERY_S: Final = 0.5
"""So much delivered work is repeated at most if the relay dies: then what was delivered is said."""


@dataclass(slots=True)
class Lease:
    """Until when (steady clock) a line is surely this relay's: after it nothing more of it is sent."""

    until: float


@dataclass(frozen=True, slots=True)
class Line:
    """A claimed line: the first messages of it, in order. `attempts` failed tries has `failing_id`."""

    sink: str
    lane: str
    claim_id: str
    attempts: int
    failing_id: int | None
    parcels: tuple[Parcel, ...]
    lease: Lease
    taken_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Sent:
    """A delivered message: how long the sink took, and its age in the end."""

    parcel: Parcel
    seconds: float
    age_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What became of messages of a line. `over`: nothing more of it will be sent."""

    line: Line
    sent: tuple[Sent, ...]
    failed: Parcel | None
    error: BaseException | None
    over: bool


def lines_from(rows: Sequence[Sequence[Any]], claim_id: str, until: float) -> list[Line]:
    """The claimed lines from the statement's rows, which come a message a row, a line's rows together."""
    members: dict[tuple[str, str], list[Parcel]] = {}
    heads: dict[tuple[str, str], tuple[int, int | None]] = {}
    for row in rows:
        sink, lane, attempts, failing_id, number, uid, topic, key, payload, headers, emitted_at, age_s = row
        attempt = attempts + 1 if failing_id == number else 1
        heads[sink, lane] = attempts, failing_id
        members.setdefault((sink, lane), []).append(
            Parcel(number, uid, topic, key, payload, headers, emitted_at, age_s, attempt)
        )
    return [
        Line(sink, lane, claim_id, *heads[sink, lane], tuple(parcels), Lease(until))
        for (sink, lane), parcels in members.items()
    ]


class Couriers:
    """Threads that deliver lines. `tell` is called from them with each Progress."""

    def __init__(
        self, count: int, tell: Callable[[Progress], None], *, trace_mode: TraceMode = "link"
    ) -> None:
        self._trace_mode = trace_mode
        self._todo: SimpleQueue[tuple[Line, Sender] | None] = SimpleQueue()
        self._tell = tell
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"pgqueue-courier-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def give(self, line: Line, sender: Sender) -> None:
        """Deliver `line` as soon as a thread is free."""
        self._todo.put((line, sender))

    def stop(self) -> None:
        """Finish the message at hand and no other; lines that wait are told as over at once."""
        self._stop.set()

    def close(self) -> None:
        """Let the threads end; one that is stuck in a sink ends with the process."""
        for _ in self._threads:
            self._todo.put(None)

    def _work(self) -> None:
        while (given := self._todo.get()) is not None:
            self._deliver(*given)

    def _deliver(self, line: Line, sender: Sender) -> None:
        sent: list[Sent] = []
        told_at = time.monotonic()
        for parcel in line.parcels:
            started = time.monotonic()
            if self._stop.is_set() or started > line.lease.until:
                break
            if sent and started - told_at > SETTLE_EVERY_S:
                self._tell(Progress(line, tuple(sent), None, None, over=False))
                sent, told_at = [], started
            try:
                with self._publishing(line, parcel):
                    sender.send(parcel)
            except BaseException as error:  # noqa: BLE001 - whatever a sink raises is its message's affair, and only its
                self._tell(Progress(line, tuple(sent), parcel, error, over=True))
                return
            ended = time.monotonic()
            sent.append(Sent(parcel, ended - started, parcel.age_s + ended - line.taken_at))
        self._tell(Progress(line, tuple(sent), None, None, over=True))

    def _publishing(self, line: Line, parcel: Parcel) -> Producing:
        return publishing(
            parcel.topic,
            line.sink,
            message_id=parcel.id,
            attempt=parcel.attempt,
            age_s=parcel.age_s,
            headers=lambda: _carried(parcel),
            mode=self._trace_mode,
        )


def _carried(parcel: Parcel) -> Carrier:
    try:
        return parcel.headers()
    except InvalidArguments:  # the sink's affair, if it reads them; a trace is no reason to fail
        return {}
