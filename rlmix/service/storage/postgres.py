"""Transactions on PostgreSQL, which several processes and hosts may share."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from rlmix.errors import ConfigError, MissingDependencyError, StorageError
from rlmix.service.failpoints import fail_point
from rlmix.service.storage import migrate
from rlmix.service.storage.engine import BUSY_SECONDS, AbstractEngine, translated

T = TypeVar("T")

# Another process was faster: a unique key, a foreign key, a serialisation, a deadlock. What is stored now decides.
_AGAIN = frozenset({"23505", "23503", "40001", "40P01"})
# Each time somebody else has written something, so that this is many writers of one thing rather than bad luck.
_ATTEMPTS = 50

_CONNECTIONS = 8
_CONNECT_SECONDS = 5
_STATEMENT_SECONDS = 15
# A process that is stopped in the middle of a transaction keeps its locks from all others for so long.
_IDLE_SECONDS = 10


@final
class Postgres(AbstractEngine):
    """PostgreSQL, READ COMMITTED for writes; unique keys say who was first, and whoever was not starts again.

    A transaction that is acknowledged outlives the end of the database too. If the database is lost, calls raise until
    it is back.

    Args:
        url: `postgresql://USER@HOST/NAME`, with options of libpq behind `?`.

    Raises:
        ConfigError: the address is none.
        MissingDependencyError: psycopg is not installed.
        StorageError: the database is away, or is not of this revision.
    """

    def __init__(self, url: str) -> None:
        self._engine = postgres_engine(url)
        # A read of several statements sees one state, as it does on SQLite.
        self._readers = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        # Threads that wait for a connection come to it in their order; the pool's own waiting lets some starve.
        self._workers = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="rlmix-postgres")
        self._counting = threading.Lock()
        self._waiting = 0
        try:
            with translated(), self._engine.begin() as connection:
                migrate.prepare(connection, shown(url))
        except BaseException:
            self._engine.dispose()
            raise

    def read(self, function: Callable[[Connection], T]) -> T:
        """Return what `function` returns."""
        return self._in_turn(lambda: _read(self._readers, function))

    def write(self, function: Callable[[Connection], T]) -> T:
        """Return what `function` returns once that is committed."""
        return self._in_turn(lambda: _until_first(self._engine, function))

    def quick(self) -> bool:
        """Say that a write waits for another process."""
        return False

    def waiting(self) -> int:
        """Return how many calls wait for a connection."""
        return self._waiting

    def close(self) -> None:
        """Finish what was begun, and let go."""
        self._workers.shutdown()
        self._engine.dispose()

    def _in_turn(self, call: Callable[[], T]) -> T:
        def begin() -> T:
            self._count(-1)
            return call()

        self._count(1)
        try:
            future = self._workers.submit(begin)
        except RuntimeError as error:
            self._count(-1)
            raise StorageError("the storage is closed.") from error
        with translated():
            return future.result()

    def _count(self, change: int) -> None:
        with self._counting:
            self._waiting += change


def _read(engine: Engine, function: Callable[[Connection], T]) -> T:
    with engine.begin() as connection:
        return function(connection)


def _write(engine: Engine, function: Callable[[Connection], T]) -> T:
    with engine.begin() as connection:
        result = function(connection)
        fail_point("service.before_commit")
    fail_point("service.after_commit")
    return result


def _until_first(engine: Engine, function: Callable[[Connection], T]) -> T:
    """Run a transaction, and again as long as another one was faster."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return _write(engine, function)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _AGAIN:
                raise
    return _write(engine, function)


def postgres_engine(url: str) -> Engine:
    """Return connections to a PostgreSQL; nothing is asked of it yet.

    Args:
        url: `postgresql://USER@HOST/NAME`.

    Raises:
        ConfigError: the address is none.
        MissingDependencyError: psycopg is not installed.
    """
    try:
        engine = create_engine(
            make_url(url).set(drivername="postgresql+psycopg"),
            isolation_level="READ COMMITTED",
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"connect_timeout": _CONNECT_SECONDS, "application_name": "rlmix"},
        )
    except ImportError as error:
        raise MissingDependencyError(
            f"PostgreSQL needs `{error.name}`, which is not installed. Run: pip install 'rlmix[serve]'"
        ) from error
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"`{shown(url)}` is no address of a database. Give postgresql://USER@HOST/NAME.") from error

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = '{_STATEMENT_SECONDS}s'")
            cursor.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_SECONDS}s'")
            # A database that is set to acknowledge before it has written would lose what the service has promised.
            if cursor.execute("SHOW synchronous_commit").fetchone() == ("off",):
                cursor.execute("SET synchronous_commit = on")
        connection.commit()

    return engine


def shown(url: str) -> str:
    """Return an address without the password that it may hold."""
    return re.sub(r"(password=)[^&]*", r"\1***", re.sub(r"(//[^:/]*):[^/]*@", r"\1:***@", url))
