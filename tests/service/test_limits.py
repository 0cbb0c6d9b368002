"""How much may be asked of the service."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="the test client of starlette needs httpx2")

from starlette.testclient import TestClient

from rlmix.service.app import create_app
from rlmix.service.front import BLOB_BYTES, JSON_BYTES
from rlmix.service.guard import Tokens
from rlmix.service.server import publish
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.opening import open_storage

LOCAL = "http://localhost"
SECRETS = ("a" * 32, "b" * 32)


def test_who_asks_too_often_is_told_when_to_come_back(storage: AbstractStorage) -> None:
    """And the others are not made to wait for it."""
    first, second = ({"Authorization": f"Bearer {secret}"} for secret in SECRETS)
    with TestClient(create_app(storage, tokens=Tokens(SECRETS), rate=0.5), LOCAL) as client:
        assert client.get("/v1/info", headers=first).status_code == 200
        refused = client.get("/v1/info", headers=first)
        assert (refused.status_code, refused.json()["title"]) == (429, "too-often")
        assert 1 <= int(refused.headers["retry-after"]) <= 2
        assert client.get("/v1/info", headers=second).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_a_batch_counts_as_many_as_it_holds(storage: AbstractStorage) -> None:
    """Otherwise everybody would send batches."""
    first, second = ({"Authorization": f"Bearer {secret}"} for secret in SECRETS)
    run = "/v1/projects/default/runs/r"
    body = {"policy": "default", "alias": "default", "total_steps": 1, "num_classes": 2}
    items = {"items": [{"seq": seq, "values": {"loss": 1.0}} for seq in range(300)]}
    with TestClient(create_app(storage, tokens=Tokens(SECRETS), rate=1), LOCAL) as client:
        assert client.put(run, json=body, headers=second).status_code == 201
        assert client.post(f"{run}/feedback:batch", json=items, headers=first).status_code == 200
        refused = client.get("/v1/info", headers=first)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 250


def test_more_at_once_than_there_is_room_for_is_refused(storage: AbstractStorage) -> None:
    """A client that hears so at once uses its own copy of the policy; one that waits in a queue waits in vain."""
    entered, leave = threading.Event(), threading.Event()

    def slow(self: Any) -> tuple[str, ...]:
        entered.set()
        assert leave.wait(10)
        return ()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(storage), "projects", slow)
        with TestClient(create_app(storage, concurrent=1), LOCAL) as client:
            waiting = threading.Thread(target=client.get, args=("/v1/projects",))
            waiting.start()
            try:
                assert entered.wait(10)
                refused = client.get("/v1/info")
                assert (refused.status_code, refused.json()["title"]) == (503, "busy")
                assert refused.headers["retry-after"] == "1"
                assert client.get("/healthz").status_code == 200
            finally:
                leave.set()
                waiting.join()
            assert client.get("/v1/info").status_code == 200


@pytest.mark.parametrize(
    ("path", "limit"), [("/v1/projects/p", JSON_BYTES), (f"/v1/blobs/sha256/{'0' * 64}", BLOB_BYTES)]
)
def test_a_body_that_is_announced_too_large_is_never_read(storage: AbstractStorage, path: str, limit: int) -> None:
    """Memory that a stranger can ask for is memory that is gone."""
    app = create_app(storage)
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", str(limit + 1).encode())]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "PUT", "path": path}
    scope |= {"raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http", "headers": headers}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "limit=x", "limit=1e2", "after=-1", "limit=", "limit=99999999999999999999"]
)
def test_a_page_has_a_size(storage: AbstractStorage, query: str) -> None:
    """So that no request reads a whole table."""
    with TestClient(create_app(storage), LOCAL) as client:
        for place in ("policies/default/versions", "policies/default/ended"):
            assert client.get(f"/v1/projects/default/{place}?{query}").status_code == 422


def test_a_database_that_another_process_locks_holds_up_writes_alone(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks whether the service lives must hear so, or it is ended for want of an answer."""
    monkeypatch.setattr("rlmix.service.storage.engine.BUSY_SECONDS", 1.0)
    run = "/v1/projects/default/runs/r"
    values = {"values": {"loss": 1.0}}
    with contextlib.closing(open_storage(f"sqlite:///{tmp_path}/x.db")) as storage:
        storage.create_project("default")
        publish(storage, policy)
        storage.create_run("default", "r", "default", "default", {"total_steps": 1, "num_classes": 2})
        other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
        with contextlib.closing(other), TestClient(create_app(storage), LOCAL) as client:
            other.execute("BEGIN IMMEDIATE")
            assert client.put(f"{run}/feedback/0", json=values).status_code == 503
            statuses: list[int] = []
            waiting = threading.Thread(
                target=lambda: statuses.append(client.put(f"{run}/feedback/0", json=values).status_code)
            )
            waiting.start()
            assert client.get("/healthz").status_code == 200
            assert client.get("/v1/projects").json() == {"projects": ["default"]}
            assert not statuses
            waiting.join()
            assert statuses == [503]
            other.execute("COMMIT")
            # There is no such decision, which the database says again.
            assert client.put(f"{run}/feedback/0", json=values).status_code == 404
