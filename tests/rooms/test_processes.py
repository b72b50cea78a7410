"""Several processes under one parent: restarts, patience, signals, exit codes; with children that are small scripts."""

from __future__ import annotations

import http.server
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig.proc import Proc
from rig.wait import wait_for

from pgqueue.core.events import Events, ProcessChanged
from pgqueue.worker.processes import Patience, Processes, Program

QUICK = Patience(first_s=0.01, most_s=0.05, deaths_max=4)
STAYS = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nwhile True: time.sleep(0.05)"
DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(0.05)"

# A child with a life line, and its parent, as programs of their own.
CHILD = """
import sys, threading
from pathlib import Path
from pgqueue.worker.processes import watch_parent
gone = threading.Event()
watch_parent(gone.set)
Path(sys.argv[1], "ready").touch()
gone.wait(60)
Path(sys.argv[1], "left").touch()
"""
PARENT = """
import os, sys
from pgqueue.core.events import Events
from pgqueue.worker.processes import Processes, Program
Processes([Program([sys.executable, *sys.argv[1:]], os.environ)], Events(), grace_s=1).run(signals=True)
"""


class Group:
    """A parent that runs in a thread of the test, and what it told."""

    def __init__(self, *scripts: str, patience: Patience = QUICK, grace_s: float = 10) -> None:
        self.told: list[ProcessChanged] = []
        events = Events()
        events.listen(self.told.append)
        self.parent = Processes(
            [Program([sys.executable, "-c", script], os.environ) for script in scripts],
            events,
            grace_s=grace_s,
            patience=patience,
        )
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.code = self.parent.run()

    def wait(self, seconds: float = 30) -> int:
        self._thread.join(seconds)
        assert self.code is not None, "the parent did not end"
        return self.code

    def statuses(self, number: int = 0) -> list[str]:
        return [event.status for event in self.told if event.number == number]

    def pids(self) -> list[int]:
        return [pid for child in self.parent.report() if (pid := child.pid) is not None]


@pytest.fixture
def group() -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(*scripts: str, **options: object) -> Group:
        made.append(Group(*scripts, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.parent.on_signal(signal.SIGTERM)
        one.parent.on_signal(signal.SIGTERM)
        one.wait()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("deaths", "pause_s"), [(0, 0), (1, 0), (2, 0.5), (3, 1), (4, 2), (7, 15), (8, 15), (1000, 15)]
)
def test_the_first_death_is_forgiven_and_pauses_double_up_to_a_bound(deaths: int, pause_s: float) -> None:
    assert Patience().pause_s(deaths) == pause_s


def test_a_child_that_dies_is_started_again_and_the_others_stay(group: Callable[..., Group]) -> None:
    one = group(STAYS, STAYS)
    first, second = wait_for(lambda: pids if len(pids := one.pids()) == 2 else None, 20)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: one.statuses(0) == ["started", "ended", "started"], 20, "the restart")
    assert one.told[-2].exit_code == -signal.SIGKILL
    report = one.parent.report()
    assert [(child.state, child.restarts, child.exit_code) for child in report] == [
        ("running", 1, -signal.SIGKILL),
        ("running", 0, None),
    ]
    assert report[1].pid == second
    assert report[0].pid != first


def test_one_that_ends_with_0_left_on_purpose_and_all_of_them_end_the_parent(
    group: Callable[..., Group],
) -> None:
    one = group("pass", "pass")
    assert one.wait() == 0
    assert one.statuses(0) == one.statuses(1) == ["started", "ended"]
    assert {child.state for child in one.parent.report()} == {"left"}


def test_a_crash_loop_is_slowed_told_each_time_and_given_up(group: Callable[..., Group]) -> None:
    one = group("raise SystemExit(9)", STAYS)
    assert one.wait() == 9
    assert one.statuses(0) == ["started", "ended"] * 3 + ["started", "given_up"]
    ends = [event for event in one.told if event.number == 0 and event.exit_code is not None]
    assert [event.again_in_s for event in ends] == [0, 0.01, 0.02, None]
    assert [event.deaths for event in ends] == [1, 2, 3, 4]
    # The healthy neighbour was asked to stop in order.
    assert one.statuses(1) == ["started", "ended"]


def test_a_child_that_lived_long_enough_begins_its_count_anew(group: Callable[..., Group]) -> None:
    one = group("raise SystemExit(9)", patience=Patience(steady_s=0, first_s=0.01, deaths_max=3))
    wait_for(lambda: len(one.told) > 12, 30, "many restarts")
    assert {event.deaths for event in one.told if event.exit_code} == {1}


@pytest.mark.parametrize("code", [2, 6, 78])
def test_what_a_second_start_cannot_mend_is_not_tried_again(group: Callable[..., Group], code: int) -> None:
    one = group(f"raise SystemExit({code})", STAYS)
    assert one.wait() == code
    assert one.statuses(0) == ["started", "given_up"]


def test_a_child_that_dies_by_a_signal_in_the_end_is_a_failure(group: Callable[..., Group]) -> None:
    one = group("import os; os.kill(os.getpid(), 11)")
    assert one.wait() == 1


def test_stop_lets_every_child_end_in_order(group: Callable[..., Group]) -> None:
    one = group(STAYS, STAYS, STAYS)
    wait_for(lambda: len(one.pids()) == 3, 20)
    one.parent.stop()
    assert one.wait() == 0
    # One that did not hear signals yet ends by the first.
    assert {child.exit_code for child in one.parent.report()} <= {0, -signal.SIGTERM}


def test_a_child_that_does_not_hear_a_second_signal_is_killed(group: Callable[..., Group]) -> None:
    one = group(DEAF, grace_s=600)
    (pid,) = wait_for(one.pids, 20)
    one.parent.on_signal(signal.SIGTERM)
    one.parent.on_signal(signal.SIGTERM)
    assert one.wait() == 128 + signal.SIGTERM
    assert not is_alive(pid)


def test_nothing_is_started_again_while_stopping(group: Callable[..., Group]) -> None:
    one = group("raise SystemExit(9)", patience=Patience(first_s=600))
    wait_for(lambda: len(one.told) == 4, 20, "the second death")
    assert one.parent.report()[0].state == "restarting"
    one.parent.stop()
    assert one.wait() == 0


@pytest.mark.parametrize("way", ["kill", "terminate"])
def test_a_child_notices_that_its_parent_has_gone(tmp_path: Path, way: str) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "child.py"), str(tmp_path)]
    with Proc(command) as parent:
        wait_for((tmp_path / "ready").exists, 20, "the child")
        if way == "kill":
            parent.kill()
            wait_for((tmp_path / "left").exists, 20, "the child to leave")
        else:
            parent.signal(signal.SIGTERM)
            assert parent.wait() == 0


def test_a_child_notices_it_although_somebody_else_holds_its_life_line(tmp_path: Path) -> None:
    """What the parent forked holds the other end of the pipe, so that it never closes: the parent's number tells."""
    (tmp_path / "child.py").write_text(CHILD)
    script = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, {str(tmp_path / "child.py")!r}, {str(tmp_path)!r}], stdin=subprocess.PIPE)
if os.fork() == 0:
    time.sleep(60)
time.sleep(60)
"""
    with Proc([sys.executable, "-W", "ignore", "-c", script]) as parent:
        wait_for((tmp_path / "ready").exists, 20, "the child")
        parent.kill()
        wait_for((tmp_path / "left").exists, 20, "the child to leave")


def test_the_parent_answers_for_the_health_of_its_children() -> None:
    from pgqueue.settings import Settings
    from pgqueue.worker.family import ChildPorts, FamilyVitals, ports_of
    from pgqueue.worker.processes import ChildReport

    class Parent:
        def __init__(self) -> None:
            self.state = "running"

        def report(self) -> tuple[ChildReport, ...]:
            return (ChildReport(0, "running", 1, 0, None), ChildReport(1, self.state, 2, 0, None))  # type: ignore[arg-type]

    answers = {"/readyz": 200, "/healthz": 200}
    heard: list[str] = []

    class Child(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.send_response(answers[self.path])
            self.end_headers()

        def log_message(self, *said: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Child) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            parent = Parent()
            ports = [ChildPorts(None, None), ChildPorts(None, server.server_address[1])]
            vitals = FamilyVitals(parent, ports)  # type: ignore[arg-type]
            told = {check.name: check.ok for check in vitals.ready()}
            assert told == {"worker_0": True, "worker_1": True}
            answers["/readyz"] = 503
            assert [check.ok for check in vitals.ready()] == [True, False]
            assert [check.ok for check in vitals.live()] == [True, True]
            answers["/healthz"] = 503
            assert [check.ok for check in vitals.live()] == [True, False], "it hangs"
            parent.state = "restarting"
            assert [check.ok for check in vitals.ready()] == [True, False]
            assert [check.ok for check in vitals.live()] == [True, True], "the parent is at it"
            assert heard == ["/readyz", "/readyz", "/healthz", "/healthz"]
        finally:
            server.shutdown()
            thread.join()
    vitals = FamilyVitals(parent, ports)  # type: ignore[arg-type]
    parent.state = "running"
    assert [check.ok for check in vitals.ready()] == [True, False], "nobody listens there any more"
    settings = Settings(metrics_port=9471, health_port=9500)
    assert ports_of(settings, 1).options == ["--metrics-port", "9472", "--health-port", "9502"]
    assert ports_of(Settings(metrics_port=0), 1).options == ["--metrics-port", "0"]
    assert ports_of(Settings(), 1).options == []
