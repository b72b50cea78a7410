"""One POST per round of alerts, signed; called by upkeep/alerts.py from a thread of its own.

Receivers check `X-Pgqueue-Signature: t=<unix seconds>,v1=<hex>`: HMAC-SHA256 with the shared secret over
`<unix seconds>.<body>`; a signature that is minutes old is a replay. Incidents may be told twice: their id and state
say so.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import orjson

from pgqueue.errors import ConfigurationError
from pgqueue.settings import Settings
from pgqueue.version import VERSION

TIMEOUT_S: Final = 5.0
SIGNATURE_HEADER: Final = "X-Pgqueue-Signature"


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where alerts are posted to. Neither address nor secret ever stands in an error or a log line."""

    url: str
    secret: str
    environment: str

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The webhook of the settings, None if there is none. Raises ConfigurationError without its library."""
        if not settings.alert_webhook_url:
            return None
        if importlib.util.find_spec("urllib3") is None:
            raise ConfigurationError(
                "alert_webhook_url: needs urllib3; pip install 'pgqueue-jobs[http]', or unset it"
            )
        return cls(settings.alert_webhook_url, settings.alert_webhook_secret, settings.environment)

    def post(self, alerts: Sequence[Mapping[str, Any]]) -> str | None:
        """Send; None if it was taken (2xx), else why not, in words that hold no address. Never raises."""
        import urllib3  # noqa: PLC0415 - only processes that have a webhook pay for it

        body = orjson.dumps({"environment": self.environment, "alerts": list(alerts)})
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"pgqueue/{VERSION}",
            SIGNATURE_HEADER: sign(self.secret, int(time.time()), body),
        }
        try:
            with urllib3.PoolManager(num_pools=1) as pool:
                answer = pool.request(
                    "POST",
                    self.url,
                    body=body,
                    headers=headers,
                    timeout=urllib3.Timeout(total=TIMEOUT_S),
                    retries=False,
                    redirect=False,
                    preload_content=False,
                )
                answer.close()
        except Exception as error:  # noqa: BLE001 - whatever a sink does, it harms nothing but its own delivery
            return f"no answer: {type(error).__name__}"
        return None if 200 <= answer.status < 300 else f"answered {answer.status}"


def sign(secret: str, at_s: int, body: bytes) -> str:
    """The signature header's value for a body sent at a moment (unix seconds)."""
    digest = hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"
