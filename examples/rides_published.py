"""What happened is told after it is committed: to a task, exactly once, and to a broker, in the order of each ride.

pgqueue relay -A examples.rides_published:app      pgqueue worker -A examples.rides_published:app
"""

import psycopg

from pgqueue import App, Message, SinkUnavailable

app = App()


class Broker:
    """Stands for a client of Kafka, NATS or another broker: `send` returns once the broker has the message."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str | None, dict[str, object]]] = []
        self.seen: set[str] = set()
        self.down = False

    def send(self, topic: str, key: str | None, value: dict[str, object], *, message_id: str) -> None:
        if self.down:
            raise ConnectionError
        if message_id not in self.seen:  # a relay that died before it could note the answer sends again
            self.seen.add(message_id)
            self.log.append((topic, key, value))


broker = Broker()


@app.sink("broker", topics=["ride.*"])
def publish(message: Message) -> None:
    try:
        broker.send(message.topic, message.key, dict(message.payload), message_id=message.uid)
    except ConnectionError as error:
        raise SinkUnavailable("the broker is down") from error  # no fault of the message: it waits


@app.on("ride.completed")
@app.task(name="send_receipt")
def send_receipt(ride_id: int) -> None:
    print(f"receipt for ride {ride_id}")


def complete(conn: psycopg.Connection, ride_id: int) -> None:
    """In the caller's transaction: nobody hears of a ride whose completion was rolled back."""
    for topic in ("ride.arrived", "ride.completed"):
        app.outbox.emit(conn, topic, {"ride_id": ride_id}, key=f"ride:{ride_id}")
