"""The small HTTP server of a process: probes, a port that is taken, clients that hang, pages that fail."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from rig.wait import wait_for

from pgqueue.core.events import EndpointOpened, Events, Warned
from pgqueue.core.vitals import Check
from pgqueue.errors import ConfigurationError
from pgqueue.observe import endpoint, serve
from pgqueue.observe.endpoint import REQUESTS_MAX, Answer, Endpoint, Request
from pgqueue.observe.health import Health
from pgqueue.observe.serve import serve_observability
from pgqueue.settings import Settings

NOWHERE = "host=/nowhere port=1"


class Fake:
    """A process whose answers the test sets."""

    def __init__(self) -> None:
        self.checks = {"live": [Check("loop", ok=True)], "ready": [Check("beat", ok=True)], "started": []}

    def live(self) -> Sequence[Check]:
        return self.checks["live"]

    def ready(self) -> Sequence[Check]:
        return self.checks["ready"]

    def started(self) -> Sequence[Check]:
        return self.checks["started"]

    def readings(self) -> Sequence[Any]:
        return []

    def objectives_s(self) -> dict[str, float]:
        return {}


def get(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()


@pytest.fixture
def opened() -> Iterator[Callable[..., tuple[Endpoint, list[object]]]]:
    made: list[Endpoint] = []

    def make(*pages: Any, port: int = 0) -> tuple[Endpoint, list[object]]:
        events, heard = Events(), []
        events.listen(heard.append)
        one = Endpoint("test", "127.0.0.1", port, pages, events)
        one.start()
        made.append(one)
        return one, heard

    yield make
    for one in made:
        one.stop()


def test_probes_are_answered_with_the_names_of_what_fails() -> None:
    process = Fake()
    with serve_observability(
        Settings(health_port=0, database_url=NOWHERE), Events(), process, component="worker"
    ) as ports:
        assert ports.metrics == 0
        status, body, headers = get(ports.health, "/healthz")
        assert (status, json.loads(body)) == (200, {"status": "ok", "failing": []})
        assert headers["content-type"] == "application/json"
        process.checks["live"] = [Check("loop", ok=False), Check("other", ok=True)]
        status, body, _ = get(ports.health, "/healthz")
        assert (status, json.loads(body)) == (503, {"status": "failing", "failing": ["loop"]})
        status, body, _ = get(ports.health, "/readyz")
        assert (status, json.loads(body)["failing"]) == (503, ["database"])
        assert b"nowhere" not in body
        assert get(ports.health, "/startupz")[0] == 200
        assert get(ports.health, "/metrics")[0] == 404
        assert get(ports.health, "/startupz", "HEAD")[:2] == (200, b"")
        assert get(ports.health, "/healthz", "POST")[0] == 501
    with pytest.raises(OSError):
        get(ports.health, "/healthz")


def test_liveness_asks_no_database() -> None:
    class Forbidden:
        def checks(self) -> Sequence[Check]:
            raise AssertionError("asked")

        def close(self) -> None: ...

    health = Health(Fake(), Forbidden())  # type: ignore[arg-type]
    assert health.answer("/healthz") == (200, b'{"status":"ok","failing":[]}')
    assert health.answer("/startupz") == (200, b'{"status":"ok","failing":[]}')
    with pytest.raises(AssertionError):
        health.answer("/readyz")


def test_one_port_serves_both() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = Settings(health_port=port, metrics_port=port, database_url=NOWHERE)
    with serve_observability(settings, Events(), Fake(), component="worker") as ports:
        assert ports.metrics == ports.health == port
        assert get(port, "/healthz")[0] == 200
        status, body, headers = get(port, "/metrics", Accept_Encoding="gzip")
        assert status == 200
        assert b"pgqueue_build_info" in gzip.decompress(body)
        assert headers["content-type"].startswith("text/plain")
        openmetrics = get(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert openmetrics[1].endswith(b"# EOF\n")
        one = get(port, "/metrics?name[]=pgqueue_build_info")[1]
        assert one.count(b"# TYPE") == 1


def test_nothing_is_opened_unless_a_port_is_set() -> None:
    with serve_observability(Settings(), Events(), Fake(), component="worker") as ports:
        assert (ports.metrics, ports.health) == (0, 0)


@pytest.mark.proves("F39")
def test_a_taken_port_is_told_once_and_served_when_it_is_free(
    opened: Callable[..., tuple[Endpoint, list[object]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "BIND_AGAIN_S", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one, heard = opened(lambda _: Answer(200, b"here"), port=port)
        tries: list[int] = []
        bind = one._bind
        monkeypatch.setattr(one, "_bind", lambda *, first: (tries.append(1), bind(first=first)))
        wait_for(lambda: len(tries) >= 3, what="further tries")
        (told,) = heard
        assert isinstance(told, Warned)
        assert str(port) in told.message
        assert one.port == 0
    wait_for(lambda: one.port, what="the port")
    assert get(port, "/")[1] == b"here"
    assert isinstance(heard[1], EndpointOpened)
    assert len(heard) == 2


@pytest.mark.proves("F39")
def test_clients_that_hang_keep_nobody_else_out_for_long(
    opened: Callable[..., tuple[Endpoint, list[object]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint._Handler, "timeout", 0.3)
    one, _ = opened(lambda _: Answer(200, b"here"))
    with contextlib.ExitStack() as stack:
        for _ in range(REQUESTS_MAX + 4):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", one.port)))
            client.sendall(b"GET / HT")

        def answered() -> bool:
            try:
                return get(one.port, "/")[1] == b"here"
            except (OSError, http.client.HTTPException):
                return False  # every place is taken

        assert wait_for(answered, what="an answer")


def test_a_page_that_fails_is_an_answer(opened: Callable[..., tuple[Endpoint, list[object]]]) -> None:
    def broken(request: Request) -> Answer | None:
        if request.path == "/bad":
            raise RuntimeError("hunter2")
        return None

    one, _ = opened(broken, lambda _: Answer(200, b"fine"))
    assert get(one.port, "/bad")[:2] == (500, b'{"status":"failed"}')
    assert get(one.port, "/good")[:2] == (200, b"fine")
    status, body, _ = get(one.port, "/" + "x" * 70_000)
    assert status == 414
    assert b"xxx" not in body


def test_without_the_client_library_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(serve.importlib, "import_module", missing)
    with (
        pytest.raises(ConfigurationError, match=r"pgqueue-jobs\[metrics\]"),
        serve_observability(Settings(metrics_port=0), Events(), Fake(), component="worker"),
    ):
        raise AssertionError("served")
