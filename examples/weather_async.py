"""Async on both ends: an endpoint awaits the enqueue, the handler awaits the slow call before it opens its transaction.

pgqueue worker -A examples.weather_async:app -q weather -c 100
"""

import asyncio

from psycopg import AsyncConnection

from pgqueue import App, AsyncJobContext, RetryAfter

app = App()


@app.task(name="fetch_weather", queue="weather", timeout="20s")
async def fetch_weather(ctx: AsyncJobContext, city: str) -> dict[str, float]:
    degrees = await ask_station(city, first_try=ctx.job.attempt == 1)  # slow, and no transaction is open
    await ctx.conn.execute("INSERT INTO weather (city, degrees) VALUES (%s, %s)", (city, degrees))
    return {"degrees": degrees}


async def ask_station(city: str, *, first_try: bool) -> float:
    await asyncio.sleep(0.01)
    if city == "Speightstown" and first_try:
        raise RetryAfter("100ms", "the station asked for patience")  # counts as an attempt, with this delay
    return 29.5


async def register_city(dsn: str, city: str) -> bool:
    async with await AsyncConnection.connect(dsn) as conn:
        await conn.execute("INSERT INTO cities (name) VALUES (%s)", (city,))
        job = await fetch_weather.using(idempotency_key=f"weather:{city}").enqueue_async(conn, city=city)
        return job.created
