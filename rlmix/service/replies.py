"""What the service answers: JSON, and problems as RFC 9457 has them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, final

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from rlmix.errors import ConflictError, FencedError, MissingError, PolicyError, StorageError

RETRY_SECONDS = 1
"""After how long to ask again where nothing better is known."""

_PROBLEM = "application/problem+json"
_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


@final
class ProblemError(Exception):
    """Ends a request with a problem.

    Args:
        status: of HTTP.
        title: names the kind.
        detail: says what was wrong here, and how to mend it.
        headers: of the answer.
    """

    def __init__(self, status: int, title: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.title, self.detail, self.headers = status, title, detail, headers


def problem(status: int, title: str, detail: str, **more: Any) -> dict[str, Any]:
    """Return a problem as RFC 9457 has it: `title` names the kind, `detail` says what was wrong here."""
    return {"type": f"urn:rlmix:problem:{title}", "title": title, "status": status, "detail": detail, **more}


def reply(status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON answer; of 400 and above, a problem."""
    kind = _PROBLEM if status >= 400 else "application/json"
    return Response(_JSON.encode(content), status_code=status, media_type=kind, headers=headers)


def refusal(error: ProblemError) -> Response:
    """Return the answer that an error stands for."""
    return reply(error.status, problem(error.status, error.title, error.detail), error.headers)


def written(request: Request, content: Mapping[str, Any], *, new: bool, at: str | None = None) -> Response:
    """Answer a write: 201 and where it is, or 200 if it was there before."""
    return reply(201 if new else 200, content, {"Location": at or request.scope["path"]} if new else None)


def answers(model: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of an answer for OpenAPI; 200 if no status is given."""
    words = {200: "It is so.", 201: "It was made."}
    return {status: {"model": model, "description": words[status]} for status in statuses or (200,)}


def _described() -> dict[int | str, dict[str, Any]]:
    text = {"type": "string"}
    schema = {
        "title": "Problem",
        "type": "object",
        "properties": {"type": text, "title": text, "status": {"type": "integer"}, "detail": text},
        "required": ["type", "title", "status", "detail"],
    }
    meanings = {
        400: "It cannot be read at all.",
        401: "A token is needed, or this one is unknown, revoked or has expired.",
        403: "The token does not open this.",
        404: "Something that is named is not there.",
        409: "Something else is stored under this name, somebody else goes on with it, or it does not fit the policy.",
        413: "The body is too large.",
        415: "The body is of another media type.",
        422: "The body or the address is not of the form that is asked for.",
        429: "The token has asked too often; `Retry-After` says when to come back.",
        503: "The service or its database is busy or away; `Retry-After` says when to come back.",
    }
    found: dict[int | str, dict[str, Any]] = {}
    for status, meaning in meanings.items():
        found[status] = {"description": meaning, "content": {_PROBLEM: {"schema": schema}}}
    return found


PROBLEMS = _described()
"""Descriptions of the problems for OpenAPI, by status."""

# Of an error's classes the first that is found here counts.
_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (MissingError, 404, "not-found"),
    (FencedError, 409, "fenced"),
    (ConflictError, 409, "conflict"),
    (StorageError, 503, "storage"),
    (PolicyError, 422, "policy"),
)


def as_problem(error: Exception) -> ProblemError | None:
    """Return the problem that an error of rlmix is to a client; None for a fault of the service."""
    if isinstance(error, ProblemError):
        return error
    for kind, status, title in _STATUS:
        if isinstance(error, kind):
            headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
            return ProblemError(status, title, str(error), headers)
    return None


def explain_errors(app: FastAPI) -> None:
    """Answer every error of an application with a problem."""

    def answer(request: Request, error: Exception) -> Response:
        # What a fault of the service says is for its own log, which the server writes.
        fault = ProblemError(500, "fault", "the service failed; its log says more.")
        return refusal(as_problem(error) or fault)

    kinds: list[type[Exception]] = [Exception, ProblemError, *(kind for kind, _, _ in _STATUS)]
    handlers: dict[type[Exception], Callable[[Request, Any], Response]] = dict.fromkeys(kinds, answer)
    handlers[RequestValidationError] = _invalid
    handlers[HTTPException] = handlers[StarletteHTTPException] = _http
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _invalid(request: Request, error: RequestValidationError) -> Response:
    # What was sent is left out: it may be long, and it may be no number that JSON can hold.
    places = [{"at": ".".join(map(str, one["loc"])), "problem": one["msg"]} for one in error.errors()[:20]]
    detail = "; ".join(f"{place['at']}: {place['problem']}" for place in places[:3])
    return reply(422, problem(422, "invalid", detail, errors=places))


def _http(request: Request, error: StarletteHTTPException) -> Response:
    headers = dict(error.headers or {})
    allowed = _methods(request) if error.status_code == 405 else ()
    if allowed:
        headers["Allow"] = ", ".join(allowed)
    return reply(error.status_code, problem(error.status_code, "http", str(error.detail)), headers)


def _methods(request: Request) -> list[str]:
    """Return what may be done at an address: each route by itself knows only of its own method."""
    found: set[str] = set()
    for path, operations in request.app.openapi()["paths"].items():
        pattern = "[^/:]+".join(map(re.escape, re.split(r"{\w+}", path)))
        if re.fullmatch(pattern, request.url.path):
            found |= {method.upper() for method in operations}
    return sorted(found)
