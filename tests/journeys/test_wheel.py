"""The wheel, installed into a fresh environment far from any checkout, migrates, enqueues and works; it holds only our files."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import psycopg
import pytest
from rig.database import ROOT, Database

# What each folder of the checkout may bring into the wheel: force-include asks no .gitignore.
KINDS = {
    "pgqueue": {".py", ".sql", ".typed", ".html", ".css", ".js", ".svg"},
    "sql": {".sql"},
    "alembic": {".py", ".sql", ".mako", ".json"},
}
INSIDE = {"pgqueue": "pgqueue", "sql": "pgqueue/_sql", "alembic": "pgqueue/_alembic"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment: the wheel installed, its dependencies lent by the one the tests run in."""
    place = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True, capture_output=True)
    python = place / "bin" / "python"
    (site,) = (place / "lib").glob("python*/site-packages")
    # A folder named in a .pth is searched, but its own .pth files are not: the editable checkout stays out.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # `--ignore-installed`: the lent folder shows pip the editable install, which it must not try to replace.
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", python, "install", "-q"),
            *("--no-deps", "--no-index", "--ignore-installed", wheel),
        ],
        check=True,
        capture_output=True,
    )
    return place / "bin"


def test_it_holds_our_files_and_no_others(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        f"{INSIDE[top]}/{path.relative_to(ROOT / top).as_posix()}"
        for top, kinds in KINDS.items()
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix in kinds and "__pycache__" not in path.parts
    }
    assert names == expected
    for needed in (
        "pgqueue/_sql/queries/claim.sql",
        "pgqueue/_alembic/versions/0001_heart.sql",
        "pgqueue/py.typed",
    ):
        assert needed in names
    # With it the folder would shadow the library of that name.
    assert "pgqueue/_alembic/__init__.py" not in names


def test_an_installed_wheel_works_far_from_a_checkout(
    installed: Path, empty_database: Database, tmp_path: Path
) -> None:
    (tmp_path / "jobs.py").write_text(
        "from pgqueue import App\napp = App()\n\n@app.task(name='t')\ndef t():\n    return 1\n"
    )
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PGQUEUE_")},
        "PYTHONPATH": str(tmp_path),
        "PGQUEUE_DATABASE_URL": empty_database.dsn,
    }

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [installed / program, *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for asked in (
        "import pgqueue; print(pgqueue.__file__)",
        "from pgqueue import migrations; print(migrations.version_locations())",
    ):
        assert Path(run("python", "-c", asked).strip()).is_relative_to(installed.parent)

    run("pgqueue", "db", "upgrade")
    run("pgqueue", "db", "check")
    with psycopg.connect(empty_database.dsn, autocommit=True) as conn:
        job = conn.execute("SELECT pgqueue.enqueue('t')").fetchone()
    assert job is not None
    run("pgqueue", "worker", "-A", "jobs:app", "--drain")
    assert empty_database.one("SELECT result FROM pgqueue.job_history WHERE job_id = %s", job) == 1
