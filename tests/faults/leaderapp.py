"""The schedules of the leadership tests, fired by real scheduler processes."""

from __future__ import annotations

from pgqueue import App

app = App()


@app.schedule(every="1s", name="each-second", misfire="all", max_catch_up=10_000)
@app.schedule(every="2s", name="each-other", misfire="all", max_catch_up=10_000)
@app.task(name="t")
def t() -> None:
    """Never run here: what counts is that it is enqueued."""
