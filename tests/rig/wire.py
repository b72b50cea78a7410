"""A wire between any number of clients and an embedded server that breaks one connection at its n-th message.

Which connection is told by the start of its `application_name`, so a whole worker can run over the wire while only
its claims, its settlements or its jobs are cut. It reads lengths of messages and nothing of what they say.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self


class Wire:
    """Listens beside the server; `arm` makes the next matching message the last of its connection."""

    def __init__(self, server_dir: Path, port: int) -> None:
        self._target = str(server_dir / f".s.PGSQL.{port}")
        self._dir = Path(tempfile.mkdtemp(prefix="pgqwire-"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._role = ""
        self._left = 0
        self._sent = False
        self.fired = threading.Event()

    def __enter__(self) -> Self:
        self._listener.bind(str(self._dir / ".s.PGSQL.5432"))
        self._listener.listen(32)
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing does not wake a thread that waits in accept; shutting down does.
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        self._listener.close()
        shutil.rmtree(self._dir, ignore_errors=True)

    def dsn(self, dbname: str) -> str:
        return f"postgresql://postgres@/{dbname}?host={self._dir}&port=5432"

    def arm(self, role: str, message: int, *, sent: bool) -> None:
        """Break at the `message`-th message from now on (from 1) of connections whose name starts with `role`.

        `sent`: it still reaches the server, whose answer is lost; else it is lost with the connection.
        """
        with self._lock:
            self._role, self._left, self._sent = role, message, sent
            self.fired.clear()

    def disarm(self) -> None:
        with self._lock:
            self._left = 0

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]  # bound methods
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._target)
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            with contextlib.suppress(OSError):
                self._forward(client, server)
            for one in (client, server):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            back.join(20)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        name = ""
        first = True
        with client.makefile("rb") as stream:
            while True:
                # The first message has no type byte.
                kind = b"" if first else stream.read(1)
                length = stream.read(4)
                if len(length) < 4:
                    return
                body = stream.read(struct.unpack("!I", length)[0] - 4)
                if first:
                    name, first = _application_name(body), False
                elif self._is_the_one(name):
                    if self._sent:
                        client.shutdown(socket.SHUT_RDWR)  # first, so that no answer slips through
                        server.sendall(kind + length + body)
                    self.fired.set()
                    return
                server.sendall(kind + length + body)

    def _is_the_one(self, name: str) -> bool:
        with self._lock:
            if not self._left or not name.startswith(self._role):
                return False
            self._left -= 1
            return not self._left


def _application_name(startup: bytes) -> str:
    words = startup[4:].split(b"\0")
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    return pairs.get(b"application_name", b"").decode()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
