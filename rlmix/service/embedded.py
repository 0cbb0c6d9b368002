"""The service inside a training's own process: the same routes on the same database, without a server or a socket."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from typing import Any, final

from fastapi import FastAPI

from rlmix.errors import ServiceError
from rlmix.policy._transport import AbstractTransport, Reply
from rlmix.service.app import create_app
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.opening import open_storage

_CLOSE_SECONDS = 5.0


@final
class Embedded(AbstractTransport):
    """Answers from a database of this machine, which several processes may use at a time.

    Everything happens in a thread of its own, which begins at the first call, so that a call ends in time even if
    another process keeps the database locked.

    Args:
        url: `sqlite:///FILE`.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._storage: AbstractStorage | None = None
        self._app: FastAPI | None = None
        self._process = os.getpid()

    def call(self, method: str, path: str, body: bytes | None, *, seconds: float, limit: int) -> Reply:
        """Return the reply to a request."""
        if self._process != os.getpid():
            # The thread stayed in the parent process, and a connection to SQLite must not be used by two.
            self._loop = self._storage = self._app = None
            self._process = os.getpid()
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name="rlmix-embedded", daemon=True)
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(self._answered(method, path, body or b""), self._loop)
        try:
            status, data = future.result(seconds)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            future.cancel()
            raise ServiceError(f"`{self._url}` did not answer in time.") from None
        except Exception as error:
            # Whatever it is, the training goes on without.
            raise ServiceError(f"`{self._url}`: {error}") from error
        if len(data) > limit:
            raise ServiceError(f"`{self._url}` answers with more than {limit} bytes.")
        return Reply(status, data, 0.0)

    def close(self) -> None:
        """Let go of the database; the next call opens it again."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None or self._process != os.getpid():
            return
        shut = asyncio.run_coroutine_threadsafe(self._shut(), loop)
        concurrent.futures.wait([shut], _CLOSE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(_CLOSE_SECONDS)

    async def _shut(self) -> None:
        storage, self._storage, self._app = self._storage, None, None
        if storage is not None:
            storage.close()

    async def _answered(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Put a request to the routes, as a server does (ASGI)."""
        if self._app is None:
            self._storage = open_storage(self._url, shared=True)
            self._app = create_app(self._storage, private=True)
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("ascii"),
            "root_path": "",
            "query_string": query.encode("ascii"),
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 0),
            "server": ("localhost", 80),
        }
        replies: list[dict[str, Any]] = []
        requests = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return requests.pop() if requests else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            replies.append(message)

        await self._app(scope, receive, send)
        return int(replies[0]["status"]), b"".join(message.get("body", b"") for message in replies)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped."""
    loop.run_forever()
    loop.close()
