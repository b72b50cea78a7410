"""Log lines: the canonical one, what is sampled and what never is, masking, and a stderr that nobody reads."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from rig.wait import wait_for

from pgqueue.core.events import (
    AttemptEnded,
    AttemptsSucceeded,
    ClaimLostSeen,
    DatabaseTrouble,
    JobHeld,
    JobsRescued,
    Warned,
    WorkerChanged,
)
from pgqueue.observe import logs
from pgqueue.observe.log_sink import LogSink
from pgqueue.observe.logs import LogListener, configure_logging
from pgqueue.settings import Settings

WORKER = "11111111-2222-3333-4444-555555555555"


class Kept(LogSink):
    """A sink that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def sink() -> Kept:
    return Kept()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A monotonic clock for samples and repeats that the test sets."""
    moment = [1000.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: moment[0])

    def go_to(at: float) -> None:
        moment[0] = 1000.0 + at

    return go_to


def listener(sink: LogSink, **settings: Any) -> LogListener:
    return LogListener(Settings(**{"log_format": "json", **settings}), sink)


def attempt(outcome: str = "dead", **facts: Any) -> AttemptEnded:
    return AttemptEnded(
        **{
            "job_id": 7,
            "task": "pay",
            "queue": "critical",
            "attempt": 2,
            "max_attempts": 6,
            "outcome": outcome,
            "reason": "max_retries",
            "wait_s": 0.1234567,
            "run_s": 1.5,
            "worker_id": WORKER,
            "claim_id": WORKER,
            **facts,
        }
    )


def succeeded(count: int) -> AttemptsSucceeded:
    return AttemptsSucceeded(count, 0.002, lambda i: attempt("succeeded", reason="succeeded", job_id=i), list)


def test_the_canonical_line_of_an_attempt(sink: Kept) -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    listener(sink)(
        attempt(
            error_type="ValueError",
            error_message="the bank\n\x1b[31m said no",
            error_fingerprint="82e13d136937d46d",
            sqlstate="23505",
            idempotency_key="ride:7:capture",
            headers={"traceparent": f"00-{trace}-{span}-01", "correlation_id": "c1", "card": "4111"},
        )
    )
    (line,) = sink.events
    assert line.pop("time").endswith("Z")
    assert line.pop("idempotency_key_hash") != "ride:7:capture"
    assert line == {
        "level": "error",
        "event": "job.settled",
        "job_id": 7,
        "task": "pay",
        "queue": "critical",
        "attempt": 2,
        "max_attempts": 6,
        "outcome": "dead",
        "reason": "max_retries",
        "wait_s": 0.123457,
        "run_s": 1.5,
        "worker_id": WORKER,
        "claim_id": WORKER,
        "correlation_id": "c1",
        "trace_id": trace,
        "span_id": span,
        "error_type": "ValueError",
        "error_message": "the bank\n\x1b[31m said no",
        "error_fingerprint": "82e13d136937d46d",
        "sqlstate": "23505",
    }
    assert "4111" not in sink.lines[0]
    assert list(json.loads(sink.lines[0]))[:3] == ["time", "level", "event"]


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        ("retry", "warning"),
        ("dead", "error"),
        ("snoozed", "info"),
        ("cancelled", "info"),
        ("released", "info"),
    ],
)
def test_the_level_tells_the_outcome(sink: Kept, outcome: str, level: str) -> None:
    listener(sink)(attempt(outcome))
    assert sink.events[0]["level"] == level


def test_successes_above_the_rate_are_sampled_and_each_is_accounted_for(
    sink: Kept, now: Callable[[float], None]
) -> None:
    listen = listener(sink, log_success_rate=10)
    listen(succeeded(4))
    listen(succeeded(12))  # six lines are left for it
    listen(succeeded(1000))  # none is
    now(1)
    listen(succeeded(1))
    told = [line.get("sampled_of", 1) for line in sink.events]
    assert told == [1] * 4 + [2] * 6 + [1001]
    listen(succeeded(5000))
    listen(WorkerChanged(WORKER, "stopped"))
    total = sum(line.get("sampled_of", 1) for line in sink.events if line["event"] == "job.settled")
    assert total + sink.events[-1].get("unlogged_count", 0) == 4 + 12 + 1000 + 1 + 5000


def test_failures_are_never_sampled(sink: Kept, now: Callable[[float], None]) -> None:
    listen = listener(sink, log_success_rate=0)
    listen(succeeded(10))
    for _ in range(50):
        listen(attempt("retry"))
    assert len(sink.lines) == 50


def test_the_level_of_the_settings_is_the_least_that_is_written(sink: Kept) -> None:
    listen = listener(sink, log_level="warning")
    listen(succeeded(3))
    listen(attempt("snoozed"))
    listen(attempt("retry"))
    assert [line["level"] for line in sink.events] == ["warning"]


def test_an_outage_is_told_once_and_once_when_it_is_over(sink: Kept, now: Callable[[float], None]) -> None:
    listen = listener(sink)
    rooms = ("claim", "settle", "heart", "upkeep")
    for room in rooms:
        listen(DatabaseTrouble(room, "cannot connect to db: refused", over=False))
    now(12.5)
    listen(DatabaseTrouble("settle", "the database system is starting up", over=False))
    for room in rooms:
        listen(DatabaseTrouble(room, "…", over=True))
    assert [(line["event"], line["level"]) for line in sink.events] == [
        ("database.unreachable", "error"),
        ("database.unreachable", "error"),  # another cause
        ("database.restored", "info"),
    ]
    assert sink.events[-1]["down_s"] == 12.5


def test_repeated_warnings_are_counted_and_told_once_a_minute(
    sink: Kept, now: Callable[[float], None]
) -> None:
    listen = listener(sink)
    for _ in range(30_000):
        listen(Warned("heartbeat_late", "heartbeat came late", {"late_s": 3.5}))
    listen(Warned("beat_failed", "heartbeat failed"))
    listen(JobHeld(1, "nosuch", "default", "unknown_task"))
    listen(JobHeld(2, "nosuch", "default", "unknown_task"))
    now(61)
    listen(Warned("heartbeat_late", "heartbeat came late", {"late_s": 4.5}))
    assert [(line["event"], line.get("repeated_count")) for line in sink.events] == [
        ("heartbeat.late", None),
        ("warning", None),
        ("job.held", None),
        ("heartbeat.late", 29_999),
    ]


def test_the_other_events_have_their_names(sink: Kept) -> None:
    listen = listener(sink)
    listen(WorkerChanged(WORKER, "live", ("a", "b"), 8))
    listen(WorkerChanged(WORKER, "draining", note="2 running"))
    listen(WorkerChanged(WORKER, "lost"))
    listen(ClaimLostSeen(1, "t", "q", WORKER))
    listen(JobsRescued(WORKER, "lock_free", 3, 1))
    listen(object())  # a kind that has no line
    assert [(line["event"], line["level"]) for line in sink.events] == [
        ("worker.started", "info"),
        ("worker.draining", "info"),
        ("worker.lost", "warning"),
        ("claim.lost", "warning"),
        ("job.rescued", "warning"),
    ]


@pytest.mark.proves("S6")
def test_secrets_are_masked_in_every_field(sink: Kept) -> None:
    listen = listener(sink, redact=["plate"])
    listen(Warned("x", "dsn postgresql://u:hunter2@db/x", {"password": "hunter2", "plate": "hunter2"}))
    assert "hunter2" not in sink.lines[0]
    assert sink.events[0]["plate"] == "***"


@pytest.mark.proves("S21")
@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_breaks_or_steers_a_terminal(sink: Kept, form: str) -> None:
    listener(sink, log_format=form)(attempt(error_message="a\nb\x1b[2J\x9b\u202e\r", task="evil"))
    (line,) = sink.lines
    assert line.isprintable()


class Unconfigured:
    """Nobody has configured logging, not even pytest, until the block ends."""

    def __enter__(self) -> None:
        self.root = logging.getLogger()
        self.handlers, self.level = self.root.handlers[:], self.root.level
        self.root.handlers.clear()
        structlog.reset_defaults()

    def __exit__(self, *error: object) -> None:
        self.root.handlers[:] = self.handlers
        self.root.setLevel(self.level)
        structlog.reset_defaults()


def test_both_kinds_of_loggers_write_the_same_lines(sink: Kept) -> None:
    with Unconfigured():
        configure_logging(Settings(log_format="json"), sink)
        structlog.get_logger("mine").info("ride.priced", ride_id=7, token="hunter2")
        logging.getLogger("library").warning("slow answer from %s", "bank")
        logging.getLogger("library").debug("not at this level")
        logging.getLogger("httpx").info("HTTP Request: POST https://partner/hooks?token=hunter2")
        try:
            raise ValueError("inner")
        except ValueError:
            logging.getLogger("library").exception("failed")
        structured, plain, failed = sink.events
        assert (structured["event"], structured["token"]) == ("ride.priced", "***")
        assert (plain["event"], plain["level"], plain["logger"]) == (
            "slow answer from bank",
            "warning",
            "library",
        )
        assert failed["exception"][0]["exc_type"] == "ValueError"
        assert "locals" not in json.dumps(failed["exception"])


def test_what_an_application_configured_itself_stays(sink: Kept) -> None:
    with Unconfigured():
        seen: list[str] = []

        class Own(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                seen.append(record.getMessage())

        logging.getLogger().addHandler(Own())
        structlog.configure(processors=[structlog.testing.LogCapture()])
        configure_logging(Settings(), sink)
        logging.getLogger("library").warning("mine")
        structlog.get_logger().info("also mine")
        assert seen == ["mine"]
        assert sink.lines == []


@pytest.mark.proves("F38")
def test_a_blocked_reader_costs_lines_that_are_counted_and_no_time() -> None:
    read_end, write_end = os.pipe()
    sink = LogSink(write_end, lines_max=50)
    done = threading.Event()

    def write() -> None:
        for number in range(1000):
            sink.write(f"{number} " + "x" * 4000)  # far more than a pipe holds
        done.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert done.wait(10), "writing waited for the reader"
    dropped = sink.dropped
    assert dropped > 0
    chunks: list[bytes] = []

    def read() -> None:
        while chunk := os.read(read_end, 65_536):
            chunks.append(chunk)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert sink.flush(10)
    sink.write("the reader is back")
    assert sink.flush(10)
    os.close(write_end)
    reader.join(10)
    os.close(read_end)
    lines = b"".join(chunks).decode().splitlines()
    assert lines[-1] == "the reader is back"
    assert sum(json.loads(line)["lines_count"] for line in lines if "log.dropped" in line) == dropped
    assert len([line for line in lines if line[0].isdigit()]) == 1000 - dropped


@pytest.mark.proves("F38")
def test_a_closed_stderr_costs_lines_and_raises_nothing() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    sink = LogSink(write_end)
    sink.write("into nothing")
    wait_for(lambda: sink.dropped == 1, what="the loss counted")
    nowhere = LogSink(None)
    nowhere.write("into nothing")
    assert nowhere.dropped == 1
    os.close(write_end)


def test_a_sink_is_bounded_in_bytes_too() -> None:
    read_end, write_end = os.pipe()
    sink = LogSink(write_end, bytes_max=100_000)
    for _ in range(200):
        sink.write("y" * 10_000)
    assert sink.dropped >= 200 - 10 - 14 - 1  # what the buffer, the pipe and one write hold
    os.close(read_end)
    sink.flush(5)
    os.close(write_end)


def test_a_forked_child_writes_only_its_own_lines() -> None:
    read_end, write_end = os.pipe()
    sink = LogSink(write_end)
    sink.write("parent")
    assert sink.flush(5)
    sink.start_over()  # what the fork hook does in the child
    sink.write("child")
    assert sink.flush(5)
    os.close(write_end)
    with os.fdopen(read_end) as reader:
        assert reader.read() == "parent\nchild\n"
