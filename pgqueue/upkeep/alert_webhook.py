"""One POST per round of alerts, signed; called by upkeep/alerts.py from a thread of its own.

Receivers check it as they check the outbox's webhooks (core/signing.py). Incidents may be told twice: their id and
state say so, and a post that is repeated has the same webhook-id.
"""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import orjson

from pgqueue.core.signing import key_of, signed
from pgqueue.errors import ConfigurationError
from pgqueue.settings import Settings
from pgqueue.version import VERSION

TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where alerts are posted to. Neither address nor secret ever stands in an error or a log line."""

    url: str = field(repr=False)
    secret: str = field(repr=False)
    environment: str

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The webhook of the settings, None if there is none. Raises ConfigurationError without its library."""
        if not settings.alert_webhook_url:
            return None
        if importlib.util.find_spec("httpx") is None:
            raise ConfigurationError(
                "alert_webhook_url: needs httpx; pip install 'pgqueue-jobs[http]', or unset it"
            )
        return cls(settings.alert_webhook_url, settings.alert_webhook_secret, settings.environment)

    def post(self, alerts: Sequence[Mapping[str, Any]]) -> str | None:
        """Send; None if it was taken (2xx), else why not, in words that hold no address. Never raises."""
        body = orjson.dumps({"environment": self.environment, "alerts": list(alerts)})
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"pgqueue/{VERSION}",
            **signed(
                f"alerts_{hashlib.sha256(body).hexdigest()[:32]}",
                body,
                [key_of(self.secret)],
                timestamp=int(time.time()),
            ),
        }
        try:
            import httpx  # noqa: PLC0415 - only processes that have a webhook pay for it

            with httpx.stream(
                "POST", self.url, content=body, headers=headers, timeout=TIMEOUT_S, follow_redirects=False
            ) as answer:
                status = answer.status_code
        except Exception as error:  # noqa: BLE001 - whatever a sink does, it harms nothing but its own delivery
            return f"no answer: {type(error).__name__}"
        return None if 200 <= status < 300 else f"answered {status}"
