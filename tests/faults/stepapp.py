"""Tasks that charge a card at the example's gateway and kill their own process around the call, in the first attempt."""

from __future__ import annotations

import os
import signal
import uuid

from examples.card_gateway import post_charge
from pgqueue import App, JobContext, Retry

app = App()
AGAIN = Retry(max_retries=6, initial_delay="20ms", max_delay="100ms")
PAID = "INSERT INTO card_charges (ride_id, receipt) VALUES (%s, %s)"


@app.task(name="charge", retry=AGAIN)
def charge(ctx: JobContext, ride_id: int, die: str) -> None:
    """The ride's number stands for its price, so that the gateway's charges tell whose they are."""

    def call(key: str) -> str:
        _die_at("before", die, ctx)
        receipt = post_charge(ride_id, key)
        _die_at("called", die, ctx)
        return receipt["id"]

    receipt = ctx.step("charge", call)
    _die_at("recorded", die, ctx)
    ctx.conn.execute(PAID, (ride_id, receipt))
    _die_at("effect", die, ctx)


@app.task(name="charge_naively", retry=AGAIN)
def charge_naively(ctx: JobContext, ride_id: int, die: str) -> None:
    """The twin: no record, and a key that the next attempt does not know."""
    receipt = post_charge(ride_id, str(uuid.uuid4()))
    _die_at(die, die, ctx)
    ctx.conn.execute(PAID, (ride_id, receipt["id"]))


def _die_at(point: str, die: str, ctx: JobContext) -> None:
    if point == die and ctx.job.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
