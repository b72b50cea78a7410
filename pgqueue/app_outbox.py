"""The App's side of the outbox: who wants which messages, and the relay that brings them. A part of App, never used alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pgqueue.control.outbox import Outbox
from pgqueue.core.durations import parse_duration
from pgqueue.core.events import Events
from pgqueue.core.message import Message, check_pattern
from pgqueue.core.names import check_headers
from pgqueue.core.registry import Registry
from pgqueue.core.retry import Retry
from pgqueue.errors import ConfigurationError
from pgqueue.outbox.register import Subscription
from pgqueue.outbox.runtime import Relay
from pgqueue.outbox.sinks import FunctionSink, Sink, SinkPolicy, sink_policy
from pgqueue.task import Task
from pgqueue.version import VERSION

if TYPE_CHECKING:
    from pgqueue.control.desk import Desk
    from pgqueue.settings import Settings
    from pgqueue.storage.own_pool import OwnConnections

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[[Message], Any])

TIMEOUT_S_MAX = 300.0


@dataclass(slots=True)
class _Topics:
    """What the code has said so far."""

    subscriptions: dict[tuple[str, str], Subscription] = field(default_factory=dict)
    sinks: dict[str, Sink] = field(default_factory=dict)


class OutboxFace(ABC):
    """Topics, sinks and relays of an App."""

    events: Events

    @property
    @abstractmethod
    def own(self) -> OwnConnections:
        """Connections for emits that name none."""

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """The settings."""

    @property
    @abstractmethod
    def _desk(self) -> Desk: ...

    @abstractmethod
    def registry(self) -> Registry:
        """The tasks as a worker knows them."""

    @cached_property
    def outbox(self) -> Outbox:
        """The outbox: emit messages; see what waits and fails, replay, skip."""
        return Outbox(
            lambda: self._desk,
            lambda: self.own,
            bytes_max=self.settings.payload_bytes_max,
            wake=self.settings.wakeups,
        )

    def on(self, topic: str) -> Callable[[Task[P, R]], Task[P, R]]:
        """Put above `@app.task()`: each message of the topic becomes a job of the task, exactly once.

        topic: "ride.completed", or "ride.*" for all below ride, or "*". The message's payload is the job's arguments
        by name; `ctx.message` has its id, uid, topic, key and headers. May be stacked. Raises InvalidName.
        """
        check_pattern(topic)

        def add(task: Task[P, R]) -> Task[P, R]:
            if not isinstance(task, Task):
                raise ConfigurationError("on: not a task; put @app.on above @app.task()")
            self._subscribe(topic, f"task:{task.name}", task.name)
            return task

        return add

    def sink(
        self,
        name: str,
        *,
        topics: Iterable[str] | str,
        retry: Retry | None = None,
        on_poison: str = "block",
        concurrency: int = 8,
    ) -> Callable[[F], F]:
        """Put above a function that takes a Message, sync or async: it gets every message of the topics.

        It returns once its receiver has the message; if it raises, the message comes again: at least once, in the
        order of its key. `raise SinkUnavailable(…)` costs the message no try, `raise Reject(…)` gives it up.
        name: what the database calls it · topics: as for `on` · retry: default 12 retries over half an hour ·
        on_poison: once a message is given up, whether later ones of its key wait for a decision ("block", default)
        or go on ("skip") · concurrency: keys one relay delivers at a time. Raises InvalidName, ConfigurationError.
        """
        policy = sink_policy(name, topics, retry=retry, on_poison=on_poison, concurrency=concurrency)

        def add(function: F) -> F:
            if not callable(function):
                raise ConfigurationError(f"sink {name}: not a function; put @app.sink above a def")
            self._add_sink(policy, FunctionSink(policy, function))
            return function

        return add

    def webhook(
        self,
        name: str,
        *,
        topics: Iterable[str] | str,
        url: str | None = None,
        secret: str | Iterable[str] | None = None,
        timeout: str | float | timedelta = "10s",
        headers: Mapping[str, str] | None = None,
        retry: Retry | None = None,
        on_poison: str = "block",
        concurrency: int = 8,
    ) -> None:
        """POST every message of the topics to a URL, signed; a 2xx answer means that it is delivered.

        url, secret: default the setting `webhooks.NAME`; several secrets sign together while one is being changed ·
        timeout: of one request · headers: more of them. The rest as for `sink`. Raises as `sink` does.
        """
        from pgqueue.outbox.webhook import WebhookSink  # noqa: PLC0415 - only who has a webhook pays for it

        policy = sink_policy(name, topics, retry=retry, on_poison=on_poison, concurrency=concurrency)
        timeout_s = parse_duration(timeout, field="timeout", minimum_s=0.01, maximum_s=TIMEOUT_S_MAX)
        secrets = () if secret is None else (secret,) if isinstance(secret, str) else tuple(secret)
        more = check_headers(headers or {})
        self._add_sink(policy, WebhookSink(policy, url, secrets, timeout_s, more))

    def forward(
        self,
        name: str,
        dsn: str,
        *,
        topics: Iterable[str] | str,
        retry: Retry | None = None,
        on_poison: str = "block",
        concurrency: int = 4,
    ) -> None:
        """Hand every message of the topics over to the outbox of another database, which takes each one once.

        The rest as for `sink`. Two databases must not forward the same topics to each other.
        """
        from pgqueue.outbox.forward import ForwardSink  # noqa: PLC0415 - only who forwards pays for it

        policy = sink_policy(name, topics, retry=retry, on_poison=on_poison, concurrency=concurrency)
        self._add_sink(policy, ForwardSink(policy, dsn))

    def relay(self, *, app_reference: str | None = None, drain: bool = False) -> Relay:
        """A relay for this App's topics and sinks.

        app_reference: names this App ("module:app"), so that subscriptions its code no longer has are taken away.
        drain: leave when nothing is left that would be delivered by itself.
        """
        return Relay(
            self.registry(),
            list(self._topics.subscriptions.values()),
            list(self._topics.sinks.values()),
            self.settings,
            version=VERSION,
            events=self.events,
            defined_in=app_reference,
            drain=drain,
        )

    @cached_property
    def _topics(self) -> _Topics:
        return _Topics()

    def _subscribe(self, pattern: str, sink: str, task: str | None) -> None:
        if (pattern, sink) in self._topics.subscriptions:
            raise ConfigurationError(f"{sink}: subscribed to {pattern} twice; remove one")
        self._topics.subscriptions[pattern, sink] = Subscription(pattern, sink, task)

    def _add_sink(self, policy: SinkPolicy, sink: Sink) -> None:
        if policy.name in self._topics.sinks:
            raise ConfigurationError(f"sink {policy.name}: defined twice; give each a name of its own")
        if not policy.topics:
            raise ConfigurationError(f'sink {policy.name}: wants no topic; name some, or "*"')
        self._topics.sinks[policy.name] = sink
        for pattern in policy.topics:
            self._subscribe(pattern, policy.name, None)
