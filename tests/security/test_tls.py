"""TLS as libpq offers it: a certificate that does not fit is refused, and doctor warns where nothing is encrypted."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from pgqueue import App
from pgqueue.control import doctor_address
from pgqueue.embedded import EmbeddedPostgres, find_binaries
from pgqueue.errors import DatabaseUnreachable
from pgqueue.storage.connect import CLI, connect
from pgqueue.storage.migrate import upgrade


@dataclass(frozen=True, slots=True)
class Encrypted:
    """A server that speaks TLS, its certificate, and another one that it has not."""

    dsn: str
    certificate: Path
    other: Path


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    key, made = folder / f"{name}.key", folder / f"{name}.crt"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(made)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return key, made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine to make a certificate with")
    able = [found for found in find_binaries() if speaks_tls(found.bin_dir)]
    if not able:
        pytest.skip("no PostgreSQL on this machine speaks TLS")
    folder = tmp_path_factory.mktemp("tls")
    _, other = certificate(folder, "other")
    with EmbeddedPostgres(bin_dir=able[0].bin_dir, tcp=True, settings={"fsync": "off"}) as running:
        key, made = certificate(folder, "server")
        data = Path(running_data(running))
        for source, name in ((key, "server.key"), (made, "server.crt")):
            shutil.copy(source, data / name)
            owner = data.stat()
            (data / name).chmod(0o600)
            shutil.chown(data / name, owner.st_uid, owner.st_gid)
        with connect(running.dsn(), CLI, connect_timeout_s=10) as conn:
            conn.autocommit = True
            conn.execute("ALTER SYSTEM SET ssl = on")
            conn.execute("SELECT pg_catalog.pg_reload_conf()")
        yield Encrypted(make_conninfo(running.dsn(tcp=True), host="localhost"), made, other)


def speaks_tls(bin_dir: Path) -> bool:
    answer = subprocess.run(
        [bin_dir / "pg_config", "--configure"], capture_output=True, text=True, timeout=60, check=False
    )
    return "ssl=openssl" in answer.stdout or "with-openssl" in answer.stdout


def running_data(running: EmbeddedPostgres) -> str:
    with connect(running.dsn(), CLI, connect_timeout_s=10) as conn:
        row = conn.execute("SELECT pg_catalog.current_setting('data_directory')").fetchone()
    assert row is not None
    return str(row[0])


def demanding(server: Encrypted, certificate: Path) -> str:
    return make_conninfo(server.dsn, sslmode="verify-full", sslrootcert=str(certificate))


@pytest.mark.proves("S23")
def test_jobs_go_their_whole_way_over_a_verified_connection(server: Encrypted) -> None:
    where = demanding(server, server.certificate)
    upgrade(where)
    app = App(where)
    done: list[int] = []

    @app.task(name="pay")
    def pay(n: int) -> None:
        done.append(n)

    pay.enqueue(None, n=7)
    assert app.worker(drain=True, concurrency=1).run() == 0
    app.close()
    assert done == [7]
    with connect(where, CLI, connect_timeout_s=10) as conn:
        encrypted = bool(conn.pgconn.ssl_in_use)
        row = conn.execute(
            "SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()"
        ).fetchone()
    assert (encrypted, row) == (True, (True,))
    finding = doctor_address.tls_finding("db.example", "10.0.0.7", encrypted=encrypted)
    assert finding.verdict == "PASS"


@pytest.mark.proves("S23")
def test_another_servers_certificate_is_refused_and_nothing_secret_is_said(server: Encrypted) -> None:
    with pytest.raises(DatabaseUnreachable) as refused:
        connect(demanding(server, server.other), CLI, connect_timeout_s=10)
    password = server.dsn.partition("password=")[2].partition(" ")[0]
    assert password
    assert password not in str(refused.value)
    assert "certificate" in str(refused.value)


@pytest.mark.proves("S23")
def test_a_connection_without_encryption_is_warned_about(server: Encrypted) -> None:
    with connect(make_conninfo(server.dsn, sslmode="disable"), CLI, connect_timeout_s=10) as conn:
        encrypted = bool(conn.pgconn.ssl_in_use)
    assert not encrypted
    finding = doctor_address.tls_finding("db.example", "10.0.0.7", encrypted=encrypted)
    assert finding.verdict == "WARN"
    assert "sslmode=verify-full" in finding.fix
