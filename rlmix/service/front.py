"""What every request passes first: whose name it calls, whether there is room, who asks, and how much it brings."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any, final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlmix.errors import StorageError
from rlmix.service.guard import Buckets, Guard
from rlmix.service.metrics import Metrics
from rlmix.service.replies import RETRY_SECONDS, ProblemError, as_problem, refusal

API_VERSION = "1"
JSON_BYTES = 2**20
BLOB_BYTES = 64 * 2**20

# Whether the process lives and can write is asked by those who have no token, and when nobody else gets an answer.
OPEN = frozenset({"/healthz", "/readyz"})

_BLOBS = "/v1/blobs/"
_API = ("/v1/", "/metrics")
# What a request is called that brings no name: of this process, and one after the other.
_PROCESS, _NUMBERS = secrets.token_hex(4), itertools.count()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
    (b"rlmix-api-version", API_VERSION.encode()),
)


@final
class Front:
    """Refuses what no route needs to see, and says on every answer what browsers must not do with it.

    Args:
        app: what answers.
        guard: knows who asks. Whoever it is stands in `request.state.caller`.
        buckets: how often they may.
        hosts: names that the service is called by; others are a web page's attempt to reach it. "*" for any.
        concurrent: requests that may be under way at once.
        metrics: told of every request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        guard: Guard,
        buckets: Buckets,
        hosts: Sequence[str],
        concurrent: int,
        metrics: Metrics,
    ) -> None:
        self._app, self._guard, self._buckets, self._metrics = app, guard, buckets, metrics
        self._hosts = None if "*" in hosts else frozenset(host.lower() for host in hosts)
        self._concurrent, self._running = concurrent, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, begun, status = Headers(scope=scope), time.perf_counter(), 500
        always = [*_SAFE, (b"x-request-id", _request_id(headers))]

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, own = message["status"], message.get("headers", [])
                named = {name.lower() for name, _ in own}
                message["headers"] = [*own, *(pair for pair in always if pair[0] not in named)]
            await send(message)

        self._running += 1
        try:
            refused = await self._refused(scope, headers)
            if refused is None:
                await self._app(scope, _counted(receive, _limit(scope)), stamped)
            else:
                await refused(scope, receive, stamped)
        finally:
            self._running -= 1
            self._metrics.answered(scope, status, time.perf_counter() - begun)

    async def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the answer to a request that goes no further."""
        try:
            self._check_host(headers)
            if scope["path"] not in OPEN:
                self._check_room()
                await self._check_caller(scope, headers)
            _check_body(scope, headers)
        except (ProblemError, StorageError) as error:
            return refusal(as_problem(error) or ProblemError(503, "storage", str(error)))
        return None

    def _check_host(self, headers: Headers) -> None:
        given = headers.get("host", "")
        if self._hosts is not None and re.sub(r":\d+$", "", given).lower() not in self._hosts:
            raise ProblemError(400, "host", "the service is not called by this name. Allow it: --allow-host NAME")

    def _check_room(self) -> None:
        if self._running > self._concurrent:
            detail = f"{self._concurrent} requests are under way."
            raise ProblemError(503, "busy", detail, {"Retry-After": str(RETRY_SECONDS)})

    async def _check_caller(self, scope: Scope, headers: Headers) -> None:
        api = scope["path"].startswith(_API)
        caller = await self._guard.caller(headers.get("authorization"), basic=not api)
        if caller is None and api:
            detail = "a token is needed that is neither revoked nor has expired: `Authorization: Bearer TOKEN`."
            raise ProblemError(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer"})
        if caller is None:
            detail = "a token is needed: any user name, with the token as password."
            challenge = {"WWW-Authenticate": 'Basic realm="rlmix: any name, and a token as password", charset="UTF-8"'}
            raise ProblemError(401, "unauthorized", detail, challenge)
        wait = self._buckets.take(caller.key)
        if wait:
            raise ProblemError(429, "too-often", f"come back in {wait} s.", {"Retry-After": str(wait)})
        scope.setdefault("state", {})["caller"] = caller


def _request_id(headers: Headers) -> bytes:
    given = headers.get("x-request-id", "")
    return (given if _REQUEST_ID.fullmatch(given) else f"{_PROCESS}{next(_NUMBERS):08x}").encode("ascii")


def _limit(scope: Scope) -> int:
    return BLOB_BYTES if scope["path"].startswith(_BLOBS) else JSON_BYTES


def _check_body(scope: Scope, headers: Headers) -> None:
    """Refuse a body by what is said of it."""
    length = headers.get("content-length", "")
    announced = int(length) if length.isascii() and length.isdigit() else 0
    if announced > _limit(scope):
        raise _too_large(_limit(scope))
    if not announced and "transfer-encoding" not in headers:
        return
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    wanted = ("application/octet-stream", "") if scope["path"].startswith(_BLOBS) else ("application/json",)
    if kind not in wanted:
        raise ProblemError(415, "media-type", f"the body must be `{wanted[0]}`, not `{kind[:80]}`.")


def _too_large(limit: int) -> ProblemError:
    return ProblemError(413, "too-large", f"a body has at most {limit} bytes here.", {"Connection": "close"})


def _counted(receive: Receive, limit: int) -> Receive:
    """Return `receive`, ended where more arrives than was announced, or than is allowed."""
    total = 0

    async def counted() -> Message:
        nonlocal total
        message: Any = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise HTTPException(413, f"a body has at most {limit} bytes here.", {"Connection": "close"})
        return dict(message)

    return counted
