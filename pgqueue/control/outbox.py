"""The outbox as applications and people use it: `app.outbox` and `pgqueue outbox …`.

Emitting goes through the producer; questions and deeds through the desk, whose SQL functions write their audit rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pgqueue.control.desk import Desk, Ids, read
from pgqueue.control.limits import LIMIT_MAX, checked_limit
from pgqueue.core.message import check_pattern
from pgqueue.core.payload import PAYLOAD_BYTES_MAX
from pgqueue.errors import InvalidOption
from pgqueue.producer.emit import Draft, emit, emit_async, plan_message
from pgqueue.storage.binding import Where
from pgqueue.storage.own_pool import OwnConnections
from pgqueue.storage.statements import statement

STATES: Final = ("new", "parked", "waiting", "delivering", "failing", "blocked", "dead")
WINDOWS_MAX: Final = 20
"""A page of the listing looks at 100,000 messages at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicStatus:
    """One topic: messages that somebody has still to get, and since when the oldest waits.

    `unrouted`: no relay has seen them yet · `parked`: nobody subscribes · `failing`: heads of lines that failed ·
    `dead`: given up; `blocked_keys`: keys that wait for a decision about one of those.
    """

    topic: str
    pending: int
    unrouted: int
    parked: int
    failing: int
    blocked_keys: int
    dead: int
    oldest_at: datetime | None
    oldest_age_s: float
    subscribers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionRow:
    """Who wants which topics, and whose code says so (None: a person did)."""

    pattern: str
    sink: str
    defined_in: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRow:
    """A message and one of those that have still to get it; `state` is one of STATES, `sink` None before it is routed."""

    message_id: int
    uid: str
    sink: str | None
    topic: str
    key: str | None
    state: str
    attempts: int
    error_type: str | None
    error_message: str | None
    next_at: datetime | None
    emitted_at: datetime
    age_s: float
    job_id: int | None
    reason: str | None = None
    blocks: bool = False
    dead_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class MessagePlace:
    """A place in a listing: after this message's row for this sink."""

    message_id: int = 0
    sink: str = ""

    def __str__(self) -> str:
        return f"{self.message_id}/{self.sink}" if self.sink else str(self.message_id)

    @classmethod
    def parse(cls, text: str) -> MessagePlace:
        """Read what `str` wrote. Raises InvalidOption."""
        number, _, sink = text.partition("/")
        if not (number.isascii() and number.isdecimal() and len(number) < 19):
            raise InvalidOption("after", "not a place that a listing gave; copy it from its last line")
        return cls(int(number), sink)


@dataclass(frozen=True, slots=True)
class MessagePage:
    """Part of a listing; `after` continues it, None = that was all. A page may be short and yet not the last."""

    rows: list[MessageRow]
    after: MessagePlace | None


class Outbox:
    """Emit messages, and look after those that are on their way.

    What asks the database raises DatabaseUnreachable; deeds raise InvalidOption where the environment wants a reason.
    """

    def __init__(
        self,
        desk: Callable[[], Desk],
        own: Callable[[], OwnConnections],
        *,
        bytes_max: int = PAYLOAD_BYTES_MAX,
        wake: bool = True,
    ) -> None:
        self._desk = desk
        self._own = own
        self._bytes_max = bytes_max
        self._wake = wake

    def emit(
        self,
        where: Where,
        topic: str,
        payload: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Put a message into the outbox in the transaction of `where` (None: in one of its own); returns its id.

        It exists iff that transaction commits. key: messages of one key are delivered in commit order; transactions
        that emit under one key wait for each other, so emit late, and several keys always in one order.
        Raises InvalidInput before any statement was sent, TypeError for a `where` that is no connection or session.
        """
        own = self._own() if where is None else None
        return emit(where, self._draft(topic, payload, key, headers), own=own)

    async def emit_async(
        self,
        where: Where,
        topic: str,
        payload: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """As `emit`, on an async connection or session."""
        own = self._own() if where is None else None
        return await emit_async(where, self._draft(topic, payload, key, headers), own=own)

    def status(self) -> Sequence[TopicStatus]:
        """Every topic with messages or subscribers, the one that waits longest first."""
        return self._desk().rows(TopicStatus, "outbox_status")

    def subscriptions(self) -> Sequence[SubscriptionRow]:
        """Who wants what."""
        return self._desk().rows(SubscriptionRow, "list_subscriptions")

    def list(
        self, *, state: str | None = None, topic: str | None = None, sink: str | None = None, limit: int = 50
    ) -> list[MessageRow]:
        """Undelivered messages, oldest first; with state="dead" those that were given up."""
        return self.page(state=state, topic=topic, sink=sink, limit=limit).rows

    def page(
        self,
        *,
        state: str | None = None,
        topic: str | None = None,
        sink: str | None = None,
        limit: int = 50,
        after: MessagePlace | None = None,
    ) -> MessagePage:
        """As `list`, with the place to go on from. topic may be a pattern, as ride.*."""
        checked_limit(limit)
        if state is not None and state not in STATES:
            raise InvalidOption("state", f"must be one of {', '.join(STATES)}")
        if topic is not None:
            check_pattern(topic)
        place = after or MessagePlace()
        parameters = {"state": state, "topic": topic, "sink": sink, "limit": limit}
        return self._dead(place, parameters) if state == "dead" else self._live(place, parameters)

    def matching(self, *, state: str | None = None, topic: str | None = None, sink: str | None = None) -> Ids:
        """Ids of the messages that a filter means."""
        found: dict[int, None] = {}
        place: MessagePlace | None = MessagePlace()
        while place is not None:
            page = self.page(state=state, topic=topic, sink=sink, limit=LIMIT_MAX, after=place)
            found.update(dict.fromkeys(row.message_id for row in page.rows))
            place = page.after
        return list(found)

    def replay(self, *ids: int, sink: str | None = None, reason: str | None = None) -> dict[int, str]:
        """Deliver messages again that are dead letters, or at once if they wait for their next try.

        Per id `replayed`, `waiting` (it is in line as it is) or `unknown`. sink: only to this one, `task:NAME` for a
        task. A key that waited for a decision about the message goes on behind it.
        """
        return dict(self.each_replay(ids, sink, reason))

    def each_replay(
        self, ids: Sequence[int], sink: str | None, reason: str | None
    ) -> Iterator[tuple[int, str]]:
        """As `replay`, each verdict as its batch is committed."""
        desk = self._desk()
        desk.need_reason(reason)
        return desk.deeds("replay_messages", ids, reason, lambda _: {"sink": sink})

    def skip(self, *ids: int, sink: str | None = None, reason: str | None = None) -> dict[int, str]:
        """Give messages up, dead letters or waiting ones, and let their keys go on; per id `skipped` or `unknown`."""
        return dict(self.each_skip(ids, sink, reason))

    def each_skip(
        self, ids: Sequence[int], sink: str | None, reason: str | None
    ) -> Iterator[tuple[int, str]]:
        """As `skip`, each verdict as its batch is committed."""
        desk = self._desk()
        desk.need_reason(reason)
        return desk.deeds("skip_messages", ids, reason, lambda _: {"sink": sink})

    def _draft(
        self,
        topic: str,
        payload: Mapping[str, Any] | None,
        key: str | None,
        headers: Mapping[str, str] | None,
    ) -> Draft:
        return Draft(
            topic,
            lambda: plan_message(
                topic, payload, key=key, headers=headers, bytes_max=self._bytes_max, wake=self._wake
            ),
        )

    def _dead(self, place: MessagePlace, parameters: Mapping[str, Any]) -> MessagePage:
        asked = {**parameters, "after": place.message_id, "after_sink": place.sink}
        rows = self._desk().rows(MessageRow, "list_dead_messages", asked)
        if len(rows) < parameters["limit"]:
            return MessagePage(rows, None)
        return MessagePage(rows, MessagePlace(rows[-1].message_id, rows[-1].sink or ""))

    def _live(self, place: MessagePlace, parameters: Mapping[str, Any]) -> MessagePage:
        """A message has a handful of rows, one per sink; a page ends between two messages."""
        limit = parameters["limit"]
        rows: list[MessageRow] = []
        at = place.message_id
        with self._desk().connection("outbox list") as conn:
            for _ in range(WINDOWS_MAX):
                window = conn.execute(statement("messages_window"), {"after": at}).fetchone()
                if window is None or window[0] is None:
                    return MessagePage(rows, None)
                found = read(
                    conn, MessageRow, "list_messages", {**parameters, "after": at, "upto": window[0]}
                )
                rows += found
                if len(rows) >= limit:
                    last = rows[limit - 1].message_id
                    kept = [row for row in rows if row.message_id <= last]
                    return MessagePage(kept, MessagePlace(last))
                at = window[0]
        return MessagePage(rows, MessagePlace(at))
