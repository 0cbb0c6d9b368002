"""How statements reach a database: transactions that are read, and transactions that are written."""

from __future__ import annotations

import contextlib
import fcntl
import queue
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, final

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from rlmix._files import writable_folder
from rlmix.errors import RlmixError, StorageError
from rlmix.service.storage import migrate

T = TypeVar("T")

Durability: TypeAlias = Literal["normal", "full"]
"""What outlives what: "normal" the end of the process by whatever means, "full" the loss of power too."""

# Writes that one transaction takes, and writes that wait; beyond, callers are told to come back.
_GROUP = 256
_WAITING = 4096
_BUSY_SECONDS = 5


class AbstractEngine(ABC):
    """Runs functions of a connection in transactions; calls may come from several threads."""

    @abstractmethod
    def read(self, function: Callable[[Connection], T]) -> T:
        """Return what `function` returns; it must not write."""

    @abstractmethod
    def write(self, function: Callable[[Connection], T]) -> T:
        """Return what `function` returns once that is committed; nothing of it is stored if it raises."""

    @abstractmethod
    def close(self) -> None:
        """Finish what was begun, and let go."""


Write: TypeAlias = tuple[Callable[[Connection], Any], "Future[Any]"]


@final
class Sqlite(AbstractEngine):
    """SQLite, with one thread that writes: whatever waits for it is committed together.

    Threads that lock each other out would wait ten times longer than threads that wait for one.

    Args:
        path: of the file, which is made if need be; None keeps everything in memory.
        durability: of a file.

    Raises:
        OutputError: the folder cannot be written.
        StorageError: the file is no database of this version, or another process serves it.
    """

    def __init__(self, path: Path | None, durability: Durability = "normal") -> None:
        self._lock = None if path is None else _lock(path)
        self._writer = _engine(path, durability, begin="BEGIN IMMEDIATE")
        # In memory there is one connection, which belongs to the writer.
        self._readers = None if path is None else _engine(path, durability, begin="BEGIN", query_only=True)
        self._queue: queue.Queue[Write | None] = queue.Queue(_WAITING)
        self._closing = threading.Lock()
        self._closed = False
        try:
            with _translated(), self._writer.begin() as connection:
                migrate.upgrade(connection)
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._work, name="rlmix-writer", daemon=True)
        self._thread.start()

    def read(self, function: Callable[[Connection], T]) -> T:
        """Return what `function` returns."""
        if self._readers is None:
            return self.write(function)
        with _translated(), self._readers.begin() as connection:
            return function(connection)

    def write(self, function: Callable[[Connection], T]) -> T:
        """Return what `function` returns once that is committed."""
        future: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise StorageError("the storage is closed.")
            try:
                self._queue.put_nowait((function, future))
            except queue.Full:
                raise StorageError(f"{_WAITING} writes are waiting. Try again in a second.") from None
        return future.result()

    def close(self) -> None:
        """Commit what waits, and let go."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._queue.put(None)
        self._thread.join()
        self._release()

    def _release(self) -> None:
        if self._readers is not None:
            self._readers.dispose()
        self._writer.dispose()
        if self._lock is not None:
            self._lock.close()

    def _work(self) -> None:
        """Commit group after group until the end."""
        while True:
            group, last = self._group()
            if group:
                _commit(self._writer, group)
            if last:
                return

    def _group(self) -> tuple[list[Write], bool]:
        """Return the writes that wait, at least one, and whether the end was among them."""
        group: list[Write] = []
        item = self._queue.get()
        while item is not None:
            group.append(item)
            if len(group) == _GROUP:
                return group, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True


def _commit(engine: Engine, group: list[Write]) -> None:
    """Run writes in one transaction, and answer when it is committed; one that raises leaves the others alone."""
    outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
    try:
        with _translated(), engine.begin() as connection:
            for function, future in group:
                outcomes.append((future, *_attempt(connection, function)))
    except Exception as error:
        for _, future in group:
            future.set_exception(error)
        return
    for future, result, problem in outcomes:
        if problem is None:
            future.set_result(result)
        else:
            future.set_exception(problem)


def _attempt(connection: Connection, function: Callable[[Connection], T]) -> tuple[T | None, BaseException | None]:
    """Run one write within a transaction that others share."""
    try:
        with _translated(), connection.begin_nested():
            return function(connection), None
    except Exception as error:
        return None, error


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise the database's errors as our own."""
    try:
        yield
    except RlmixError:
        raise
    except IntegrityError as error:
        raise StorageError(f"the database refuses this ({error.orig}).") from error
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error)
        raise StorageError(f"the database cannot answer ({reason}).") from error


def _engine(path: Path | None, durability: Durability, *, begin: str, query_only: bool = False) -> Engine:
    if path is None:
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, record: object) -> None:
        # The driver would begin transactions by itself, and too late: a read that turns into a write fails at once.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        if path is None:
            return
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StorageError(
                f"`{path}`: SQLite answers `{mode}` where a write-ahead log is needed. Use a local disk."
            )
        connection.execute(f"PRAGMA synchronous={durability.upper()}")
        if query_only:
            connection.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _lock(path: Path) -> Any:
    """Return an open file that keeps other processes away until it is closed, which the end of the process does too."""
    writable_folder(path.parent)
    file = path.with_name(f"{path.name}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StorageError(f"`{path}` is in use by another process. Stop it, or give another --db.") from error
    return file
