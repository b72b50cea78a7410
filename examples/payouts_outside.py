"""An effect outside Postgres: it may repeat after a crash, so the other side is given a key that stays the same.

pgqueue worker -A examples.payouts_outside:app -q payouts
"""

from pgqueue import App, JobContext, Reject, Retry

app = App()


class AccountClosedError(Exception):
    pass


class Bank:
    """Stands for whoever moves the money. A call it has seen before, by its key, gets the first answer again."""

    def __init__(self) -> None:
        self.moved: dict[str, int] = {}

    def pay(self, driver_id: int, cents: int, *, key: str) -> str:
        self.moved.setdefault(key, cents)
        return f"receipt {driver_id}"


bank = Bank()


@app.task(
    name="pay_driver",
    queue="payouts",
    timeout="30s",
    retry=Retry(max_retries=8, initial_delay="100ms", max_delay="1h", retry_on=(ConnectionError,)),
)
def pay_driver(ctx: JobContext, driver_id: int, cents: int) -> dict[str, str]:
    try:
        receipt = bank.pay(driver_id, cents, key=ctx.idempotency_key)
    except AccountClosedError:
        raise Reject("the driver's account is closed") from None  # a dead letter at once: nobody retries this
    ctx.conn.execute(
        "INSERT INTO payouts (driver_id, cents, receipt) VALUES (%s, %s, %s)", (driver_id, cents, receipt)
    )
    return {"receipt": receipt}
