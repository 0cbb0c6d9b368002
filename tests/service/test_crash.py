"""A service that is killed, at any moment and at every place, has kept what it acknowledged, once and as it was.

`RLMIX_KILLS=20` kills so often for each database instead of three times, and prints what was found.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("alembic", reason="the extra `serve` is not installed")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("RLMIX_KILLS", "3"))
LONG = "RLMIX_KILLS" in os.environ
# On a machine that does other things too, reading torch alone may take longer than that; this is the processor's time.
RECOVERY_SECONDS = 5
PLACES = ("service.before_commit", "service.after_commit", "service.mid_blob_upload")
DATABASES = ("sqlite", "postgres")


@pytest.fixture
def storms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The writers and the comparison; they are no part of the package, so the path is the checkout's."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.storm")


@pytest.fixture(params=DATABASES)
def db(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database."""
    return f"sqlite:///{tmp_path}/x.db" if request.param == "sqlite" else request.getfixturevalue("postgres")


def sound(db: str) -> str:
    """Return what a database says of its own integrity: "ok", or what is broken."""
    if db.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(db.removeprefix("sqlite:///"))) as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
            orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
            return ", ".join(found) if not orphans else f"orphans: {orphans}"
    import psycopg

    with contextlib.closing(psycopg.connect(db)) as connection:
        orphans = connection.execute(
            "SELECT count(*) FROM feedback LEFT JOIN decisions USING (run_id, seq) WHERE decisions.seq IS NULL"
        ).fetchall()
        twice = connection.execute("SELECT run_id, seq FROM decisions GROUP BY 1, 2 HAVING count(*) > 1").fetchall()
        return "ok" if (orphans, twice) == ([(0,)], []) else f"orphans: {orphans}, twice: {twice}"


def told(name: str, report: Any) -> None:
    if LONG:
        print(f"\n{name}: {report}; load {os.getloadavg()[0]:.1f}", flush=True)


def test_nothing_is_lost_changed_or_doubled_by_kills(storms: ModuleType, db: str, policy: Path, tmp_path: Path) -> None:
    """The one promise that the service is for: eight writers, kills at random, and one at each place that matters."""
    rng = np.random.Generator(np.random.PCG64(KILLS))
    counts = (1, 7, 40, 150) if LONG else (40,)
    # The first commits of a process are those of its start, which a kill may hit as well.
    places = [f"{place}:{20 + count if 'commit' in place else 1 + count // 20}" for place in PLACES for count in counts]
    deaths = [float(seconds) for seconds in rng.uniform(0.2, 2.0, KILLS)] + places
    report = storms.storm(storms.Storm(storms.Service(tmp_path, db, policy), policy), deaths)
    told(f"kill -9, {db.partition(':')[0]}", report)
    assert report.wrong == ([], [], [], [])
    assert report.deaths == len(deaths)
    assert min(report.decided, report.reported) > 10 * KILLS
    assert max(report.computed) < RECOVERY_SECONDS
    assert sound(db) == "ok"


def test_nothing_is_lost_when_postgresql_ends_at_once(
    storms: ModuleType, postgres_server: Any, postgres: str, policy: Path, tmp_path: Path
) -> None:
    """The database is a process too, and the service has to find it again by itself."""
    storm = storms.Storm(storms.Service(tmp_path, postgres, policy), policy)
    with storm:
        storm.begin()
        for _ in range(KILLS if LONG else 2):
            before = storm.acknowledged
            while storm.acknowledged < before + 100:
                time.sleep(0.01)
            postgres_server.kill()
            postgres_server.start()
            storm.report.deaths += 1
        before = storm.acknowledged
        while storm.acknowledged < before + 100:
            time.sleep(0.01)
        report = storm.end()
    told("pg_ctl stop -m immediate", report)
    assert report.wrong == ([], [], [], [])
    assert sound(postgres) == "ok"


def test_a_service_that_is_told_to_end_finishes_what_it_has_begun(
    storms: ModuleType, db: str, policy: Path, tmp_path: Path
) -> None:
    """Whoever restarts it the polite way must not lose more than by kill -9."""
    storm = storms.Storm(storms.Service(tmp_path, db, policy), policy)
    with storm:
        storm.begin()
        while storm.acknowledged < 50:
            time.sleep(0.01)
        begun = time.perf_counter()
        storm.terminate()
        assert time.perf_counter() - begun < 12
        storm.begin()
        report = storm.end()
    assert report.wrong == ([], [], [], [])


@pytest.mark.parametrize("count", [1, 2])
def test_a_first_start_that_is_killed_in_the_middle_is_made_up_for(
    storms: ModuleType, db: str, policy: Path, tmp_path: Path, count: int
) -> None:
    """Half of a database would be refused for ever."""
    service = storms.Service(tmp_path, db, policy)
    with pytest.raises(AssertionError, match="ended with 9"):
        service.start(f"service.mid_migration:{count}")
    assert service.start() > 0
    service.close()
    assert sound(db) == "ok"


def test_an_upgrade_that_is_killed_in_the_middle_has_not_begun(
    tmp_path: Path, policy: Path, storms: ModuleType
) -> None:
    """A file between two revisions is one that no program reads."""
    old = tmp_path / "old.db"
    text = (Path(__file__).parent / "storage" / "databases" / "r0001.sql").read_text(encoding="utf-8")
    with contextlib.closing(sqlite3.connect(old)) as connection:
        connection.executescript(text)
    before = rows(old)
    command = [sys.executable, "-c", "from rlmix.cli.main import main; main()", "db", "upgrade", "--db"]

    def upgrade(path: Path, **more: str) -> int:
        words = [*command, f"sqlite:///{path}"]
        return subprocess.run(words, cwd=tmp_path, env={**os.environ, **more}, capture_output=True).returncode

    untouched = shutil.copy(old, tmp_path / "untouched.db")
    assert upgrade(old, RLMIX_FAILPOINT="service.mid_migration") == 9
    assert rows(old) == before
    assert sound(f"sqlite:///{old}") == "ok"
    assert (upgrade(old), upgrade(Path(untouched))) == (0, 0)
    assert rows(old) == rows(Path(untouched)) != before


def rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table of a file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in sorted(tables)}
