"""The sink that POSTs messages to a URL: signed, bounded in time, 2xx only, no redirects.

Opened by the relay. It needs httpx (the extra `http`), which is loaded only when a webhook is there. The URL and the
secret stand in code or settings; the database knows the sink's name alone.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from pgqueue.core.message import CARRIED, Parcel
from pgqueue.core.signing import key_of, signed
from pgqueue.errors import ConfigurationError, SinkUnavailable
from pgqueue.outbox.sinks import RefusedError, Sender, SinkPolicy
from pgqueue.settings import Settings

ANSWER_BYTES_MAX: Final = 16_384
"""So much of an answer is read, to keep the connection; what it says is not used."""
SUCCESS: Final = range(200, 300)
REDIRECT: Final = range(300, 400)
BUSY: Final = frozenset({429, 502, 503, 504})
SERVER_FAULT_MIN: Final = 500


@dataclass(frozen=True, slots=True)
class WebhookSink:
    """A URL, as `app.webhook` registers it; empty ones are looked up in the setting `webhooks`."""

    policy: SinkPolicy
    url: str | None = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    timeout_s: float
    headers: Mapping[str, str] = field(repr=False)

    def open(self, settings: Settings) -> Sender:
        """Raises ConfigurationError without a usable URL and secret, or without httpx."""
        name = self.policy.name
        configured = settings.webhooks.get(name)
        url = self.url or (configured.url if configured else "")
        secrets = self.secrets or ((configured.secret,) if configured and configured.secret else ())
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(
                f"sink {name}: has no http(s) URL; give app.webhook url=, or set webhooks.{name}.url"
            )
        if not secrets:
            raise ConfigurationError(
                f"sink {name}: has no secret; give app.webhook secret=, or set webhooks.{name}.secret"
            )
        try:
            keys = [key_of(secret) for secret in secrets]
        except ConfigurationError as error:
            raise ConfigurationError(f"sink {name}: {error}") from None
        return _WebhookSender(url, keys, self.timeout_s, self.headers, self.policy.concurrency)


class _WebhookSender:
    def __init__(
        self, url: str, keys: list[bytes], timeout_s: float, headers: Mapping[str, str], connections: int
    ) -> None:
        try:
            self._httpx = importlib.import_module("httpx")
        except ModuleNotFoundError:
            raise ConfigurationError('webhooks need httpx: pip install "pgqueue-jobs[http]"') from None
        self._url = url
        self._keys = keys
        self._timeout_s = timeout_s
        self._headers = {"content-type": "application/json", "user-agent": "pgqueue", **headers}
        self._client = self._httpx.Client(
            timeout=timeout_s,
            follow_redirects=False,
            limits=self._httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def send(self, parcel: Parcel) -> None:
        body = body_of(parcel)
        carried = parcel.headers()
        headers = {
            **self._headers,
            **{name.replace("_", "-"): carried[name] for name in CARRIED if name in carried},
            **signed(parcel.uid, body, self._keys, timestamp=int(time.time())),
        }
        until = time.monotonic() + self._timeout_s
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as answer:
                status = int(answer.status_code)
                retry_after = str(answer.headers.get("retry-after", ""))
                self._read(answer, until)
        except self._httpx.TimeoutException as error:
            if isinstance(error, self._httpx.ConnectTimeout | self._httpx.PoolTimeout):
                raise SinkUnavailable(f"no connection within {self._timeout_s:g} s") from None
            raise RefusedError(f"no answer within {self._timeout_s:g} s", outage=True) from None
        except (self._httpx.TransportError, OSError) as error:
            raise SinkUnavailable(f"{type(error).__name__} while sending") from None
        _judge(status, retry_after)

    def close(self) -> None:
        self._client.close()

    @staticmethod
    def _read(answer: Any, until: float) -> None:
        size = 0
        for part in answer.iter_raw(ANSWER_BYTES_MAX):
            size += len(part)
            if size > ANSWER_BYTES_MAX or time.monotonic() > until:
                return  # the status has been said; the rest may go with the connection


def body_of(parcel: Parcel) -> bytes:
    """The request's body; the same for every repetition. The payload is passed on as it is stored."""
    return orjson.dumps(
        {
            "type": parcel.topic,
            "timestamp": parcel.emitted_at,
            "key": parcel.key,
            "data": orjson.Fragment(parcel.payload_text),
        },
        option=orjson.OPT_UTC_Z,
    )


def _judge(status: int, retry_after: str) -> None:
    if status in SUCCESS:
        return
    if status in BUSY:
        after_s = float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else None
        raise SinkUnavailable(f"HTTP {status}", retry_after_s=after_s)
    if status in REDIRECT:
        raise RefusedError(f"HTTP {status}: redirects are not followed; correct the URL")
    raise RefusedError(f"HTTP {status}", outage=status >= SERVER_FAULT_MIN)
