"""A wire between a client and an embedded server that breaks at the n-th message of the client.

Used by tests that ask what is left when a program dies between any two of its messages. Over Unix sockets; each
connection is counted for itself; it reads lengths of messages and nothing of what they say.
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


class Cutter:
    """Listens beside the server; `arm(n)` makes the next connection break at its n-th message."""

    def __init__(self, server_dir: Path, port: int) -> None:
        self._target = str(server_dir / f".s.PGSQL.{port}")
        self._dir = Path(tempfile.mkdtemp(prefix="pgqcut-"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._at = 0
        self._sent = False
        self.fired = False

    def __enter__(self) -> Self:
        self._listener.bind(str(self._dir / ".s.PGSQL.5432"))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing does not wake a thread that waits in accept; shutting down does.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        self._listener.close()
        shutil.rmtree(self._dir, ignore_errors=True)

    def dsn(self, dbname: str) -> str:
        return f"host={self._dir} port=5432 user=postgres dbname={dbname}"

    def arm(self, message: int, *, sent: bool) -> None:
        """Break at the client's `message`-th message (from 1): once it has reached the server if `sent`, else before."""
        self._at, self._sent, self.fired = message, sent, False

    def _serve(self) -> None:
        served = []
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                break
            one = threading.Thread(target=self._serve_one, args=[client], daemon=True)
            one.start()
            served.append(one)
        for one in served:
            one.join(20)

    def _serve_one(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._target)
            back = threading.Thread(target=_pump, args=[server, client], daemon=True)
            back.start()
            self._forward(client, server)
            for one in (client, server):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            back.join(20)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        stream = client.makefile("rb")
        number = 0
        with stream, contextlib.suppress(OSError):
            while True:
                # The first message has no type byte.
                kind = stream.read(1) if number else b""
                length = stream.read(4)
                if len(length) < 4:
                    return
                body = stream.read(struct.unpack("!I", length)[0] - 4)
                number += 1
                if kind == b"X":  # goodbye: there is nothing left to lose
                    server.sendall(kind + length + body)
                    return
                if number == self._at and not self._sent:
                    self.fired = True
                    return
                server.sendall(kind + length + body)
                if number == self._at:
                    self.fired = True
                    return


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
