"""Transactions on SQLite: one process, one writer, and what it refuses."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `serve` is not installed")
pytest.importorskip("alembic", reason="the extra `serve` is not installed")

from sqlalchemy import Connection, text

from rlmix.errors import ConfigError, StorageError
from rlmix.service.storage.engine import Sqlite
from rlmix.service.storage.opening import open_storage


def pragma(connection: Connection, name: str) -> object:
    return connection.execute(text(f"PRAGMA {name}")).scalar()


@pytest.mark.parametrize(("durability", "synchronous"), [("normal", 1), ("full", 2)])
def test_connections_are_set_as_the_promises_need(tmp_path: Path, durability: str, synchronous: int) -> None:
    """Another journal or a weaker synchronous mode loses in silence what was acknowledged."""
    engine = Sqlite(tmp_path / "x.db", "full" if durability == "full" else "normal")
    for run in (engine.read, engine.write):
        assert run(lambda connection: pragma(connection, "journal_mode")) == "wal"
        assert run(lambda connection: pragma(connection, "synchronous")) == synchronous
        assert run(lambda connection: pragma(connection, "foreign_keys")) == 1
    assert engine.read(lambda connection: pragma(connection, "query_only")) == 1
    engine.close()


def test_a_read_cannot_write(tmp_path: Path) -> None:
    """A write beside the writer would wait for its lock, and fail under load."""
    engine = Sqlite(tmp_path / "x.db")
    with pytest.raises(StorageError, match="readonly"):
        engine.read(lambda connection: connection.execute(text("DELETE FROM projects")))
    engine.close()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """Two services on one file would each believe that they alone decide."""
    first = Sqlite(tmp_path / "x.db")
    with pytest.raises(StorageError, match="in use"):
        Sqlite(tmp_path / "x.db")
    first.close()
    Sqlite(tmp_path / "x.db").close()


def test_writes_that_wait_are_committed_together(tmp_path: Path) -> None:
    """A commit for each would wait for the disk as often as there are clients."""
    engine = Sqlite(tmp_path / "x.db")
    begun, go = threading.Event(), threading.Event()

    def first(connection: Connection) -> None:
        begun.set()
        go.wait(10)

    seen: list[int] = []
    threads = [threading.Thread(target=engine.write, args=(first,))]
    threads[0].start()
    assert begun.wait(10)
    for _ in range(5):
        threads.append(threading.Thread(target=engine.write, args=(lambda c: seen.append(id(c.get_transaction())),)))
        threads[-1].start()
    while engine.waiting() < 5:
        pass
    go.set()
    for thread in threads:
        thread.join()
    assert len(seen) == 5
    assert len(set(seen)) == 1
    engine.close()


def test_an_interrupted_thread_leaves_nobody_waiting(tmp_path: Path) -> None:
    """Whoever presses Ctrl-C while their thread writes for others must not hang those for ever."""
    engine = Sqlite(tmp_path / "x.db")
    begun, go = threading.Event(), threading.Event()

    def interrupted(connection: Connection) -> None:
        begun.set()
        go.wait(10)
        raise KeyboardInterrupt

    def leading() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            engine.write(interrupted)

    threads = [threading.Thread(target=leading)]
    threads[0].start()
    assert begun.wait(10)
    found: list[int] = []
    threads.append(threading.Thread(target=lambda: found.append(engine.write(lambda connection: 7))))
    threads[1].start()
    while engine.waiting() < 1:
        pass
    go.set()
    for thread in threads:
        thread.join(10)
    assert found == [7]
    engine.close()


def test_a_write_that_raises_stores_nothing_and_says_why(tmp_path: Path) -> None:
    """Half a write would be found later by nobody who could explain it."""
    engine = Sqlite(tmp_path / "x.db")

    def half(connection: Connection) -> None:
        connection.execute(text("INSERT INTO projects (name, created) VALUES ('x', 0)"))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        engine.write(half)
    assert engine.read(lambda connection: connection.execute(text("SELECT count(*) FROM projects")).scalar()) == 0
    engine.close()


@pytest.mark.parametrize("content", ["foreign", "newer", "garbage"])
def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    """Tables made beside somebody else's, or over a newer version's, could not be taken back."""
    path = tmp_path / "x.db"
    if content == "garbage":
        path.write_bytes(b"no database at all" * 100)
    else:
        with sqlite3.connect(path) as made:
            if content == "foreign":
                made.execute("CREATE TABLE holiday (day)")
            else:
                made.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
                made.execute("INSERT INTO alembic_version VALUES ('9999')")
        made.close()
    with pytest.raises(StorageError, match="holiday|9999|not a database"):
        Sqlite(path)


@pytest.mark.parametrize("url", ["sqlite:///", "rlmix.db", "mysql://x", "postgresql://", "postgresql+asyncpg://x/y"])
def test_another_address_is_refused(url: str) -> None:
    """A database that is silently another one than was meant loses everything."""
    with pytest.raises(ConfigError, match="sqlite:///FILE"):
        open_storage(url)


def test_a_write_that_had_to_wait_is_no_quick_one(tmp_path: Path) -> None:
    """Whoever serves others at the same time must not wait with them for another process's lock."""
    engine = Sqlite(tmp_path / "x.db")
    assert engine.quick()
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.2, lambda: other.execute("COMMIT"))
        release.start()
        engine.write(lambda connection: None)
        release.join()
    assert not engine.quick()
    engine.write(lambda connection: None)
    assert engine.quick()
    # Nor is one that waits for another thread of this process.
    assert not engine.write(lambda connection: engine.quick())
    engine.close()


def test_a_write_that_waits_for_the_disk_is_no_quick_one(tmp_path: Path) -> None:
    """Many such can be committed together, but only by threads."""
    for path, durability, quick in (
        (tmp_path / "full.db", "full", False),
        (tmp_path / "normal.db", "normal", True),
        (None, "full", True),
    ):
        engine = Sqlite(path, durability)  # type: ignore[arg-type]
        assert engine.quick() is quick
        engine.close()
