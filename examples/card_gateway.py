"""A card is charged once, whatever happens to the worker: the answer is recorded at once, and the gateway knows the key.

python examples/card_gateway.py                      # the gateway, on port 8765; needs no more than Python
pgqueue worker -A examples.card_gateway:app -q cards
"""

import json
import os
import threading
import time
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from pgqueue import App, JobContext, Retry

app = App()
GATEWAY = os.environ.get("CARD_GATEWAY", "127.0.0.1:8765")
TIMEOUT_S = float(os.environ.get("CARD_TIMEOUT_S", "5"))


def post_charge(cents: int, key: str) -> dict[str, str]:
    """Ask the gateway to charge. A key it has seen before gets the first answer again, and no second charge."""
    gateway = HTTPConnection(GATEWAY, timeout=TIMEOUT_S)
    try:
        gateway.request("POST", "/charges", json.dumps({"cents": cents}), {"Idempotency-Key": key})
        answer = gateway.getresponse()
        if answer.status != 200:
            raise ConnectionError(f"the gateway answers {answer.status}")
        receipt: dict[str, str] = json.load(answer)
    finally:
        gateway.close()
    return receipt


@app.task(
    name="charge_card",
    queue="cards",
    unique=("ride_id",),
    key_scope="forever",
    retry=Retry(max_retries=8, initial_delay="50ms", max_delay="5m", retry_on=(OSError, HTTPException)),
)
def charge_card(ctx: JobContext, ride_id: int, cents: int) -> dict[str, str]:
    # Recorded before anything else can fail. Only a crash between the answer and its record calls the gateway again,
    # and then with the same key.
    receipt = ctx.step("charge", lambda key: post_charge(cents, key))
    ctx.conn.execute("INSERT INTO card_charges (ride_id, receipt) VALUES (%s, %s)", (ride_id, receipt["id"]))
    return {"receipt": receipt["id"]}


class Gateway:
    """Stands for whoever charges cards. `trouble`: how the next calls go: fail, hang (no answer) or late."""

    def __init__(self, port: int = 0) -> None:
        self.calls: list[str] = []
        self.charges: dict[str, dict[str, str]] = {}
        self.trouble: list[str] = []
        self.late_s = 1.0
        self._lock = threading.Lock()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                gateway.serve(self)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.place = f"127.0.0.1:{self.server.server_port}"

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        key = request.headers["Idempotency-Key"]
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self._lock:
            trouble = self.trouble.pop(0) if self.trouble else ""
            self.calls.append(key)
            if trouble == "fail":
                request.send_error(503)
                return
            receipt = self.charges.setdefault(
                key, {"id": f"ch_{len(self.charges) + 1}", "cents": str(body["cents"])}
            )
        if trouble == "hang":
            return  # the money has moved, and nobody is told
        if trouble == "late":
            time.sleep(self.late_s)
        answer = json.dumps(receipt).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


if __name__ == "__main__":
    with Gateway(8765) as gateway:
        print(f"charges cards at {gateway.place}")
        threading.Event().wait()
