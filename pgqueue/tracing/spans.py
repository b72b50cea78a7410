"""Spans that are open for a block: what the rooms enter and leave. Made by the other files of this room."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from pgqueue.tracing.api import DESTINATION, MESSAGE_ID, Api


class Producing:
    """A block in which something is sent; used as `with producing(…) as span: …; span.made(id)`. Nobody traces."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was begun."""

    def made(self, number: int, *, queue: str | None = None) -> None:
        """Note the id of the job or message, and the queue that a job went to."""


class Opened(Producing):
    """The same where somebody traces. `context`: other than the one that is open here."""

    __slots__ = ("_api", "_span", "_token")

    def __init__(
        self,
        api: Api,
        name: str,
        kind: Any,
        attributes: dict[str, Any],
        *,
        context: Any = None,
        links: Sequence[Any] = (),
    ) -> None:
        self._api = api
        self._span = api.tracer().start_span(
            name, context=context, kind=kind, attributes=attributes, links=links
        )
        self._token = api.context.attach(api.trace.set_span_in_context(self._span))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._api.erred(self._span, kind.__name__)
        self._api.context.detach(self._token)
        self._span.end()

    def made(self, number: int, *, queue: str | None = None) -> None:
        self._span.set_attribute(MESSAGE_ID, str(number))
        if queue is not None:
            self._span.set_attribute(DESTINATION, queue)
