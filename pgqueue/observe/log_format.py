"""How a log line is written: the settings' form, what is masked, what is escaped; for structlog and `logging` alike.

`configure_logging` is called by the command line, and by applications that run a worker themselves; the rest is
for observe/logs.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

import orjson
import structlog
from structlog.typing import EventDict, Processor

from pgqueue.core.redact import Redactor
from pgqueue.observe.log_sink import LogSink, stderr_sink
from pgqueue.settings import Settings

# Controls, and the marks that reorder or break lines on a terminal.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_UNPRINTABLE_IN_TEXT: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def configure_logging(
    settings: Settings, sink: LogSink | None = None, *, facts: Mapping[str, str] | None = None
) -> None:
    """Send structlog's and the standard library's lines to stderr, in the settings' form and from their level on.

    facts: what every line says besides its own, such as the database of this process.
    What an application has configured itself stays as it is.
    """
    sink = sink or stderr_sink()
    level = level_of(settings)
    processors = processors_of(settings, facts)
    if not structlog.is_configured():
        structlog.configure(
            processors=processors,
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=lambda *_: Lines(sink),
            cache_logger_on_first_use=True,
        )
    root = logging.getLogger()
    if not root.handlers:
        handler = SinkHandler(sink)
        handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()],
                processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *processors],
            )
        )
        root.addHandler(handler)
        root.setLevel(level)
        # It writes a line per request with the whole address, and that of a webhook may hold a token.
        logging.getLogger("httpx").setLevel(logging.WARNING)


class Lines:
    """The end of structlog's chain: every level is one method that hands the finished line to the sink."""

    def __init__(self, sink: LogSink) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = self.msg = sink.write
        self.warn = self.exception = self.fatal = self.log = sink.write


class SinkHandler(logging.Handler):
    """The standard library's way into the sink."""

    def __init__(self, sink: LogSink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._sink.write(self.format(record))
        except Exception:  # noqa: BLE001 - a record that cannot be formatted is its author's fault, and stays alone
            self.handleError(record)


def level_of(settings: Settings) -> int:
    """The least severe level that is written, as a number of the standard library."""
    return logging.getLevelNamesMapping()[settings.log_level.upper()]


def processors_of(settings: Settings, facts: Mapping[str, str] | None = None) -> list[Processor]:
    """The chain that makes a line of an event: masked, in the settings' form, without anything that steers a terminal."""
    redactor = Redactor(settings.redact)
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not _is_terminal())

    def redact(_: Any, __: str, facts: EventDict) -> EventDict:
        return redactor.mapping(facts)

    def add_facts(_: Any, __: str, own: EventDict) -> EventDict:
        return {**(facts or {}), **own}

    common: list[Processor] = [
        add_facts,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    if as_json:
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [*common, structlog.processors.ExceptionRenderer(frames), redact, _as_json]
    return [
        *common,
        structlog.processors.format_exc_info,
        redact,
        _escape,
        structlog.dev.ConsoleRenderer(colors=_is_terminal(), timestamp_key="time"),
    ]


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _as_json(_: Any, __: str, facts: EventDict) -> str:
    ordered = {name: facts.pop(name) for name in ("time", "level", "event") if name in facts}
    text = orjson.dumps({**ordered, **facts}, default=_named, option=orjson.OPT_NON_STR_KEYS).decode()
    # JSON itself escapes the low controls; the rest would still move a terminal that shows the line.
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _named(value: object) -> str:
    return f"<{type(value).__name__}>"


def _escape(_: Any, __: str, facts: EventDict) -> EventDict:
    return {
        name: (_UNPRINTABLE_IN_TEXT if name in {"exception", "stack"} else _UNPRINTABLE).sub(
            _backslashed, value
        )
        if isinstance(value, str)
        else value
        for name, value in facts.items()
    }


def _backslashed(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
