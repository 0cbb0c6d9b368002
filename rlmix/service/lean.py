"""Routes that are asked at every decision of every training: nothing is done for a request but what it needs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, final, get_type_hints

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect


@final
class LeanRoute(APIRoute):
    """A route whose endpoint takes the request, parts of its path by name, and a `body`.

    They are checked and described as those of other routes are. What FastAPI does to find out at each request what an
    endpoint takes is as much work as all else for a decision together; here it is found out once. Dependencies may be
    guards alone, which look at the request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        hints = get_type_hints(self.endpoint, include_extras=True)
        content, endpoint = TypeAdapter(hints["body"]), self.endpoint
        parts = {name: TypeAdapter(hints[name]) for name in self.param_convertors}
        guards = [depends.dependency for depends in self.dependencies if depends.dependency is not None]

        async def handle(request: Request) -> Response:
            for guard in guards:
                await guard(request)
            place = {name: _checked(adapter, request.path_params, name) for name, adapter in parts.items()}
            try:
                data = await request.body()
            except ClientDisconnect:
                raise HTTPException(400, "the body did not arrive.") from None
            try:
                body = content.validate_json(data)
            except ValidationError as error:
                raise _refused(error, "body") from None
            answer: Response = await endpoint(request, body=body, **place)
            return answer

        return handle


def _checked(adapter: TypeAdapter[Any], given: Mapping[str, Any], name: str) -> Any:
    try:
        return adapter.validate_python(given[name])
    except ValidationError as error:
        raise _refused(error, "path", name) from None


def _refused(error: ValidationError, *place: str) -> RequestValidationError:
    """Return the error that FastAPI would raise."""
    return RequestValidationError([{**one, "loc": (*place, *one["loc"])} for one in error.errors()])
