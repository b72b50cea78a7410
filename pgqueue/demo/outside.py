"""What lies outside the service: the gateway that charges cards, and a partner that is told of rides.

Started by the demo as a process (`python -m pgqueue.demo.outside`). Both are as others are: slow, at times silent,
and they know a repetition when they see one. What they were asked for is written down, so that PROOF can count it.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import orjson
import psycopg

from pgqueue.core.signing import verify
from pgqueue.demo.statements import CHARGE, EVENT
from pgqueue.demo.story import PARTNER_SECRET

# How many of a hundred calls of the gateway …
UNHEARD: Final = 4  # … get no answer, and nothing was charged
UNANSWERED: Final = 4  # … get no answer, though the card was charged
PARTNER_DOWN: Final = 3  # … and how many of a hundred messages the partner cannot take just now
APPLICATION_NAME: Final = "rides-outside"
_dice: Final = random.Random()  # noqa: S311 - a story's chances, no secret


class Books:
    """What was asked for, in tables of the demo; one connection, one writer at a time."""

    def __init__(self, dsn: str) -> None:
        self._conn = psycopg.connect(dsn, autocommit=True, application_name=APPLICATION_NAME)
        self._lock = threading.Lock()

    def write(self, text: bytes, parameters: dict[str, Any]) -> None:
        """Run one of the demo's statements."""
        with self._lock:
            self._conn.execute(text, parameters)


class Others(BaseHTTPRequestHandler):
    """`POST /charges` is the gateway, `POST /events` the partner."""

    protocol_version = "HTTP/1.1"
    books: Books

    def do_POST(self) -> None:
        """Answer one request, or do not."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self._charge(body) if self.path == "/charges" else self._hear(body)
        if status is None:
            self.close_connection = True  # not a word
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _charge(self, body: bytes) -> int | None:
        asked = orjson.loads(body)
        time.sleep(_dice.uniform(0.005, 0.03))
        if asked["card"] != "good":
            return 402 if asked["card"] == "declined" else 500
        chance = _dice.uniform(0, 100)
        if chance < UNHEARD:
            return None
        self.books.write(
            CHARGE,
            {
                "key": self.headers["Idempotency-Key"],
                "ride_id": asked["ride_id"],
                "amount_cents": asked["amount_cents"],
            },
        )
        return None if chance < UNHEARD + UNANSWERED else 200

    def _hear(self, body: bytes) -> int:
        if _dice.uniform(0, 100) < PARTNER_DOWN:
            return 409
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            uid = verify(headers, body, PARTNER_SECRET, now=time.time())
        except ValueError:
            return 401
        message = orjson.loads(body)
        self.books.write(EVENT, {"uid": uid, "topic": message["type"], "ride_id": message["data"]["ride_id"]})
        return 204

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
        """Say nothing: the books have it all."""


def main() -> None:
    """Serve until SIGTERM."""
    Others.books = Books(os.environ["PGQUEUE_DATABASE_URL"])
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["RIDES_DEMO_OUTSIDE_PORT"])), Others)
    server.daemon_threads = True
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.1)


if __name__ == "__main__":
    main()
