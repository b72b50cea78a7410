"""A wire between any number of clients and an embedded server that breaks one connection at its n-th message.

Which connection is told by the start of its `application_name`, so a whole worker can run over the wire while only
its claims, its settlements or its jobs are cut. It names messages by their kind and statement, for tests to enumerate.
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PAUSE_SHARE: Final = 0.02
"""Of so many bytes of a jittery link one is late."""


class Mode(StrEnum):
    """What happens at a message.

    Half closed: the server hears what the client says, and its answers end. Error: the server refuses with the wire's
    `sqlstate`, and both ends agree on it. Killed: the client's later connections are refused until `disarm`.
    """

    BEFORE = "cut before"
    AFTER = "cut after"
    HOLE = "black hole"
    HALF = "half closed"
    ERROR = "error"
    KILLED_BEFORE = "killed before"
    KILLED_AFTER = "killed after"

    @property
    def kills(self) -> bool:
        return self in {Mode.KILLED_BEFORE, Mode.KILLED_AFTER}

    @property
    def reaches(self) -> bool:
        """Whether the server still gets the message."""
        return self not in {Mode.BEFORE, Mode.KILLED_BEFORE}


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
        self._mode = Mode.BEFORE
        self._names: list[str] | None = None
        self._dead = False
        self._holes: list[socket.socket] = []
        self._on_fired: Callable[[], object] = lambda: None
        self.hole_s: float | None = None
        """After so long a black hole becomes a cut, for clients without a deadline of their own; None: never."""
        self._chance = random.Random(1)  # for pauses only
        self.sqlstate = "40001"
        self.jitter_s: float | None = None
        """If set, everything passes byte by byte with pauses of up to so long, of a seeded chance."""
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

    def arm(
        self, role: str, message: int, mode: Mode, *, on_fired: Callable[[], object] = lambda: None
    ) -> None:
        """Break at the `message`-th message from now on (from 1) of connections whose name starts with `role`."""
        with self._lock:
            self._role, self._left, self._mode, self._on_fired = role, message, mode, on_fired
            self.fired.clear()

    def disarm(self) -> None:
        """Break nothing more, let the killed connect again, and end what is left in black holes."""
        with self._lock:
            self._left = 0
            self._dead = False
            holes, self._holes = self._holes, []
        for client in holes:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def recording(self, role: str) -> Iterator[list[str]]:
        """The names of the messages that connections of `role` send meanwhile, in their order."""
        names: list[str] = []
        with self._lock:
            self._role, self._names = role, names
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
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            if self._dead:
                return
            server.connect(self._target)
            mute = threading.Event()
            back = threading.Thread(target=self._pump, args=(server, client, mute), daemon=True)
            back.start()
            with contextlib.suppress(OSError):
                self._forward(client, server, mute)
            for one in (client, server):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            back.join(20)

    def _forward(self, client: socket.socket, server: socket.socket, mute: threading.Event) -> None:
        name = ""
        first = True
        swallowing = False
        naming = Naming()
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
                mode = self._meets(name, naming.of(kind, body))
                if mode is Mode.ERROR or swallowing:
                    # An extended exchange ends with its Sync; the server's answer to the error ends it as well.
                    swallowing = kind not in {b"Q", b"S"}
                    if not swallowing:
                        server.sendall(self._refusal())
                elif mode is None or mode.reaches:
                    if mode is not None:
                        self._silence(mode, client, mute)  # first, so that no answer slips through
                    self._trickle(kind + length + body, server)
                if mode is not None:
                    self.fired.set()
                    self._on_fired()
                    if mode not in {Mode.HOLE, Mode.HALF, Mode.ERROR}:
                        return

    def _silence(self, mode: Mode, client: socket.socket, mute: threading.Event) -> None:
        if mode is Mode.HOLE:
            mute.set()
            with self._lock:
                self._holes.append(client)
            if self.hole_s is not None:
                _later(self.hole_s, client)
        elif mode is Mode.HALF:
            mute.set()
            client.shutdown(socket.SHUT_WR)
        else:
            client.shutdown(socket.SHUT_RDWR)

    def _refusal(self) -> bytes:
        text = f"DO $$ BEGIN RAISE EXCEPTION 'told to' USING ERRCODE = '{self.sqlstate}'; END $$".encode()
        return b"Q" + struct.pack("!I", len(text) + 5) + text + b"\0"

    def _trickle(self, data: bytes, target: socket.socket) -> None:
        if self.jitter_s is None:
            target.sendall(data)
            return
        for at in range(len(data)):
            target.sendall(data[at : at + 1])
            if self._chance.random() < PAUSE_SHARE:
                time.sleep(self.jitter_s * self._chance.random())

    def _pump(self, source: socket.socket, target: socket.socket, mute: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not mute.is_set():
                    self._trickle(data, target)
            target.shutdown(socket.SHUT_WR)

    def _meets(self, name: str, label: str) -> Mode | None:
        """What happens at this message of this connection."""
        with self._lock:
            if not self._role or not name.startswith(self._role):
                return None
            if self._names is not None:
                self._names.append(label)
            if not self._left:
                return None
            self._left -= 1
            if self._left:
                return None
            self._dead = self._mode.kills
            return self._mode


class Naming:
    """Names the messages of one connection: `Parse SELECT pgqueue.emit`, `Query COMMIT`, `Sync`."""

    _KINDS: Final = {
        b"": "Startup",
        b"Q": "Query",
        b"P": "Parse",
        b"B": "Bind",
        b"D": "Describe",
        b"E": "Execute",
    }
    _MORE: Final = {b"S": "Sync", b"C": "Close", b"X": "Terminate", b"H": "Flush"}
    _CALLED: Final = re.compile(rb"pgqueue[._](?!jobs\b)\w+")

    def __init__(self) -> None:
        self._gists: dict[bytes, str] = {}
        self._last = ""

    def of(self, kind: bytes, body: bytes) -> str:
        if kind in {b"Q", b"P"}:
            head, _, rest = body.partition(b"\0") if kind == b"P" else (b"", b"", body)
            self._last = self._gists[head] = self._gist(rest.partition(b"\0")[0])
        elif kind == b"B":
            self._last = self._gists.get(body.split(b"\0", 2)[1], "")
        elif kind in self._MORE:
            return self._MORE[kind]
        return f"{self._KINDS.get(kind, kind.decode())} {self._last}".rstrip()

    def _gist(self, text: bytes) -> str:
        words = text.split()
        first = words[0].decode() if words else ""
        called = self._CALLED.search(text)
        second = called[0] if called else (words[1] if len(words) > 1 else b"")
        return f"{first} {second.decode(errors='replace')[:50]}".rstrip(" ;")


def _later(seconds: float, client: socket.socket) -> None:
    def end() -> None:
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _application_name(startup: bytes) -> str:
    words = startup[4:].split(b"\0")
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    return pairs.get(b"application_name", b"").decode()
