"""The service as an ASGI application."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from starlette.concurrency import run_in_threadpool

from rlmix.service.front import OPEN, Front
from rlmix.service.guard import Buckets, Guard, Tokens
from rlmix.service.metrics import TYPE, Metrics
from rlmix.service.pages import pages
from rlmix.service.replies import PROBLEMS, explain_errors, reply
from rlmix.service.routes import READ, READ_ALL, Service, api
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.sql import now

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
RATE = 200.0
CONCURRENT = 256

_BURST_SECONDS = 2


def create_app(
    storage: AbstractStorage,
    *,
    tokens: Tokens | None = None,
    private: bool = False,
    hosts: Sequence[str] = LOCAL_HOSTS,
    rate: float = RATE,
    concurrent: int = CONCURRENT,
) -> FastAPI:
    """Return the service as an ASGI application. Closing the storage is the caller's.

    Args:
        storage: what it keeps.
        tokens: of a file, which open everything. Those of the database count as well; with neither, everybody may ask.
        private: whether only those can ask who have the database itself, so that no token is asked for.
        hosts: names that requests may call it by ("*" for any); others are a web page's attempt to reach it.
        rate: requests a second of each token, and twice as many at once; 0 for no limit. In a batch, items count.
        concurrent: requests that may be under way at once.
    """
    app = FastAPI(
        title="rlmix", version=importlib.metadata.version("rlmix"), docs_url=None, redoc_url=None, openapi_url=None
    )
    guard = Guard(storage, Tokens() if tokens is None else tokens, private=private)
    since = now()
    metrics = Metrics(storage, since)
    service = Service(storage, Buckets(rate, _BURST_SECONDS * rate), metrics)
    app.include_router(_health(storage, guard))
    # Not as a router within a router, which would be searched again for each request.
    app.router.routes.extend(api(service).routes)
    app.include_router(_about(app, guard, metrics))
    app.include_router(pages(storage, service.policies, since))
    explain_errors(app)
    app.add_middleware(Front, guard=guard, buckets=service.buckets, hosts=hosts, concurrent=concurrent, metrics=metrics)
    return app


def _health(storage: AbstractStorage, guard: Guard) -> APIRouter:
    router = APIRouter(responses={status: PROBLEMS[status] for status in (400, 503)})

    @router.get("/healthz")
    async def alive() -> Response:
        """Say that the process answers."""
        return reply(200, {"status": "alive"})

    @router.get("/readyz")
    async def ready() -> Response:
        """Say that the storage can be written; 503 where it cannot."""
        await run_in_threadpool(storage.check)
        return reply(200, {"status": "ready", "auth": "on" if await guard.required() else "off"})

    return router


def _about(app: FastAPI, guard: Guard, metrics: Metrics) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/v1/openapi.json", dependencies=[READ])
    async def openapi() -> dict[str, Any]:
        """Describe the service for programs."""
        return _described(app, guarded=await guard.required())

    @router.get("/metrics", dependencies=[READ_ALL])
    def measured() -> Response:
        """Return what a monitor reads."""
        return Response(metrics.text(), media_type=TYPE)

    return router


def _described(app: FastAPI, *, guarded: bool) -> dict[str, Any]:
    """Return the OpenAPI description, with what needs a token if anything does."""
    description = app.openapi()
    schemes = description.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["token"] = {"type": "http", "scheme": "bearer"}
    for path, operations in description["paths"].items():
        for operation in operations.values():
            operation["security"] = [{"token": []}] if guarded and path not in OPEN else []
    return description
