"""How a webhook's body is signed, and what a receiver checks: the Standard Webhooks scheme (standardwebhooks.com). Pure.

HMAC-SHA256 over `id.timestamp.body`; called by the webhook sink, and by receivers that are written in Python.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Final

from pgqueue.errors import ConfigurationError

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"
SECRET_BYTES_MIN: Final = 16
TOLERANCE_S: Final = 300
_PREFIX: Final = "whsec_"


def key_of(secret: str) -> bytes:
    """The key in a secret: `whsec_` and base64, or any text. Raises ConfigurationError for one that is too short."""
    key = secret.encode()
    if secret.startswith(_PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise ConfigurationError("secret: begins with whsec_ but is not base64; copy it whole") from None
    if len(key) < SECRET_BYTES_MIN:
        raise ConfigurationError(f"secret: is too short; take {SECRET_BYTES_MIN} random bytes or more")
    return key


def signed(uid: str, body: bytes, keys: Sequence[bytes], *, timestamp: int) -> dict[str, str]:
    """The headers that go with a body; one signature per key, so that a secret can be changed without a gap."""
    text = b"%b.%d.%b" % (uid.encode(), timestamp, body)
    signatures = (base64.b64encode(hmac.digest(key, text, hashlib.sha256)).decode() for key in keys)
    return {
        ID_HEADER: uid,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: " ".join(f"v1,{signature}" for signature in signatures),
    }


def verify(headers: Mapping[str, str], body: bytes, secret: str, *, now: float) -> str:
    """For receivers: check a request and return the message's uid, by which repetitions are told.

    `headers`: by lower-case name. `now`: Unix seconds; a timestamp more than five minutes away is refused, so that a
    recorded request cannot be sent again for ever. Raises ValueError that says what is wrong.
    """
    uid, moment = headers.get(ID_HEADER, ""), headers.get(TIMESTAMP_HEADER, "")
    if not uid or not (moment.isascii() and moment.isdecimal()):
        raise ValueError("not signed: no webhook-id or webhook-timestamp")
    if abs(now - int(moment)) > TOLERANCE_S:
        raise ValueError("signed too long ago, or in the future")
    expected = signed(uid, body, [key_of(secret)], timestamp=int(moment))[SIGNATURE_HEADER]
    given = headers.get(SIGNATURE_HEADER, "").split(" ")
    if not any(hmac.compare_digest(expected.encode(), one.encode()) for one in given):
        raise ValueError("the signature does not fit")
    return uid
