"""The sink that is another database running pgqueue: its outbox takes each message once, whatever is repeated.

Opened by the relay. Over there the message is emitted anew, in its order, and goes to whom subscribes there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pgqueue.core.message import Parcel
from pgqueue.outbox.sinks import Sender, SinkPolicy
from pgqueue.settings import Settings
from pgqueue.storage.forward import ForwardTarget


@dataclass(frozen=True, slots=True)
class ForwardSink:
    """A database, as `app.forward` registers it."""

    policy: SinkPolicy
    dsn: str = field(repr=False)

    def open(self, settings: Settings) -> Sender:
        """Raises ConfigurationError for a DSN that cannot be read, SchemaMismatch for another schema over there."""
        target = ForwardTarget(
            self.dsn, connections=self.policy.concurrency, connect_timeout_s=settings.connect_timeout_s
        )
        target.open()
        return _ForwardSender(target)


class _ForwardSender:
    def __init__(self, target: ForwardTarget) -> None:
        self._target = target

    def send(self, parcel: Parcel) -> None:
        self._target.accept(
            {
                "uid": parcel.uid,
                "topic": parcel.topic,
                "payload": parcel.payload_text,
                "key": parcel.key,
                "headers": parcel.headers_text,
            }
        )

    def close(self) -> None:
        self._target.close()
