"""What `rlmix db` does to a database, beside the service or while it is stopped."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar, final

from sqlalchemy import Connection, Engine, func, inspect, select

from rlmix._files import writable_folder
from rlmix.errors import ConfigError, OutputError, StorageError
from rlmix.service.storage import migrate
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.engine import AbstractEngine, sqlite_engine, sqlite_lock, translated
from rlmix.service.storage.opening import MEMORY, file_of
from rlmix.service.storage.postgres import postgres_engine, shown
from rlmix.service.storage.sql import SqlStorage
from rlmix.service.storage.tables import blobs, metadata

T = TypeVar("T")


@final
class Direct(AbstractEngine):
    """A database that a service may be using at the same time: each transaction waits for its turn.

    Args:
        engine: connections; the caller's.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self, function: Callable[[Connection], T]) -> T:
        """Return what `function` returns."""
        with translated(), self._engine.begin() as connection:
            return function(connection)

    def write(self, function: Callable[[Connection], T]) -> T:
        """Return what `function` returns once that is committed."""
        return self.read(function)

    def quick(self) -> bool:
        """Say that nothing is known of that."""
        return False

    def waiting(self) -> int:
        """Return 0: writes wait in the database."""
        return 0

    def close(self) -> None:
        """Do nothing: the connections are the caller's."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check found.

    Attributes:
        revision: of the database; None if it is empty.
        rows: how many rows each table has, by name.
        problems: what is wrong, in words; empty if nothing is.
    """

    revision: str | None
    rows: Mapping[str, int]
    problems: tuple[str, ...]


@contextlib.contextmanager
def reading(url: str) -> Iterator[Engine]:
    """Yield connections to a database that is there, whether or not a service uses it; each transaction sees one state.

    Args:
        url: its address.

    Raises:
        ConfigError: no address of a database that lasts.
        MissingDependencyError: PostgreSQL, and psycopg is not installed.
        StorageError: there is no such file.
    """
    path = _file(url)
    if path is None:
        engine = postgres_engine(url)
        readers: Engine = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    else:
        engine = readers = sqlite_engine(path, "query_only=ON")
    try:
        yield readers
    finally:
        engine.dispose()


@contextlib.contextmanager
def writing(url: str, *pragmas: str) -> Iterator[Engine]:
    """Yield connections to a database that is there, for transactions that write, whether or not a service uses it.

    Args:
        url: its address.
        pragmas: settings of SQLite.

    Raises:
        ConfigError: no address of a database that lasts.
        MissingDependencyError: PostgreSQL, and psycopg is not installed.
        StorageError: there is no such file.
    """
    path = _file(url)
    engine = postgres_engine(url) if path is None else sqlite_engine(path, *pragmas, begin="BEGIN IMMEDIATE")
    try:
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def beside(url: str) -> Iterator[AbstractStorage]:
    """Yield a storage to read from, whether or not a service uses the database.

    Args:
        url: its address.

    Raises:
        StorageError: the database is away, or not of this revision.
    """
    with reading(url) as readers:
        engine = Direct(readers)
        engine.read(lambda connection: migrate.require(connection, shown(url)))
        yield SqlStorage(engine)


def upgrade(url: str, told: Callable[[str], None]) -> str:
    """Bring a database to this revision, each step in a transaction of its own; nobody may use it meanwhile.

    Args:
        url: its address.
        told: hears of each thing that is done.

    Returns:
        The revision that it has.

    Raises:
        StorageError: it is in use, of something else or of a newer rlmix, or a step fails, which is undone.
    """
    path = _file(url)
    with contextlib.closing(sqlite_lock(path)) if path else contextlib.nullcontext():
        if path is not None:
            _keep_before(url, path, told)
        # A step may put a table in the place of another, and then what refers to it would be deleted.
        with writing(url, "foreign_keys=OFF") as engine:
            while (taken := _step(engine)) is not None:
                told(f"took the step to revision {taken}")
    return migrate.head()


def check(url: str) -> Report:
    """Look for damage, without changing anything. A service may use the database meanwhile.

    Args:
        url: its address.

    Raises:
        StorageError: it cannot be read at all, or holds the tables of something else.
    """
    with reading(url) as engine, translated(), engine.begin() as connection:
        problems = []
        revision = migrate.revision_of(connection)
        try:
            migrate.require(connection, shown(url))
        except StorageError as error:
            problems.append(str(error))
        if connection.dialect.name == "sqlite":
            problems += _sqlite_damage(connection)
        tables = sorted(set(inspect(connection).get_table_names()) & set(metadata.tables))
        counted = {name: func.count().select().select_from(metadata.tables[name]) for name in tables}
        rows = {name: connection.execute(count).scalar_one() for name, count in counted.items()}
        if blobs.name in tables:
            problems += _wrong_blobs(connection)
    return Report(revision=revision, rows=rows, problems=tuple(problems))


def backup(url: str, target: Path) -> None:
    """Write the state of a moment to a new file, while a service may go on.

    Args:
        url: address of a database of SQLite.
        target: the file.

    Raises:
        ConfigError: PostgreSQL, which has its own tool.
        OutputError: the file is there, or cannot be written.
        StorageError: the database is damaged, or not there.
    """
    path = _file(url)
    if path is None:
        raise ConfigError(f"PostgreSQL backs itself up: pg_dump --format=custom --file={target} {shown(url)}")
    if target.exists():
        raise OutputError(f"`{target}` is there already. Give another name.")
    folder = writable_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=folder) as temporary:
        made = Path(temporary) / target.name
        try:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("VACUUM INTO ?", (str(made),))
            _sync(made)
            made.rename(target)
            _sync(folder)
        except sqlite3.Error as error:
            raise StorageError(f"`{path}` cannot be backed up ({error}).") from error
        except OSError as error:
            raise OutputError(f"`{target}` cannot be written ({error.strerror or error}).") from error


def _file(url: str) -> Path | None:
    """Return the file of an address, which must be there; None for PostgreSQL."""
    if url == MEMORY:
        raise ConfigError(f"`{url}` is memory, which ends with its process. Give sqlite:///FILE.")
    path = file_of(url)
    if path is not None and not path.is_file():
        raise StorageError(f"there is no database `{path}`. Give the --db that the service was started with.")
    return path


def _keep_before(url: str, path: Path, told: Callable[[str], None]) -> None:
    """Back a file up, if it is about to change."""
    with reading(url) as engine, translated(), engine.begin() as connection:
        found = migrate.revision_of(connection)
    if found in (None, migrate.head()):
        return
    kept = path.with_name(f"{path.name}.{found}-{datetime.now(timezone.utc):%Y%m%dT%H%M%S%fZ}")
    backup(url, kept)
    told(f"kept the database as it was: {kept}")


def _step(engine: Engine) -> str | None:
    """Take one step; return to which revision, or None if there was none to take."""
    with translated(), engine.begin() as connection:
        migrate.alone(connection)
        found, known = migrate.revision_of(connection), migrate.revisions()
        if found == known[-1]:
            return None
        taken = known[0 if found is None else known.index(found) + 1]
        migrate.upgrade(connection, taken)
        problems = _sqlite_loose(connection) if connection.dialect.name == "sqlite" else []
        if problems:
            raise StorageError(f"the step to revision {taken} was undone: {problems[0]}")
        return taken


def _sqlite_damage(connection: Connection) -> list[str]:
    found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    return [f"the file is damaged: {line}" for line in found if line != "ok"] + _sqlite_loose(connection)


def _sqlite_loose(connection: Connection) -> list[str]:
    """Return what refers to rows that are not there."""
    found = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    pairs = dict.fromkeys((row[0], row[2]) for row in found)
    return [f"rows of `{table}` refer to rows of `{other}` that are not there." for table, other in pairs]


def _wrong_blobs(connection: Connection) -> list[str]:
    every = select(blobs.c.digest, blobs.c.data)
    with connection.execution_options(yield_per=1).execute(every) as rows:
        wrong = [digest for digest, data in rows if hashlib.sha256(data).hexdigest() != digest]
    return [f"the blob {digest} has other bytes than its digest says." for digest in wrong]


def _sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
