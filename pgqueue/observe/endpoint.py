"""A small HTTP server in a thread of its own, for probes and scrapes: GET alone, few at a time, each with its time limit.

Used by observe/serve. A port that is taken, a client that hangs and a page that fails cost the process nothing: the
port is tried again, the client is left alone, the failure is an answer.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final

from pgqueue.core.events import EndpointOpened, Events, Warned

REQUESTS_MAX: Final = 8
"""Requests at a time; one more is turned away unanswered."""
CLIENT_S: Final = 5.0
"""How long a client may take to say or to take something."""
BIND_AGAIN_S: Final = 5.0
STOP_POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """A page's answer."""

    status: int
    body: bytes
    kind: str = "application/json"
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What a page may know of a request: the path, the text after `?`, and a look at the headers."""

    path: str
    query: str
    header: Callable[[str], str]


Page = Callable[[Request], Answer | None]


class Endpoint:
    """Serves `pages` on one port: the first that answers wins. `port` is 0 until it is bound."""

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        pages: tuple[Page, ...],
        events: Events,
        *,
        opened: Callable[[int], None] | None = None,
    ) -> None:
        self._opened = opened
        self._name = name
        self._host = host
        self._wanted = port
        self._pages = pages
        self._events = events
        self._stop = threading.Event()
        self._server: _Server | None = None
        self._thread = threading.Thread(target=self._work, name=f"pgqueue-{name}", daemon=True)
        self.port = 0

    def start(self) -> None:
        """Bind the port, or report once that it is taken and go on trying; then serve, in a thread of its own."""
        self._bind(first=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests, and free the port."""
        self._stop.set()
        self._thread.join(2)

    def _work(self) -> None:
        while self._server is None:
            if self._stop.wait(BIND_AGAIN_S):
                return
            self._bind(first=False)
        with self._server as server:
            while not self._stop.is_set():
                server.handle_request()  # or nothing, for a moment

    def _bind(self, *, first: bool) -> None:
        try:
            self._server = _Server(self._host, self._wanted, self._pages)
        except OSError as error:
            if first:
                self._events.emit(
                    Warned(
                        f"{self._name}_port",
                        f"{self._name} cannot listen on {self._host} port {self._wanted}: {error.strerror}; the work goes"
                        f" on without, and the port is tried again every {BIND_AGAIN_S:g} s",
                        {"port": self._wanted},
                    )
                )
            return
        self.port = int(self._server.server_address[1])
        self._events.emit(EndpointOpened(self._name, self._host, self.port))
        if self._opened is not None:
            self._opened(self.port)


class _Server(ThreadingMixIn, TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16
    timeout = STOP_POLL_S

    def __init__(self, host: str, port: int, pages: tuple[Page, ...]) -> None:
        self.pages = pages
        self._places = threading.BoundedSemaphore(REQUESTS_MAX)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        super().__init__(found[0][4], _Handler)  # type: ignore[arg-type]  # an IPv6 address has four parts

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left or hung: nobody's fault here, and nothing to say."""


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_S
    server_version = "pgqueue"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path, _, query = self.path.partition("?")
        request = Request(path, query, lambda name: self.headers.get(name, ""))
        answer = Answer(404, b'{"status":"no such page"}')
        server = self.server
        assert isinstance(server, _Server)  # noqa: S101 - made there
        for page in server.pages:
            try:
                found = page(request)
            except Exception:  # noqa: BLE001 - a page's fault is its own, and its text may hold anything
                found = Answer(500, b'{"status":"failed"}')
            if found is not None:
                answer = found
                break
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        if answer.encoding is not None:
            self.send_header("Content-Encoding", answer.encoding)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            with contextlib.suppress(OSError):
                self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Probes come all the time: they are not worth a line."""
