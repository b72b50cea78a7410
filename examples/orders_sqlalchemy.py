"""SQLAlchemy on both ends: an order and its job are one commit, and so are the invoice and the job's end.

pgqueue worker -A examples.orders_sqlalchemy:app -q invoices
"""

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgqueue import App, JobContext

app = App()


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    total_cents: Mapped[int]


class Invoice(Base):
    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]
    total_cents: Mapped[int]


@app.task(name="write_invoice", queue="invoices")
def write_invoice(ctx: JobContext, order_id: int) -> dict[str, int]:
    order = ctx.session.get_one(Order, order_id)
    invoice = Invoice(order_id=order.id, total_cents=order.total_cents)
    ctx.session.add(invoice)
    ctx.session.flush()  # the id; returning commits, so there is no commit() here
    return {"invoice": invoice.id}


def place_order(url: str, total_cents: int) -> int:
    engine = create_engine(url)  # postgresql+psycopg://…, or another driver
    with Session(engine) as session, session.begin():
        order = Order(total_cents=total_cents)
        session.add(order)
        session.flush()  # before this the order has no id
        write_invoice.enqueue(session, order_id=order.id)
        placed = order.id
    engine.dispose()
    return placed
