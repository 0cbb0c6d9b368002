"""`rlmix db`: what stands on stdout, and what the exit code says."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `serve` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from rlmix.cli.main import main
from rlmix.service.storage import migrate
from rlmix.service.storage.opening import open_storage
from rlmix.testing.storage import record, run_in

HEAD = migrate.head()


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["db", *map(str, arguments)])
    return int(stopped.value.code or 0)


@pytest.fixture
def db(tmp_path: Path) -> str:
    """The address of a database with a run that ended long ago."""
    url = f"sqlite:///{tmp_path}/x.db"
    with closing(run_in(open_storage(url))) as storage:
        storage.put_decision("p", "r", record(0))
        storage.end_run("p", "r", "finished", 1)
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        connection.execute("UPDATE runs SET ended = 1000")
        connection.commit()
    return url


def test_a_check_says_what_is_there_and_what_is_wrong(
    db: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script that checks every night reads the exit code; a person, the lines."""
    assert run("check", "--db", db) == 0
    out, err = capsys.readouterr()
    assert {f"revision {HEAD}", "runs 1", "decisions 1", "feedback 0"} <= set(out.splitlines())
    assert err == ""
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        connection.execute("UPDATE blobs SET data = x'00'")
        connection.commit()
    assert run("check", "--db", db) == 1
    assert "Problem: the blob" in capsys.readouterr().err
    assert run("check", "--db", db, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["revision"], report["rows"]["runs"], len(report["problems"])) == (HEAD, 1, 2)


def test_an_upgrade_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the copy is that was made before."""
    oldest = migrate.revisions()[0]
    kept = Path(__file__).resolve().parent.parent / "service" / "storage" / "databases" / f"r{oldest}.sql"
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        connection.executescript(kept.read_text())
    url = f"sqlite:///{tmp_path}/x.db"
    assert run("upgrade", "--db", url) == 0
    out, err = capsys.readouterr()
    assert out == f"revision {HEAD}\n"
    (copy,) = tmp_path.glob(f"x.db.{oldest}-*")
    assert f"kept the database as it was: {copy}" in err.replace("\n", "")
    assert f"took the step to revision {HEAD}" in err
    assert run("upgrade", "--db", url) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"revision {HEAD}\n", "")


def test_a_backup_and_a_copy_are_databases(db: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be opened again is no backup."""
    assert run("backup", tmp_path / "backup.db", "--db", db) == 0
    assert capsys.readouterr().out == f"{tmp_path}/backup.db\n"
    assert run("copy", db, f"sqlite:///{tmp_path}/copy.db") == 0
    assert {"runs 1", "decisions 1"} <= set(capsys.readouterr().out.splitlines())
    for name in ("backup", "copy"):
        with closing(open_storage(f"sqlite:///{tmp_path}/{name}.db")) as storage:
            assert storage.decision("p", "r", 0) == record(0)
    assert run("copy", db, f"sqlite:///{tmp_path}/copy.db") == 2
    assert "not empty" in capsys.readouterr().err


def test_a_prune_says_what_it_deletes(db: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And, asked to, only what it would."""
    wanted = "1 decisions and 0 feedback of 1 runs, and 0 blobs (0 bytes)\n"
    for arguments, verb in ((("--dry-run",), "would delete"), (("--project", "p"), "deleted")):
        assert run("prune", "--older-than", "90d", "--db", db, *arguments) == 0
        assert capsys.readouterr().out == f"{verb} {wanted}"
    with closing(open_storage(db)) as storage:
        assert list(storage.decisions("p", "r", -1, 10)) == []


@pytest.mark.parametrize("age", ["90", "-1d", "90 days", "1.5d", ""])
def test_an_age_without_a_unit_is_refused(db: str, age: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ninety seconds instead of ninety days would delete what is needed."""
    assert run("prune", f"--older-than={age}", "--db", db) == 2
    assert "36h, 90d, 12w" in capsys.readouterr().err


def test_an_export_says_which_files_it_wrote(db: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With how many lines each."""
    with closing(open_storage(db)):
        assert run("export", "--project", "p", "--to", tmp_path / "out", "--db", db) == 0
    wanted = {"runs.jsonl": 1, "decisions.jsonl": 1, "feedback.jsonl": 0}
    assert capsys.readouterr().out == "".join(f"{tmp_path}/out/{name} {lines}\n" for name, lines in wanted.items())
    assert len(json.loads((tmp_path / "out" / "decisions.jsonl").read_text())["observation"]) == 5


def test_a_database_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None is made where none was."""
    for arguments in (
        ("upgrade",),
        ("check",),
        ("backup", tmp_path / "y.db"),
        ("prune", "--older-than", "1d"),
        ("export", "--project", "p", "--to", tmp_path / "out"),
    ):
        assert run(*arguments, "--db", f"sqlite:///{tmp_path}/absent.db") == 2
        assert "absent.db" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str], without: Callable[..., None]) -> None:
    """Whoever has installed the library alone must learn what to install."""
    without("sqlalchemy")
    assert run("check") == 2
    assert "pip install 'rlmix[serve]'" in capsys.readouterr().err
