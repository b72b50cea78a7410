"""What a ride sets off, at once or later: payments, receipts, cancellation fees, news for others.

Handlers touch `rides_demo` through `ctx.conn` alone, so what they write commits with their job or not at all.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Final

import orjson

from pgqueue import AsyncJobContext, JobContext, Reject, Retry
from pgqueue.demo.story import OUTSIDE, PARTNER_SECRET, SPEED, app, dice

FEE_AFTER_S: Final = 300 / SPEED
FEE_CENTS: Final = 500
LATE_FAULT_SHARE: Final = 0.04
GATEWAY_TIMEOUT_S: Final = 5.0


class GatewayTimeout(Exception):  # noqa: N818 - as payment libraries call it
    """The payment gateway did not answer."""


class LedgerClosed(Exception):  # noqa: N818
    """The ledger refused the booking of a capture that was already written."""


@app.task(name="capture_payment", queue="critical", timeout="10s")
def capture_payment(ctx: JobContext, ride_id: int, amount_cents: int, card: str) -> dict[str, int]:
    """Immediate: charge the card, then write the capture and its ledger row, and tell who wants to know."""
    # The call to others comes first, and its answer is recorded at once: another attempt does not call again.
    ctx.step("charge", lambda key: _charge(key, ride_id, amount_cents, card))
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
    ctx.emit("ride.captured", {"ride_id": ride_id, "amount_cents": amount_cents}, key=f"ride:{ride_id}")
    return {"captured_cents": amount_cents}


@app.on("ride.captured")
@app.task(name="send_receipt", queue="mail", timeout="10s")
async def send_receipt(ctx: AsyncJobContext, ride_id: int, amount_cents: int) -> None:
    """By way of the outbox, after a capture: send a mail, which may repeat, and note it, which may not."""
    del amount_cents  # it is in the mail
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


app.webhook(
    "partner",
    topics="ride.*",
    url=f"http://{OUTSIDE}/events",
    secret=PARTNER_SECRET,
    retry=Retry(max_retries=30, initial_delay=0.2, max_delay=2),
)


def _charge(key: str, ride_id: int, amount_cents: int, card: str) -> None:
    """Call the gateway. It knows `key` again: a call that is repeated charges nothing and gets the first answer."""
    gateway = HTTPConnection(OUTSIDE, timeout=GATEWAY_TIMEOUT_S)
    try:
        asked = orjson.dumps({"ride_id": ride_id, "amount_cents": amount_cents, "card": card})
        gateway.request("POST", "/charges", asked, {"Idempotency-Key": key})
        status = gateway.getresponse().status
    except (OSError, HTTPException) as error:
        raise GatewayTimeout("the payment gateway did not answer") from error
    finally:
        gateway.close()
    if status == HTTPStatus.PAYMENT_REQUIRED:
        raise Reject("the bank declined the card")  # no retry will help: a dead letter at once
    if status != HTTPStatus.OK:
        raise GatewayTimeout(f"the payment gateway answered {status}")
