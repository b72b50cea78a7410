"""The rig's own tests: a helper that cannot fail would let every test pass that leans on it."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import psycopg
import pytest
from rig.clock import HOUR_S, Clock
from rig.database import Database
from rig.proc import python, running
from rig.soak import soak_duration_s, soak_seed
from rig.wait import wait_for, wait_for_async


def test_waiting_returns_the_value_that_ended_it() -> None:
    looks = itertools.count()
    assert wait_for(lambda: next(looks) // 3) == 1


def test_waiting_in_vain_fails_with_what_was_wanted_and_seen() -> None:
    with pytest.raises(AssertionError, match=r"the impossible did not happen within 0\.05 s; last seen: 0"):
        wait_for(lambda: 0, timeout_s=0.05, what="the impossible")


def test_an_error_in_the_condition_is_not_waited_away() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_for(lambda: 1 / 0)


async def test_waiting_in_a_coroutine_has_the_same_ends() -> None:
    looks = itertools.count()

    async def third() -> int:
        return next(looks) // 3

    async def never() -> int:
        return 0

    assert await wait_for_async(third) == 1
    with pytest.raises(AssertionError, match="did not happen"):
        await wait_for_async(never, timeout_s=0.05)


def test_a_process_tells_its_words_and_its_exit_code() -> None:
    with python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)") as process:
        assert process.wait() == 3
        assert (process.stdout, process.stderr) == ("out\n", "err\n")


def test_a_process_that_ends_before_its_word_fails_at_once_with_its_last_words() -> None:
    with python("raise SystemExit('gave up')") as process, pytest.raises(AssertionError, match="gave up"):
        process.wait_for_text("READY", timeout_s=60)


def test_a_process_that_does_not_end_fails_the_wait() -> None:
    with (
        python("import signal; signal.pause()") as process,
        pytest.raises(AssertionError, match="did not end"),
    ):
        process.wait(timeout_s=0.05)


def test_the_end_of_the_block_ends_a_stopped_process_and_its_children() -> None:
    script = "import os, signal\nchild = os.fork()\nif child: print('CHILD', child)\nsignal.pause()"
    with python(script) as process:
        child = int(process.wait_for_text("CHILD").split()[1])
        process.freeze()
    assert process.popen.returncode == -signal.SIGKILL

    stat = Path(f"/proc/{child}/stat")

    def ended() -> bool:
        try:
            return stat.read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_for(ended, what="the child's end")


def test_a_failure_inside_the_block_shows_what_the_process_said_last() -> None:
    def fail_inside() -> None:
        with python("print('last words')") as process:
            process.wait()
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else") as caught:
        fail_inside()
    assert "last words" in caught.value.__notes__[0]


def test_several_processes_end_together() -> None:
    with running(python("import signal; signal.pause()"), python("import signal; signal.pause()")) as both:
        assert all(process.running for process in both)
    assert not any(process.running for process in both)


def test_a_database_is_ones_own_and_migrated(database: Database) -> None:
    assert database.one("SELECT to_regclass('pgqueue.jobs') IS NOT NULL")
    database.connect().execute("CREATE TABLE only_here ()")


def test_nothing_of_another_test_is_left(database: Database) -> None:
    assert database.one("SELECT to_regclass('only_here')") is None


def test_every_supported_version_has_the_same_schema(any_database: Database) -> None:
    assert any_database.server.version in {15, 18}
    assert any_database.one("SELECT count(*) FROM pgqueue.jobs") == 0


def test_a_database_without_the_schema_is_empty(empty_database: Database) -> None:
    assert empty_database.one("SELECT to_regnamespace('pgqueue')") is None


def test_a_connection_is_autocommit_and_can_be_another_role(database: Database) -> None:
    first = database.connect()
    first.execute("CREATE ROLE rig_visitor LOGIN")
    try:
        assert first.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        visitor = database.connect(user="rig_visitor")
        assert visitor.execute("SELECT current_user").fetchone() == ("rig_visitor",)
    finally:
        first.execute("DROP ROLE rig_visitor")


def test_no_variable_of_the_developers_shell_reaches_a_test() -> None:
    assert not [name for name in os.environ if name.startswith("PG") or name == "DATABASE_URL"]


def test_a_soak_takes_its_length_and_seed_from_make(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOAK_DURATION", "30m")
    monkeypatch.setenv("SOAK_SEED", "7")
    assert (soak_duration_s("60s"), soak_seed()) == (1800.0, 7)
    monkeypatch.setenv("SOAK_DURATION", "")
    monkeypatch.setenv("SOAK_SEED", "")
    assert soak_duration_s("60s") == 60.0
    capsys.readouterr()
    seed = soak_seed()
    assert f"SEED={seed}" in capsys.readouterr().out


def test_a_clock_of_its_own_moves_the_wall_and_nothing_else(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    clock.step_to(-HOUR_S)
    script = (
        "import time; began = time.monotonic(); time.sleep(0.2); print(time.time(), time.monotonic() - began)"
    )
    with python(script, env=clock.python(tmp_path)) as process:
        assert process.wait() == 0
        wall, slept = map(float, process.stdout.split())
    assert abs(time.time() - HOUR_S - wall) < 60
    assert 0.2 <= slept < 30
