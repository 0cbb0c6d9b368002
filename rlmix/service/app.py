"""The service over HTTP. Resources have names that their clients choose, and every write can be repeated."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, final

import numpy as np
import torch
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from rlmix.errors import ConflictError, MissingError, PolicyError, RlmixError, StorageError
from rlmix.policy.decision import Decision
from rlmix.policy.sources import Learned
from rlmix.service import schemas
from rlmix.service.decide import decide
from rlmix.service.guard import BLOB_BYTES, JSON_BYTES, BodyLimit, Tokens, problem
from rlmix.service.policies import Policies
from rlmix.service.records import DecisionRecord, Feedback, Origin, PolicyVersion
from rlmix.service.storage.abstract import PAGE, AbstractStorage
from rlmix.service.storage.sql import now

_RUNS_KEPT = 4096
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]", "testserver")

Project = Annotated[str, Path(pattern=schemas.NAME)]
PolicyName = Annotated[str, Path(pattern=schemas.NAME)]
AliasName = Annotated[str, Path(pattern=schemas.NAME)]
RunName = Annotated[str, Path(pattern=schemas.NAME)]
Digest = Annotated[str, Path(pattern=schemas.DIGEST)]
Seq = Annotated[int, Path(ge=0, lt=schemas.SEQ_END)]
Number = Annotated[int, Path(ge=1, lt=2**31)]
Limit = Annotated[int, Query(ge=1, le=PAGE)]


@final
class _Problem(Exception):  # noqa: N818  (it is one, as RFC 9457 calls it)
    def __init__(self, status: int, title: str, detail: str) -> None:
        self.status, self.title, self.detail = status, title, detail


@final
@dataclasses.dataclass(frozen=True, slots=True)
class _Service:
    """What the routes share."""

    storage: AbstractStorage
    policies: Policies
    pinned: Callable[[str, str], PolicyVersion]


def create_app(
    storage: AbstractStorage, *, tokens: Tokens | None = None, hosts: tuple[str, ...] = LOCAL_HOSTS
) -> FastAPI:
    """Return the service as an ASGI application. Closing the storage is the caller's.

    Args:
        storage: what it keeps.
        tokens: who may ask; None for everybody.
        hosts: names that requests may call it by ("*" for any); others are a web page's attempt to reach it.
    """
    admitted = Tokens() if tokens is None else tokens

    def guard(request: Request) -> None:
        if not admitted.admit(request.headers.get("authorization")):
            raise _Problem(401, "unauthorized", "a token is needed: `Authorization: Bearer TOKEN`.")

    app = FastAPI(
        title="rlmix", version=importlib.metadata.version("rlmix"), docs_url=None, redoc_url=None, openapi_url=None
    )
    # Which version a run is pinned to never changes, so it is read once.
    pinned = functools.lru_cache(_RUNS_KEPT)(lambda project, run: storage.run(project, run).version)
    service = _Service(storage, Policies(storage), pinned)
    app.include_router(_health(storage, auth=bool(admitted)))
    guarded = APIRouter(prefix="/v1", dependencies=[Depends(guard)])
    for routes in (_general, _blobs, _policies, _runs, _decisions):
        routes(guarded, service)
    guarded.add_api_route("/openapi.json", lambda: app.openapi(), methods=["GET"], include_in_schema=False)
    app.include_router(guarded)
    _explain_errors(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    return app


def _health(storage: AbstractStorage, *, auth: bool) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    def alive() -> Response:
        """Say that the process answers."""
        return _json(200, {"status": "alive"})

    @router.get("/readyz")
    def ready() -> Response:
        """Say that the storage can be written; 503 where it cannot."""
        storage.check()
        return _json(200, {"status": "ready", "auth": "on" if auth else "off"})

    return router


def _general(router: APIRouter, service: _Service) -> None:
    @router.get("/info")
    def info() -> Response:
        """Return versions and limits."""
        limits = {"json_bytes": JSON_BYTES, "blob_bytes": BLOB_BYTES, "page": PAGE, "observation": schemas.LARGEST}
        return _json(200, {"rlmix": importlib.metadata.version("rlmix"), "api": 1, "limits": limits})

    @router.get("/projects")
    def projects() -> Response:
        """Return the names of all projects."""
        return _json(200, {"projects": list(service.storage.projects())})

    @router.put("/projects/{project}")
    def create_project(request: Request, project: Project) -> Response:
        """Make a project, or say that it is there."""
        return _written(request, {"project": project}, new=service.storage.create_project(project))


def _blobs(router: APIRouter, service: _Service) -> None:
    @router.put("/blobs/sha256/{digest}")
    async def put_blob(request: Request, digest: Digest) -> Response:
        """Keep the bytes of the body, whose SHA-256 the address names."""
        data = await request.body()
        if hashlib.sha256(data).hexdigest() != digest:
            raise _Problem(422, "digest-mismatch", "the body has another SHA-256 than the address names.")
        _, new = await run_in_threadpool(service.storage.put_blob, data)
        return _written(request, {"digest": digest, "size": len(data)}, new=new)

    @router.get("/blobs/sha256/{digest}")
    def blob(digest: Digest) -> Response:
        """Return the bytes."""
        headers = {"ETag": f'"{digest}"', "X-Content-Type-Options": "nosniff"}
        return Response(service.storage.blob(digest), media_type="application/octet-stream", headers=headers)


def _policies(router: APIRouter, service: _Service) -> None:
    base = "/projects/{project}/policies/{policy}"

    @router.post(f"{base}/versions")
    def add_version(request: Request, project: Project, policy: PolicyName, body: schemas.VersionRequest) -> Response:
        """Add a version, of blobs that form a policy; the same document gives the same version."""
        service.policies.get(body.document, body.tensors)
        found, new = service.storage.add_version(project, policy, body.document, body.tensors)
        return _written(request, schemas.of_version(found), new=new, at=f"{request.url.path}/{found.number}")

    @router.get(f"{base}/versions")
    def versions(
        project: Project, policy: PolicyName, after: Annotated[int, Query(ge=0, lt=2**31)] = 0, limit: Limit = 100
    ) -> Response:
        """Return versions in order."""
        found = service.storage.versions(project, policy, after, limit)
        return _json(200, {"versions": [schemas.of_version(version) for version in found]})

    @router.get(f"{base}/versions/{{number}}")
    def version(project: Project, policy: PolicyName, number: Number) -> Response:
        """Return a version."""
        return _json(200, schemas.of_version(service.storage.version(project, policy, number)))

    @router.put(f"{base}/aliases/{{alias}}")
    def set_alias(project: Project, policy: PolicyName, alias: AliasName, body: schemas.AliasRequest) -> Response:
        """Let an alias lead to a version, if nobody else has set it since (409)."""
        found = service.storage.set_alias(project, policy, alias, body.version, body.revision)
        return _json(200, schemas.of_alias(found))

    @router.get(f"{base}/aliases/{{alias}}")
    def get_alias(project: Project, policy: PolicyName, alias: AliasName) -> Response:
        """Return where an alias leads."""
        return _json(200, schemas.of_alias(service.storage.alias(project, policy, alias)))


def _runs(router: APIRouter, service: _Service) -> None:
    base = "/projects/{project}/runs"

    @router.get(base)
    def runs(
        project: Project, after: Annotated[str, Query(pattern=f"{schemas.NAME}|^$")] = "", limit: Limit = 100
    ) -> Response:
        """Return runs by name."""
        return _json(200, {"runs": [schemas.of_run(run) for run in service.storage.runs(project, after, limit)]})

    @router.put(f"{base}/{{run}}")
    def create_run(request: Request, project: Project, run: RunName, body: schemas.RunRequest) -> Response:
        """Begin a run, pinned to the version that the alias leads to now, or return it."""
        found, new = service.storage.create_run(project, run, body.policy, body.alias, body.spec)
        return _written(request, schemas.of_run(found), new=new)

    @router.get(f"{base}/{{run}}")
    def get_run(project: Project, run: RunName) -> Response:
        """Return a run."""
        return _json(200, schemas.of_run(service.storage.run(project, run)))

    @router.post(f"{base}/{{run}}:finish")
    def finish(project: Project, run: RunName) -> Response:
        """End a run; a second time changes nothing."""
        return _json(200, schemas.of_run(service.storage.finish_run(project, run)))


def _decisions(router: APIRouter, service: _Service) -> None:
    base = "/projects/{project}/runs/{run}"

    @router.put(f"{base}/decisions/{{seq}}")
    def put_decision(
        request: Request, project: Project, run: RunName, seq: Seq, body: schemas.DecisionRequest
    ) -> Response:
        """Take a decision, or return the one that was taken: the same bytes."""
        version = service.pinned(project, run)
        stored, new = service.storage.put_decision(project, run, _answer(service, version, seq, body))
        return _written(request, schemas.of_decision(stored, version), new=new)

    @router.get(f"{base}/decisions/{{seq}}")
    def decision(project: Project, run: RunName, seq: Seq) -> Response:
        """Return a decision."""
        stored = service.storage.decision(project, run, seq)
        return _json(200, schemas.of_decision(stored, service.pinned(project, run)))

    @router.get(f"{base}/decisions")
    def decisions(
        project: Project,
        run: RunName,
        after: Annotated[int, Query(ge=-1, lt=schemas.SEQ_END)] = -1,
        limit: Limit = 100,
    ) -> Response:
        """Return decisions in order."""
        version = service.pinned(project, run)
        found = service.storage.decisions(project, run, after, limit)
        return _json(200, {"decisions": [schemas.of_decision(record, version) for record in found]})

    @router.put(f"{base}/feedback/{{seq}}")
    def put_feedback(
        request: Request, project: Project, run: RunName, seq: Seq, body: schemas.FeedbackRequest
    ) -> Response:
        """Keep what came of a decision."""
        given = Feedback(seq=seq, values=body.values, received=now())
        stored, new = service.storage.put_feedback(project, run, given)
        return _written(request, schemas.of_feedback(stored), new=new)

    @router.get(f"{base}/feedback/{{seq}}")
    def feedback(project: Project, run: RunName, seq: Seq) -> Response:
        """Return what came of a decision."""
        return _json(200, schemas.of_feedback(service.storage.feedback(project, run, seq)))


def _answer(service: _Service, version: PolicyVersion, seq: int, body: schemas.DecisionRequest) -> DecisionRecord:
    """Return what is to be stored for a request: the policy's answer, or what the client did."""
    if body.policy != version.document:
        raise _Problem(409, "other-policy", f"the run is pinned to the policy {version.document}.")
    policy = service.policies.get(version.document, version.tensors)
    observation, allowed = _question(policy, body)
    explore = None if body.explore is None else int(body.explore, 16)
    choice = decide(policy, torch.from_numpy(observation), allowed, explore)
    origin: Origin = "server"
    entry, decision, weighed = choice.entry, choice.decision, True
    if body.taken is not None:
        origin, entry, decision = body.taken.origin, body.taken.entry, _carried_out(policy, body.taken, allowed)
        # A held decision is no answer to this question, so the policy gave it no probability.
        weighed = origin == "snapshot" and (entry, decision) == (choice.entry, choice.decision)
    return DecisionRecord(
        seq=seq,
        step=body.step,
        observation=observation.tobytes(),
        allowed=allowed,
        explore=explore,
        origin=origin,
        entry=entry,
        decision=json.dumps(decision.to_json(), sort_keys=True),
        probability=choice.probability if weighed else None,
        value=choice.value if weighed else None,
        issued=now(),
    )


def _question(
    policy: Learned, body: schemas.DecisionRequest
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], tuple[int, ...] | None]:
    """Return the observation and the entries that may be chosen, checked against the policy."""
    expected = len(policy.policy.observation_names)
    if len(body.observation) != expected:
        raise _Problem(422, "observation", f"the policy reads {expected} numbers, got {len(body.observation)}.")
    allowed = None if body.allowed is None else tuple(body.allowed)
    if allowed is not None and (list(allowed) != sorted(set(allowed)) or allowed[-1] >= len(policy.names)):
        raise _Problem(422, "allowed", f"`allowed` must be ascending and below {len(policy.names)}.")
    return np.asarray(body.observation, dtype="<f4"), allowed


def _carried_out(policy: Learned, taken: schemas.Taken, allowed: tuple[int, ...] | None) -> Decision:
    """Return the decision that a client took, checked against the policy."""
    if taken.entry >= len(policy.names) or (allowed is not None and taken.entry not in allowed):
        raise _Problem(422, "taken", f"entry {taken.entry} cannot be chosen here.")
    try:
        decision = Decision.from_json(taken.decision)
        decision.build()
    except RlmixError as error:
        raise _Problem(422, "taken", str(error)) from error
    return decision


def _json(status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    kind = "application/problem+json" if status >= 400 else "application/json"
    more = {"X-Content-Type-Options": "nosniff", **(headers or {})}
    return Response(text, status_code=status, media_type=kind, headers=more)


def _written(request: Request, content: Mapping[str, Any], *, new: bool, at: str | None = None) -> Response:
    """Answer a write: 201 and where it is, or 200 if it was there before."""
    return _json(201 if new else 200, content, {"Location": at or request.url.path} if new else None)


# Of an error's classes the first that is found here counts.
_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (MissingError, 404, "not-found"),
    (ConflictError, 409, "conflict"),
    (StorageError, 503, "storage"),
    (PolicyError, 422, "policy"),
)


def _explain_errors(app: FastAPI) -> None:
    """Answer every error with a problem."""

    def answer(status: int, title: str) -> Callable[[Request, Any], Response]:
        headers = {"Retry-After": "1"} if status == 503 else None
        return lambda request, error: _json(status, problem(status, title, str(error)), headers)

    for kind, status, title in _STATUS:
        app.add_exception_handler(kind, answer(status, title))

    @app.exception_handler(_Problem)
    async def _own(request: Request, error: _Problem) -> Response:
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
        return _json(error.status, problem(error.status, error.title, error.detail), headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        # What was sent is left out: it may be long, and it may be no number that JSON can hold.
        places = [{"at": ".".join(map(str, one["loc"])), "problem": one["msg"]} for one in error.errors()[:20]]
        detail = "; ".join(f"{place['at']}: {place['problem']}" for place in places[:3])
        return _json(422, problem(422, "invalid", detail, errors=places))

    @app.exception_handler(StarletteHTTPException)
    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: StarletteHTTPException) -> Response:
        content = problem(error.status_code, "http", str(error.detail))
        return _json(error.status_code, content, error.headers)
