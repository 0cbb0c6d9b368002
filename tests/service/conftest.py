"""A policy, a service in this process, and one of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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


@pytest.fixture
def url(storage: AbstractStorage) -> Iterator[str]:
    """Return the address of a service on that storage, with real sockets, in a thread of this process."""
    import uvicorn

    from rlmix.service.app import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(storage), log_level="warning", timeout_graceful_shutdown=1))
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


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
