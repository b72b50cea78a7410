"""An application whose jobs carry a secret and fail in every way that might repeat it. The secret comes with the job."""

from __future__ import annotations

from pgqueue import App, JobContext, Retry

app = App()
ONCE = Retry(max_retries=0)


@app.task(name="unique", retry=ONCE)
def unique(ctx: JobContext, card: str) -> None:
    ctx.conn.execute("INSERT INTO cards VALUES (%s)", (card,))
    ctx.conn.execute("INSERT INTO cards VALUES (%s)", (card,))


@app.task(name="says", retry=ONCE)
def says(ctx: JobContext, card: str) -> None:
    ctx.log.info("charged", card=card)
    raise RuntimeError(f"the bank refused password={card} at postgresql://bank:{card}@h/db")


@app.task(name="returns")
def returns(ctx: JobContext, card: str) -> dict[str, str]:
    return {"card": card}


@app.task(name="wrong", retry=ONCE)
def wrong(amount: int) -> None: ...


@app.task(name="waits")
def waits(ctx: JobContext, card: str) -> None:
    while not ctx.cancelled:
        ctx.conn.execute("SELECT pg_sleep(0.05)")
