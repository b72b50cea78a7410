"""The wheel, installed far from any checkout, migrates, enqueues and works; and holds only our files."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from rig.database import ROOT, Database


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


def test_it_holds_our_files_and_no_others(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"pgqueue", wheel.name.rsplit("-py3", 1)[0] + ".dist-info"}
    assert "pgqueue/_sql/queries/claim.sql" in names
    assert "pgqueue/_alembic/versions/0001_heart.sql" in names
    assert "pgqueue/py.typed" in names
    assert not [
        name
        for name in names
        if name.startswith("pgqueue/_alembic/__init__") or "tests/" in name or name.endswith(".pyc")
    ]


def test_an_installed_wheel_works_far_from_a_checkout(
    wheel: Path, empty_database: Database, tmp_path: Path
) -> None:
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    (tmp_path / "jobs.py").write_text(
        "from pgqueue import App\napp = App()\n\n@app.task(name='t')\ndef t():\n    return 1\n"
    )
    # The dependencies of this environment, without its editable install of the checkout.
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PGQUEUE_")},
        "PYTHONPATH": f"{target}{os.pathsep}{tmp_path}",
        "PGQUEUE_DATABASE_URL": empty_database.dsn,
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pgqueue", *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import pgqueue; print(pgqueue.__file__)"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert str(target) in where.stdout
    run("db", "upgrade")
    run("enqueue", "t", "{}")
    run("worker", "-A", "jobs:app", "--drain")
    assert empty_database.one("SELECT result FROM pgqueue.job_history") == 1
    assert sysconfig.get_path("purelib") not in where.stdout
