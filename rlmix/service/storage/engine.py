"""How statements reach a database: transactions that are read, and transactions that are written."""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, TypeVar, final

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from rlmix._files import writable_folder
from rlmix.errors import RlmixError, StorageError
from rlmix.service.failpoints import fail_point
from rlmix.service.storage import migrate

T = TypeVar("T")

Durability: TypeAlias = Literal["normal", "full"]
"""What outlives what: "normal" the end of the process by whatever means, "full" the loss of power too."""

# Writes that one transaction takes, and writes that wait; beyond, callers are told to come back.
_GROUP = 256
_WAITING = 4096
# What no small write takes unless it waits for another process.
_SLOW_SECONDS = 0.05
BUSY_SECONDS = 5
"""How long a statement waits for a lock that another holds."""


class AbstractEngine(ABC):
    """Runs functions of a connection in transactions; calls may come from several threads."""

    @abstractmethod
    def read(self, function: Callable[[Connection], T]) -> T:
        """Return what `function` returns; it must not write."""

    @abstractmethod
    def write(self, function: Callable[[Connection], T]) -> T:
        """Return what `function` returns once that is committed; nothing of it is stored if it raises.

        It may be called several times, each time on what is stored by then, until nobody else was faster.
        """

    @abstractmethod
    def quick(self) -> bool:
        """Say whether a small write would be over sooner than a thread could be woken for it."""

    @abstractmethod
    def waiting(self) -> int:
        """Return how many writes wait for their turn in this process."""

    @abstractmethod
    def close(self) -> None:
        """Finish what was begun, and let go."""


Write: TypeAlias = tuple[Callable[[Connection], Any], "Future[Any]"]


@final
class Sqlite(AbstractEngine):
    """SQLite, with one thread that writes at a time: whatever waits meanwhile is committed together by the next.

    Threads that lock each other out of the file would wait ten times longer, and a thread that does nothing but write
    would have to be woken for each write.

    Args:
        path: of the file, which is made if need be; None keeps everything in memory.
        durability: of a file.
        shared: whether another process may serve the file meanwhile, as beside a learner. SQLite itself lets one write
            after the other; the lock is there so that nobody starts a second service by mistake.

    Raises:
        OutputError: the folder cannot be written.
        StorageError: the file is no database of this revision, or another process serves it.
    """

    def __init__(self, path: Path | None, durability: Durability = "normal", *, shared: bool = False) -> None:
        # What is let go of at the end, last first.
        self._held = contextlib.ExitStack()
        if path is not None and not shared:
            self._held.enter_context(sqlite_lock(path))
        pragmas = ("foreign_keys=ON", "journal_mode=WAL", f"synchronous={durability.upper()}")
        writers = sqlite_engine(path, *pragmas, begin="BEGIN IMMEDIATE")
        self._held.callback(writers.dispose)
        # In memory there is one connection, which belongs to the writer.
        # Each reader has a cache of its own, of what the system keeps in memory anyway: half a MiB instead of two.
        self._readers = None if path is None else sqlite_engine(path, *pragmas, "query_only=ON", "cache_size=-512")
        if self._readers is not None:
            self._held.callback(self._readers.dispose)
        self._queue: deque[Write] = deque()
        # Guards these three, and is told whenever nobody writes any more.
        self._changed = threading.Condition()
        self._writing = self._closed = False
        # Whether a write waits for the disk, and whether the last one had to wait for anything.
        self._lasting, self._slow = path is not None and durability == "full", False
        try:
            with translated():
                # Kept: to fetch it for each write would take a quarter of the write's time.
                self._writer = self._held.enter_context(writers.connect())
            with translated(), self._writer.begin():
                mode = self._writer.exec_driver_sql("PRAGMA journal_mode").scalar()
                if path is not None and mode != "wal":
                    raise StorageError(
                        f"`{path}`: SQLite answers `{mode}` where a write-ahead log is needed. Use a local disk."
                    )
                migrate.prepare(self._writer, f"sqlite:///{path}")
        except BaseException:
            self._held.close()
            raise

    def read(self, function: Callable[[Connection], T]) -> T:
        """Return what `function` returns."""
        if self._readers is None:
            return self.write(function)
        with translated(), self._readers.begin() as connection:
            return function(connection)

    def write(self, function: Callable[[Connection], T]) -> T:
        """Return what `function` returns once that is committed."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise StorageError("the storage is closed.")
            if len(self._queue) >= _WAITING:
                raise StorageError(f"{_WAITING} writes are waiting. Try again in a second.")
            self._queue.append((function, future))
        self._commit_until(future.done)
        return future.result()

    def quick(self) -> bool:
        """Say whether a small write would be over at once, as far as is known."""
        return not (self._lasting or self._slow or self._writing)

    def waiting(self) -> int:
        """Return how many writes wait for their turn."""
        return len(self._queue)

    def close(self) -> None:
        """Commit what waits, and let go."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
        self._commit_until(lambda: not self._queue and not self._writing)
        self._held.close()

    def _commit_until(self, over: Callable[[], bool]) -> None:
        """Wait while somebody else writes, and write whatever waits if nobody does, until it is over."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: over() or not self._writing)
                if over():
                    return
                self._writing = True
                group = [self._queue.popleft() for _ in range(min(_GROUP, len(self._queue)))]
            begun = time.monotonic()
            try:
                _commit(self._writer, group)
            finally:
                self._slow = time.monotonic() - begun > _SLOW_SECONDS
                for _, future in group:
                    if not future.done():
                        future.set_exception(StorageError("the thread that wrote was interrupted. Ask again."))
                with self._changed:
                    self._writing = False
                    self._changed.notify_all()


def _commit(connection: Connection, group: list[Write]) -> None:
    """Run writes in one transaction, and answer when it is committed; one that raises leaves the others alone."""
    outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
    try:
        with translated(), connection.begin():
            if len(group) == 1:
                # Nothing else is lost with it if it raises.
                outcomes.append((group[0][1], group[0][0](connection), None))
            else:
                for function, future in group:
                    outcomes.append((future, *_attempt(connection, function)))
            fail_point("service.before_commit")
    except Exception as error:
        for _, future in group:
            future.set_exception(error)
        return
    fail_point("service.after_commit")
    for future, result, problem in outcomes:
        if problem is None:
            future.set_result(result)
        else:
            future.set_exception(problem)


def _attempt(connection: Connection, function: Callable[[Connection], T]) -> tuple[T | None, BaseException | None]:
    """Run one write within a transaction that others share."""
    try:
        with translated(), connection.begin_nested():
            return function(connection), None
    except Exception as error:
        return None, error


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise the database's errors as StorageError."""
    try:
        yield
    except RlmixError:
        raise
    except (IntegrityError, sqlite3.IntegrityError) as error:
        raise StorageError(f"the database refuses this ({getattr(error, 'orig', error)}).") from error
    except (SQLAlchemyError, sqlite3.Error) as error:
        reason = str(getattr(error, "orig", None) or error)
        raise StorageError(f"the database cannot answer ({reason}).") from error


def sqlite_engine(path: Path | None, *pragmas: str, begin: str = "BEGIN") -> Engine:
    """Return connections to a file of SQLite, or to one memory.

    Args:
        path: of the file; None for memory.
        pragmas: settings of each connection, `NAME=VALUE`.
        begin: the statement that begins a transaction.
    """
    if path is None:
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, record: object) -> None:
        # The driver would begin transactions by itself, and too late: a read that turns into a write fails at once.
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # By the driver itself: around three letters of SQL all else would take ten times longer than they do.
        connection.connection.driver_connection.execute(begin)  # type: ignore[union-attr]

    return engine


def sqlite_lock(path: Path) -> IO[str]:
    """Return an open file that keeps other processes away until it is closed, which the end of the process does too.

    Raises:
        OutputError: the folder cannot be written.
        StorageError: another process has it.
    """
    writable_folder(path.parent)
    file = path.with_name(f"{path.name}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StorageError(f"`{path}` is in use by another process. Stop it, or give another --db.") from error
    return file
