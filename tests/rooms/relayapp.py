"""The application that relay processes of the tests run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pgqueue import App, Message, Retry

app = App(log_format="json", log_level="debug", poll_min_s=0.05, poll_max_s=0.2)


@app.on("ride.completed")
@app.task(name="receipt")
def receipt(**payload: Any) -> None: ...


@app.sink("file", topics="file.*", retry=Retry(max_retries=2, initial_delay="10ms", max_delay="20ms"))
def to_file(message: Message) -> None:
    """Writes what it gets; a payload may ask for a failure, or for time."""
    if message.payload.get("fail"):
        raise ValueError("told to fail")
    with Path(os.environ["RELAY_FILE"]).open("a") as file:
        file.write(f"{message.uid} {message.key} {message.payload.get('n')}\n")
    time.sleep(message.payload.get("take_s", 0))
