"""A relay's webhook broken at every stage of its exchange: the receiver has each message at least once, always under
the same id, and the messages of a key come in order. The twin marks a message as delivered before it sends it.
"""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Iterator

import pytest
from rig.crashsite import Site, wrong_at_sink
from rig.http_wire import HttpWire
from rig.points import Scenario, play
from rig.receiver import Received, Receiver
from rig.wire import Mode

from pgqueue import App, Retry

TIMEOUT_S = 0.3


class Webhook(Scenario):
    """Two messages of one key, POSTed through a proxy. The relay's own connection is whole."""

    role = "receiver"
    modes = (Mode.BEFORE, Mode.AFTER, Mode.HOLE)

    def __init__(self, site: Site, wire: HttpWire, got: list[tuple[str, int]]) -> None:
        self.site = site
        self.wire = wire
        self.got = got

    def go(self, number: int) -> None:
        self.site.emit(2 * number, 2 * number + 1)
        self.send()

    def send(self) -> None:
        app = self.hooked()
        assert app.relay(drain=True).run() == 0
        app.close()

    def hooked(self) -> App:
        app = self.site.app(through=False)
        retry = Retry(max_retries=50, initial_delay="10ms", max_delay="20ms")
        app.webhook("w", topics="a", url=self.wire.url, secret="x" * 32, timeout=TIMEOUT_S, retry=retry)
        return app

    def after(self, number: int) -> list[str]:
        left = self.site.one("SELECT count(*) FROM pgqueue.outbox")
        wrong = wrong_at_sink(list(self.got), [2 * number, 2 * number + 1])
        return wrong + ([f"{left} messages left"] if left else [])


class MarkThenPost(Webhook):
    """Naive: takes the message away first, so that nobody sends it twice."""

    def send(self) -> None:
        waiting = "SELECT id, (payload->>'n')::int FROM pgqueue.outbox WHERE state = 'new' ORDER BY id"
        for message_id, number in self.site.rows(waiting):
            self.site.conn.execute("DELETE FROM pgqueue.outbox WHERE id = %s", [message_id])
            body = json.dumps({"data": {"n": number}}).encode()
            headers = {"webhook-id": f"naive-{message_id}", "content-type": "application/json"}
            request = urllib.request.Request(self.wire.url, body, headers, method="POST")
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=TIMEOUT_S):
                pass


@pytest.fixture
def got() -> list[tuple[str, int]]:
    """What arrived in full, as (id, number)."""
    return []


@pytest.fixture
def http(got: list[tuple[str, int]]) -> Iterator[HttpWire]:
    def answer(request: Received) -> tuple[int, dict[str, str]]:
        if len(request.body) < int(request.headers["content-length"]):
            return 0, {}
        got.append((request.headers["webhook-id"], request.json["data"]["n"]))
        return 200, {}

    with Receiver(answer) as receiver, HttpWire(receiver.port) as wire:
        yield wire


@pytest.mark.proves("P17", "F34")
def test_a_receiver_has_each_message_wherever_the_exchange_is_broken(
    site: Site, http: HttpWire, got: list[tuple[str, int]]
) -> None:
    played = play(http, Webhook(site, http, got))
    assert played.violations == []
    assert len(got) > 2 * played.points, "some messages came twice: their answers were lost"
    assert site.one("SELECT count(*) FROM pgqueue.outbox_dead_letters") == 0


def test_twin_a_message_marked_before_it_is_sent_is_lost(
    site: Site, http: HttpWire, got: list[tuple[str, int]]
) -> None:
    assert play(http, MarkThenPost(site, http, got)).violations != []
