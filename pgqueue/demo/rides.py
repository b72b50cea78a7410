"""What a ride sets off, at once or later: payments, receipts, cancellation fees.

Handlers touch `rides_demo` through `ctx.conn` alone, so what they write commits with their job or not at all.
The payment gateway and the mail server are pretended: slow, unreliable, and idempotent by key.
"""

from __future__ import annotations

import asyncio
import time

from pgqueue import AsyncJobContext, JobContext, Reject
from pgqueue.demo.story import SPEED, app, dice

FEE_AFTER_S = 300 / SPEED
FEE_CENTS = 500
GATEWAY_SILENT_SHARE = 0.08
LATE_FAULT_SHARE = 0.04


class GatewayTimeout(Exception):  # noqa: N818 - as payment libraries call it
    """The payment gateway did not answer."""


class LedgerClosed(Exception):  # noqa: N818
    """The ledger refused the booking of a capture that was already written."""


@app.task(name="capture_payment", queue="critical", timeout="10s")
def capture_payment(ctx: JobContext, ride_id: int, amount_cents: int, card: str) -> dict[str, int]:
    """Immediate: charge the card, then write the capture and its ledger row and enqueue the receipt."""
    # The slow call comes first: the job's transaction opens with the first touch of ctx.conn.
    _charge(card, key=ctx.idempotency_key)
    ctx.conn.execute(
        "INSERT INTO rides_demo.captures (ride_id, job_id, amount_cents) VALUES (%s, %s, %s)",
        (ride_id, ctx.job.id, amount_cents),
    )
    if dice.random() < LATE_FAULT_SHARE:
        raise LedgerClosed("the ledger is closed for its hourly balance")  # takes the capture's row back
    ctx.conn.execute(
        "INSERT INTO rides_demo.ledger (job_id, ride_id, kind, amount_cents) VALUES (%s, %s, 'capture', %s)",
        (ctx.job.id, ride_id, amount_cents),
    )
    ctx.enqueue(send_receipt, ride_id=ride_id)
    return {"captured_cents": amount_cents}


@app.task(name="send_receipt", queue="mail", timeout="10s")
async def send_receipt(ctx: AsyncJobContext, ride_id: int) -> None:
    """Immediate, after a capture: send a mail, which may repeat, and note it, which may not."""
    await asyncio.sleep(dice.uniform(0.005, 0.05))  # the mail server
    await ctx.conn.execute(
        "INSERT INTO rides_demo.receipts (ride_id, job_id) VALUES (%s, %s)", (ride_id, ctx.job.id)
    )


@app.task(name="charge_cancellation_fee", queue="default", timeout="10s")
def charge_cancellation_fee(ctx: JobContext, ride_id: int) -> dict[str, bool]:
    """Deferred: five minutes after the booking, cancel the ride and charge a fee if no driver has confirmed."""
    unconfirmed = ctx.conn.execute(
        "UPDATE rides_demo.rides SET status = 'cancelled', ended_at = clock_timestamp()"
        " WHERE id = %s AND status = 'requested' RETURNING id",
        (ride_id,),
    ).fetchone()
    if unconfirmed is None:
        return {"charged": False}
    ctx.conn.execute(
        "INSERT INTO rides_demo.fees (ride_id, job_id, amount_cents) VALUES (%s, %s, %s)",
        (ride_id, ctx.job.id, FEE_CENTS),
    )
    ctx.conn.execute(
        "INSERT INTO rides_demo.ledger (job_id, ride_id, kind, amount_cents) VALUES (%s, %s, 'fee', %s)",
        (ctx.job.id, ride_id, FEE_CENTS),
    )
    return {"charged": True}


def _charge(card: str, *, key: str) -> None:
    """Pretend to call the gateway. A real one would be given `key`, and answer a repeated call with the first result."""
    del key
    time.sleep(dice.uniform(0.005, 0.03))
    if card == "declined":
        raise Reject("the bank declined the card")  # no retry will help: a dead letter at once
    if card == "unreadable" or dice.random() < GATEWAY_SILENT_SHARE:
        raise GatewayTimeout("the payment gateway did not answer within 2 s")
