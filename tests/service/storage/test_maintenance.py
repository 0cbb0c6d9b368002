"""What is done to a database beside the service: looked at, backed up, pruned."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `serve` is not installed")
pytest.importorskip("alembic", reason="the extra `serve` is not installed")

from sqlalchemy import create_engine, text

from rlmix.errors import ConfigError, MissingError, OutputError, StorageError
from rlmix.service.records import Feedback
from rlmix.service.storage import maintenance, pruning
from rlmix.service.storage.opening import open_storage
from rlmix.service.storage.postgres import postgres_engine
from rlmix.service.storage.pruning import Pruned, prune
from rlmix.testing.storage import record, run_in

RowsIn = Callable[[str], dict[str, list[dict[str, Any]]]]


def execute(url: str, *statements: str) -> None:
    engine = postgres_engine(url) if url.startswith("postgres") else create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def silent(done: int, total: int) -> None:
    """Show nothing."""


def test_a_sound_database_has_no_problems_and_is_not_changed(filled: str, rows_in: RowsIn) -> None:
    """A check that is afraid of the service, or changes what it looks at, is not used."""
    before = rows_in(filled)
    with closing(open_storage(filled)) as storage:
        report = maintenance.check(filled)
        storage.check()
    assert report.problems == ()
    assert report.rows == {name: len(rows) for name, rows in before.items()}
    assert rows_in(filled) == before


def test_a_blob_with_other_bytes_is_found(filled: str) -> None:
    """A policy that is not what its name says decides something else, in every training."""
    digest = "26cc73f9fbf623d9a49bbf3f3d88f70195f2de68d7f25b5161f6700e6644cf44"
    literal = r"'\x00'::bytea" if filled.startswith("postgres") else "x'00'"
    execute(filled, f"UPDATE blobs SET data = {literal} WHERE digest = '{digest}'")
    assert maintenance.check(filled).problems == (f"the blob {digest} has other bytes than its digest says.",)


def test_rows_that_refer_to_nothing_are_found(tmp_path: Path, make: Any) -> None:
    """Another program that writes the file may not have asked SQLite to look."""
    url = f"sqlite:///{tmp_path}/x.db"
    with closing(open_storage(url)) as storage:
        make.fill(storage)
    execute(url, "DELETE FROM runs WHERE id = 1")
    problems = maintenance.check(url).problems
    assert "rows of `decisions` refer to rows of `runs` that are not there." in problems


def test_a_file_with_a_torn_page_is_found(tmp_path: Path, make: Any) -> None:
    """A disk that loses pages says nothing."""
    path = tmp_path / "x.db"
    with closing(open_storage(f"sqlite:///{path}")) as storage:
        make.fill(storage)
        for seq in range(100, 400):
            storage.put_decision("default", "active", make.record(seq, attempt=2))
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'decisions'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size + size // 2)
        file.write(bytes(size // 2))
    try:
        problems: tuple[str, ...] = maintenance.check(f"sqlite:///{path}").problems
    except StorageError as error:
        problems = (str(error),)
    assert any("malformed" in problem or "damaged" in problem for problem in problems)


@pytest.mark.parametrize("call", [maintenance.check, lambda url: maintenance.backup(url, Path("copy.db"))])
def test_what_is_not_there_is_not_made(tmp_path: Path, call: Callable[[str], object]) -> None:
    """An empty database under a name that was misspelt would be found sound."""
    with pytest.raises(StorageError, match="no database"):
        call(f"sqlite:///{tmp_path}/absent.db")
    with pytest.raises(ConfigError, match="memory"):
        call("sqlite://")
    assert not list(tmp_path.iterdir())


def test_a_backup_of_a_service_that_goes_on_is_a_state_that_it_had(tmp_path: Path) -> None:
    """A copy of the file by other means may hold half of a transaction."""
    url = f"sqlite:///{tmp_path}/x.db"
    storage = run_in(open_storage(url))
    begun, stop = threading.Event(), threading.Event()

    def write() -> None:
        for seq in range(100_000):
            storage.put_decision("p", "r", record(seq))
            storage.put_feedback("p", "r", Feedback(seq=seq, values={"x": 1.0}, received=0), 1)
            if seq == 20:
                begun.set()
            if stop.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    assert begun.wait(30)
    for number in range(3):
        maintenance.backup(url, tmp_path / f"copy{number}.db")
    stop.set()
    writer.join()
    last = storage.decisions("p", "r", -1, 100_000)
    storage.close()
    for number in range(3):
        copied = f"sqlite:///{tmp_path}/copy{number}.db"
        assert maintenance.check(copied).problems == ()
        with closing(open_storage(copied)) as found:
            some = found.decisions("p", "r", -1, 100_000)
            assert len(some) >= 21
            assert list(some) == list(last[: len(some)])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_backup_replaces_nothing(tmp_path: Path) -> None:
    """It may be the last good one."""
    url = f"sqlite:///{tmp_path}/x.db"
    open_storage(url).close()
    (tmp_path / "copy.db").write_text("the last good one")
    with pytest.raises(OutputError, match="already"):
        maintenance.backup(url, tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_text() == "the last good one"


def test_a_backup_of_postgres_is_made_by_its_own_tool(postgres: str, tmp_path: Path) -> None:
    """The command is named, without the password."""
    with pytest.raises(ConfigError, match="pg_dump --format=custom --file=.*copy.dump"):
        maintenance.backup(postgres, tmp_path / "copy.dump")


def test_what_ended_long_ago_is_pruned_and_nothing_else(
    filled: str, rows_in: RowsIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decisions of a run that goes on are its memory; blobs without a version may be about to get one."""
    monkeypatch.setattr(pruning, "_ROWS", 3)
    before = rows_in(filled)
    (ended,) = [run["id"] for run in before["runs"] if run["state"] == "finished"]
    execute(filled, "UPDATE runs SET ended = 1000 WHERE state = 'finished'")
    unused = "92473e976b82a7533986f1b8aa449430293f8d8bc65d72157440abbaa543daa2"
    nothing = prune(filled, 1000, None, dry_run=False, progress=silent)
    assert nothing == Pruned(runs=0, decisions=0, feedback=0, blobs=0, blob_bytes=0)
    execute(filled, f"UPDATE blobs SET created = {time.time_ns() // 1000 - 86_400_000_000}")
    seen: list[tuple[int, int]] = []
    wanted = Pruned(runs=1, decisions=4, feedback=2, blobs=1, blob_bytes=16)
    with closing(open_storage(filled)) as storage:
        assert prune(filled, 1001, None, dry_run=True, progress=silent) == wanted
        assert {name: len(rows) for name, rows in rows_in(filled).items()} == {
            name: len(rows) for name, rows in before.items()
        }
        assert prune(filled, 1001, None, dry_run=False, progress=lambda *done: seen.append(done)) == wanted
        assert seen == [(1, 1)]
        again = prune(filled, 1001, None, dry_run=False, progress=silent)
        assert again == replace(wanted, runs=0, decisions=0, feedback=0, blobs=0, blob_bytes=0)
        assert list(storage.decisions("default", "ended", -1, 10)) == []
        with pytest.raises(MissingError):
            storage.blob(unused)
        storage.check()
    after = rows_in(filled)
    for name in ("decisions", "feedback"):
        assert after[name] == [row for row in before[name] if row["run_id"] != ended]
    assert {row["digest"] for row in before["blobs"]} - {row["digest"] for row in after["blobs"]} == {unused}
    assert len(after["runs"]) == len(before["runs"])
    assert maintenance.check(filled).problems == ()


def test_a_prune_keeps_to_its_project(filled: str, rows_in: RowsIn) -> None:
    """Somebody else's runs are not mine to delete."""
    execute(filled, "UPDATE runs SET ended = 1000 WHERE state <> 'active'")
    took = prune(filled, 1001, "other", dry_run=False, progress=silent)
    assert (took.runs, took.decisions, took.feedback) == (1, 4, 2)
    kept = {row["run_id"] for row in rows_in(filled)["decisions"]}
    assert kept == {run["id"] for run in rows_in(filled)["runs"] if run["project_id"] == 1}
    with pytest.raises(MissingError, match="no project `nobody`"):
        prune(filled, 1001, "nobody", dry_run=False, progress=silent)
