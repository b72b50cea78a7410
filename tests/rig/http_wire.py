"""A TCP proxy before an HTTP receiver that breaks one exchange at its n-th stage: connection, head, body, answer.

It speaks to `rig.points` as `rig.wire` does; what it calls a message is a stage, and roles mean nothing to it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rig.wire import Mode


class _Broken(Exception):
    pass


class HttpWire:
    """Listens on a free port of the loopback for one receiver."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.socket()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._left = 0
        self._mode = Mode.BEFORE
        self._names: list[str] | None = None
        self._on_fired: Callable[[], object] = lambda: None
        self._ended = threading.Event()
        self.fired = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/hook"

    def __enter__(self) -> Self:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(32)
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for one in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        self._listener.close()

    def arm(
        self, role: str, message: int, mode: Mode, *, on_fired: Callable[[], object] = lambda: None
    ) -> None:
        """Break at the `message`-th stage from now on (from 1)."""
        del role
        with self._lock:
            self._left, self._mode, self._on_fired = message, mode, on_fired
            self.fired.clear()

    def disarm(self) -> None:
        """Break nothing more."""
        with self._lock:
            self._left = 0

    @contextlib.contextmanager
    def recording(self, role: str) -> Iterator[list[str]]:
        """The stages that are passed meanwhile, in their order."""
        del role
        names: list[str] = []
        with self._lock:
            self._names = names
        yield names
        with self._lock:
            self._names = None

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
            self._open.append(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket() as server, contextlib.suppress(OSError, _Broken):
            self._pass("connection", client, lambda: server.connect(self._target))
            self._open.append(server)
            with client.makefile("rb") as asked, server.makefile("rb") as answered:
                while True:
                    head, body = _message(asked)
                    half = len(body) // 2
                    self._pass("request's head", client, lambda head=head: server.sendall(head))  # type: ignore[misc]
                    self._pass("half the body", client, lambda part=body[:half]: server.sendall(part))  # type: ignore[misc]
                    self._pass("whole request", client, lambda part=body[half:]: server.sendall(part))  # type: ignore[misc]
                    answer = b"".join(_message(answered))
                    half = len(answer) // 2
                    self._pass("half the answer", client, lambda part=answer[:half]: client.sendall(part))  # type: ignore[misc]
                    self._pass("whole answer", client, lambda part=answer[half:]: client.sendall(part))  # type: ignore[misc]

    def _pass(self, name: str, client: socket.socket, forward: Callable[[], object]) -> None:
        mode = self._meets(name)
        if mode is None or mode.reaches:
            forward()
        if mode is None:
            return
        self.fired.set()
        self._on_fired()
        if mode is Mode.HOLE:
            while client.recv(65536):  # swallowed, and never answered
                pass
        raise _Broken

    def _meets(self, name: str) -> Mode | None:
        with self._lock:
            if self._names is not None:
                self._names.append(name)
            if not self._left:
                return None
            self._left -= 1
            return None if self._left else self._mode


def _message(stream: object) -> tuple[bytes, bytes]:
    """The head and the body of a request or an answer."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()  # type: ignore[attr-defined]  # a socket's file
        if not line:
            raise _Broken
        head += line
    sizes = [
        line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
    ]
    return head, stream.read(int(sizes[0])) if sizes else b""  # type: ignore[attr-defined]
