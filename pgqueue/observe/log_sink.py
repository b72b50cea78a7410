"""Where log lines go: stderr, through a bounded buffer and a thread of its own.

A reader that stops reading, a closed stderr or a full disk costs lines, which are counted, and never a job.
Used by observe/logs.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections import deque
from functools import cache
from typing import Final

BUFFER_LINES_MAX: Final = 10_000
BUFFER_BYTES_MAX: Final = 8 * 1024 * 1024
FLUSH_AT_EXIT_S: Final = 1.0
WRITE_BYTES_MAX: Final = 65_536
CLOSE_POLL_S: Final = 0.005


class LogSink:
    """Writes lines to a file descriptor from its own thread; `write` never waits and never raises.

    `fd` None: there is nothing to write to, and every line is only counted.
    """

    def __init__(
        self, fd: int | None = 2, *, lines_max: int = BUFFER_LINES_MAX, bytes_max: int = BUFFER_BYTES_MAX
    ) -> None:
        self._fd = fd
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._lines_max = lines_max
        self._bytes_max = bytes_max
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._writing = False
        self._closed = False
        self._untold = 0
        self.dropped = 0

    def write(self, line: str) -> None:
        """Take a line without its line end; drop it if the buffer is full."""
        encoded = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._wake:
            room = len(self._lines) < self._lines_max and self._bytes + len(encoded) <= self._bytes_max
            if self._closed or self._fd is None or not room:
                self._drop(1)
                return
            self._lines.append(encoded)
            self._bytes += len(encoded)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="pgqueue-log", daemon=True)
                self._thread.start()
            self._wake.notify()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written, at most `timeout_s` seconds; says whether it was."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            with self._wake:
                if not self._lines and not self._writing:
                    return True
            time.sleep(CLOSE_POLL_S)
        return False

    def start_over(self) -> None:
        """In a forked child: what waited here is the parent's to write, and its thread did not come along."""
        self._lines.clear()
        self._bytes = self._untold = self.dropped = 0
        self._wake = threading.Condition()
        self._thread = None
        self._writing = False

    def close(self) -> None:
        """Write what is left, for a second at most, and take no more."""
        self.flush(FLUSH_AT_EXIT_S)
        with self._wake:
            self._closed = True
            self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._lines and not self._closed:
                    self._wake.wait()
                if self._closed and not self._lines:
                    return
                told = self._untold
                chunk, count = self._take()
                self._writing = True
            written = self._write_all(chunk)
            with self._wake:
                self._writing = False
                if written:
                    self._untold -= told
                else:
                    self._drop(count)

    def _take(self) -> tuple[bytes, int]:
        """The next lines, as many as one write takes, with the news of lines that were lost before them."""
        taken: list[bytes] = []
        size = 0
        while self._lines and size < WRITE_BYTES_MAX:
            taken.append(self._lines.popleft())
            size += len(taken[-1])
        self._bytes -= size
        count = len(taken)
        if self._untold:
            taken.insert(0, b'{"event":"log.dropped","level":"warning","lines_count":%d}\n' % self._untold)
        return b"".join(taken), count

    def _write_all(self, chunk: bytes) -> bool:
        if self._fd is None:
            return False
        view = memoryview(chunk)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                time.sleep(CLOSE_POLL_S)
            except OSError:
                return False
        return True

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._untold += count


@cache
def stderr_sink() -> LogSink:
    """The process's one sink; what it holds is written at exit."""
    # A program without a stderr may have any file or socket under its number.
    sink = LogSink(None if sys.stderr is None else 2)
    atexit.register(_close_quietly, sink)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=sink.start_over)
    return sink


def _close_quietly(sink: LogSink) -> None:
    with contextlib.suppress(RuntimeError):  # no thread can be waited for once the interpreter shuts down
        sink.close()
