"""How a long-lived process hears signals: the first one stops it in order, the second at once.

Used by the runtimes that the command line starts; touches signal handlers, so only in the main thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import FrameType


@contextlib.contextmanager
def hearing(stop: Callable[[], None]) -> Iterator[None]:
    """Inside the block SIGTERM and SIGINT call `stop`, and a second one ends the process."""
    # A handler may run while this thread is inside `Event.wait`, whose lock `Event.set` wants too; a put may.
    heard: SimpleQueue[int | None] = SimpleQueue()
    first = True

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal first
        del frame
        if not first:
            os.write(2, b"second signal: stopping now\n")
            os._exit(128 + number)
        first = False
        heard.put(number)

    def pass_on() -> None:
        if heard.get() is not None:
            stop()

    threading.Thread(target=pass_on, name="pgqueue-signals", daemon=True).start()
    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        heard.put(None)
        for number, handler in before.items():
            signal.signal(number, handler)
