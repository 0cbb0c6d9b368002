"""The resources under /v1. Clients choose their names, and every write can be repeated."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar, final

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor

from rlmix.errors import RlmixError
from rlmix.service import schemas
from rlmix.service.asking import answer_of, record_of
from rlmix.service.front import BLOB_BYTES, JSON_BYTES
from rlmix.service.guard import Buckets, Caller
from rlmix.service.lean import LeanRoute
from rlmix.service.metrics import Metrics
from rlmix.service.policies import Policies
from rlmix.service.records import DecisionRecord, Feedback, PolicyVersion, Scope
from rlmix.service.replies import PROBLEMS, ProblemError, answers, as_problem, problem, reply, written
from rlmix.service.storage.abstract import PAGE, AbstractStorage
from rlmix.service.storage.sql import now

_P = ParamSpec("_P")
_T = TypeVar("_T")

_RUNS_KEPT = 4096
# Of runs with all that they have done, in one answer.
_ENDED = 50


@final
class _Segment(Convertor[str]):
    """Part of an address before a verb, as in `runs/RUN:end`; otherwise `PUT runs/RUN:end` would be one of a run."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        """Return what stands there."""
        return value

    def to_string(self, value: str) -> str:
        """Return it as it is."""
        return value


register_url_convertor("segment", _Segment())

Project = Annotated[str, Path(pattern=schemas.NAME)]
PolicyName = Annotated[str, Path(pattern=schemas.NAME)]
AliasName = Annotated[str, Path(pattern=schemas.NAME)]
RunName = Annotated[str, Path(pattern=schemas.NAME)]
Digest = Annotated[str, Path(pattern=schemas.DIGEST)]
Seq = Annotated[int, Path(ge=0, lt=schemas.SEQ_END)]
Number = Annotated[int, Path(ge=1, lt=2**31)]
Limit = Annotated[int, Query(ge=1, le=PAGE)]
AfterSeq = Annotated[int, Query(ge=-1, lt=schemas.SEQ_END)]


@final
@dataclass(frozen=True, slots=True)
class Needs:
    """Lets a request pass whose token has a scope, in the project that the address names.

    Args:
        scope: the scope.
        whole: whether it must be a token for all projects.
    """

    scope: Scope
    whole: bool = False

    async def __call__(self, request: Request) -> None:
        """Look at who asks.

        Raises:
            ProblemError: 403.
        """
        caller = caller_of(request)
        if not caller.may(self.scope):
            raise ProblemError(403, "forbidden", f"the token lacks the scope `{self.scope}`.")
        project = request.path_params.get("project")
        if (self.whole and caller.project is not None) or (project is not None and not caller.sees(project)):
            raise ProblemError(403, "forbidden", f"the token is for the project `{caller.project}` alone.")


READ, DECIDE, PUBLISH = (Depends(Needs(scope)) for scope in ("read", "decide", "publish"))
READ_ALL = Depends(Needs("read", whole=True))
MAKE_PROJECTS = Depends(Needs("admin"))


def caller_of(request: Request) -> Caller:
    """Return who asks, as the front found out."""
    caller: Caller = request.state.caller
    return caller


@final
class Service:
    """What the routes share.

    Args:
        storage: what is kept.
        buckets: how often callers may ask.
        metrics: told of decisions.
    """

    def __init__(self, storage: AbstractStorage, buckets: Buckets, metrics: Metrics) -> None:
        self.storage, self.buckets, self.metrics = storage, buckets, metrics
        self.policies = Policies(storage)
        # Which version a run is pinned to never changes, so it is read once.
        self.pinned: Callable[[str, str], PolicyVersion] = functools.lru_cache(_RUNS_KEPT)(
            lambda project, run: storage.run(project, run).version
        )

    def decided(self, project: str, run: str, seq: int, body: schemas.DecisionRequest) -> tuple[DecisionRecord, bool]:
        """Store the answer to a question, or the one that the client took; say whether it is new."""
        given = record_of(self.policies, self.pinned(project, run), seq, body)
        stored, new = self.storage.put_decision(project, run, given)
        if new:
            self.metrics.decided(stored.origin)
        return stored, new

    def reported(self, project: str, run: str, seq: int, body: schemas.FeedbackRequest) -> tuple[Feedback, bool]:
        """Store what came of a decision; say whether it is new."""
        given = Feedback(seq=seq, values=body.values, received=now())
        return self.storage.put_feedback(project, run, given, body.attempt)

    async def soon(self, function: Callable[_P, _T], *given: _P.args, **named: _P.kwargs) -> _T:
        """Call what writes a little: here if that is quicker than waking a thread for it, or else in a thread."""
        if self.storage.quick():
            return function(*given, **named)
        return await run_in_threadpool(function, *given, **named)


def api(service: Service) -> APIRouter:
    """Return all routes under /v1."""
    router = APIRouter(prefix="/v1", responses=PROBLEMS)
    # A request is held against one route after the other, so what is asked most comes first.
    for routes in (_decisions, _feedback, _batches, _runs, _general, _blobs, _policies):
        routes(router, service)
    return router


def _general(router: APIRouter, service: Service) -> None:
    @router.get("/info", dependencies=[READ], responses=answers(schemas.InfoReply))
    def info() -> Response:
        """Return versions and limits."""
        limits = {
            "json_bytes": JSON_BYTES,
            "blob_bytes": BLOB_BYTES,
            "page": PAGE,
            "batch": schemas.BATCH,
            "observation": schemas.LARGEST,
        }
        return reply(200, {"rlmix": importlib.metadata.version("rlmix"), "api": 1, "limits": limits})

    @router.get("/projects", dependencies=[READ], responses=answers(schemas.ProjectsReply))
    def projects(request: Request) -> Response:
        """Return the names of all projects that the token opens."""
        caller = caller_of(request)
        return reply(200, {"projects": [name for name in service.storage.projects() if caller.sees(name)]})

    @router.put("/projects/{project}", dependencies=[MAKE_PROJECTS], responses=answers(schemas.ProjectReply, 200, 201))
    def create_project(request: Request, project: Project) -> Response:
        """Make a project, or say that it is there."""
        return written(request, {"project": project}, new=service.storage.create_project(project))


_BYTES = {"schema": {"type": "string", "format": "binary"}}


def _blobs(router: APIRouter, service: Service) -> None:
    body = {"requestBody": {"required": True, "content": {"application/octet-stream": _BYTES}}}

    @router.put(
        "/blobs/sha256/{digest}",
        dependencies=[PUBLISH],
        responses=answers(schemas.BlobReply, 200, 201),
        openapi_extra=body,
    )
    async def put_blob(request: Request, digest: Digest) -> Response:
        """Keep the bytes of the body, whose SHA-256 the address names."""
        data = await request.body()
        if hashlib.sha256(data).hexdigest() != digest:
            raise ProblemError(409, "digest-mismatch", "the body has another SHA-256 than the address names.")
        _, new = await run_in_threadpool(service.storage.put_blob, data)
        return written(request, {"digest": digest, "size": len(data)}, new=new)

    @router.get(
        "/blobs/sha256/{digest}",
        dependencies=[READ],
        response_class=Response,
        responses={
            200: {"description": "The bytes.", "content": {"application/octet-stream": _BYTES}},
            304: {"description": "They are what `If-None-Match` says."},
        },
    )
    def blob(request: Request, digest: Digest) -> Response:
        """Return the bytes."""
        data = service.storage.blob(digest)
        headers = {"ETag": f'"{digest}"', "Cache-Control": "private, max-age=31536000, immutable"}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if headers["ETag"] in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type="application/octet-stream", headers=headers)


def _policies(router: APIRouter, service: Service) -> None:
    project_of = "/projects/{project}/policies"
    base = f"{project_of}/{{policy}}"

    @router.get(project_of, dependencies=[READ], responses=answers(schemas.PoliciesReply))
    def policies(project: Project) -> Response:
        """Return the names of all policies."""
        return reply(200, {"policies": list(service.storage.policies(project))})

    @router.post(f"{base}/versions", dependencies=[PUBLISH], responses=answers(schemas.VersionReply, 200, 201))
    def add_version(request: Request, project: Project, policy: PolicyName, body: schemas.VersionRequest) -> Response:
        """Add a version, of blobs that form a policy; the same document gives the same version."""
        service.policies.get(body.document, body.tensors)
        found, new = service.storage.add_version(project, policy, body.document, body.tensors)
        return written(request, schemas.of_version(found), new=new, at=f"{request.scope['path']}/{found.number}")

    @router.get(f"{base}/versions", dependencies=[READ], responses=answers(schemas.VersionsReply))
    def versions(
        project: Project, policy: PolicyName, after: Annotated[int, Query(ge=0, lt=2**31)] = 0, limit: Limit = 100
    ) -> Response:
        """Return versions in order."""
        found = service.storage.versions(project, policy, after, limit)
        return reply(200, {"versions": [schemas.of_version(version) for version in found]})

    @router.get(f"{base}/versions/{{number:segment}}", dependencies=[READ], responses=answers(schemas.VersionReply))
    def version(project: Project, policy: PolicyName, number: Number) -> Response:
        """Return a version."""
        return reply(200, schemas.of_version(service.storage.version(project, policy, number)))

    @router.post(
        f"{base}/versions/{{number:segment}}:decide", dependencies=[DECIDE], responses=answers(schemas.ChoiceReply)
    )
    def what_if(project: Project, policy: PolicyName, number: Number, body: schemas.Question) -> Response:
        """Say what a version would answer; nothing is stored."""
        found = service.storage.version(project, policy, number)
        choice = answer_of(service.policies.get(found.document, found.tensors), body)
        return reply(200, schemas.of_choice(choice))

    @router.get(f"{base}/aliases", dependencies=[READ], responses=answers(schemas.AliasesReply))
    def aliases(project: Project, policy: PolicyName) -> Response:
        """Return all aliases, by name."""
        return reply(200, {"aliases": [schemas.of_alias(one) for one in service.storage.aliases(project, policy)]})

    @router.put(f"{base}/aliases/{{alias}}", dependencies=[PUBLISH], responses=answers(schemas.AliasReply))
    def set_alias(project: Project, policy: PolicyName, alias: AliasName, body: schemas.AliasRequest) -> Response:
        """Let an alias lead to a version, if nobody else has set it since (409)."""
        found = service.storage.set_alias(project, policy, alias, body.version, body.revision)
        return reply(200, schemas.of_alias(found))

    @router.get(f"{base}/aliases/{{alias}}", dependencies=[READ], responses=answers(schemas.AliasReply))
    def get_alias(project: Project, policy: PolicyName, alias: AliasName) -> Response:
        """Return where an alias leads."""
        return reply(200, schemas.of_alias(service.storage.alias(project, policy, alias)))

    @router.get(f"{base}/ended", dependencies=[READ], responses=answers(schemas.EndedPage))
    def ended(
        project: Project,
        policy: PolicyName,
        after: Annotated[int, Query(ge=0, lt=2**31, description="the last cursor that was read; 0 for none")] = 0,
        limit: Annotated[int, Query(ge=1, le=_ENDED)] = 10,
    ) -> Response:
        """Return runs of the policy in the order in which they ended, with decisions and feedback."""
        found = service.storage.ended(project, policy, after, limit)
        return reply(200, {"ended": [schemas.of_ended(one) for one in found]})


def _runs(router: APIRouter, service: Service) -> None:
    base = "/projects/{project}/runs"

    @router.get(base, dependencies=[READ], responses=answers(schemas.RunsReply))
    def runs(
        project: Project, after: Annotated[str, Query(pattern=f"{schemas.NAME}|^$")] = "", limit: Limit = 100
    ) -> Response:
        """Return runs by name."""
        return reply(200, {"runs": [schemas.of_run(run) for run in service.storage.runs(project, after, limit)]})

    @router.put(f"{base}/{{run:segment}}", dependencies=[DECIDE], responses=answers(schemas.RunReply, 200, 201))
    def create_run(request: Request, project: Project, run: RunName, body: schemas.RunRequest) -> Response:
        """Begin a run, pinned to the version that the client has, or return it."""
        found, new = service.storage.create_run(project, run, body.policy, body.alias, body.spec, body.document)
        return written(request, schemas.of_run(found), new=new)

    @router.get(f"{base}/{{run:segment}}", dependencies=[READ], responses=answers(schemas.RunReply))
    def get_run(project: Project, run: RunName) -> Response:
        """Return a run."""
        return reply(200, schemas.of_run(service.storage.run(project, run)))

    @router.post(f"{base}/{{run:segment}}:claim", dependencies=[DECIDE], responses=answers(schemas.RunReply))
    def claim(project: Project, run: RunName) -> Response:
        """Go on with a run; whoever did so before may not write any more."""
        return reply(200, schemas.of_run(service.storage.claim_run(project, run)))

    @router.post(f"{base}/{{run:segment}}:end", dependencies=[DECIDE], responses=answers(schemas.RunReply))
    def end(project: Project, run: RunName, body: schemas.EndRequest) -> Response:
        """End a run; a second time changes nothing."""
        return reply(200, schemas.of_run(service.storage.end_run(project, run, body.state, body.attempt)))


def _put(router: APIRouter, path: str, endpoint: Callable[..., Any], model: Any) -> None:
    """Add one of the two routes that every decision needs."""
    router.add_api_route(
        path,
        endpoint,
        methods=["PUT"],
        dependencies=[DECIDE],
        responses=answers(model, 200, 201),
        route_class_override=LeanRoute,
    )


def _decisions(router: APIRouter, service: Service) -> None:
    base = "/projects/{project}/runs/{run:segment}/decisions"

    async def put_decision(
        request: Request, project: Project, run: RunName, seq: Seq, body: schemas.DecisionRequest
    ) -> Response:
        """Take a decision, or return the one that was taken: the same bytes."""
        stored, new = await service.soon(service.decided, project, run, seq, body)
        return written(request, schemas.of_decision(stored, service.pinned(project, run)), new=new)

    _put(router, f"{base}/{{seq}}", put_decision, schemas.DecisionReply)

    @router.get(f"{base}/{{seq}}", dependencies=[READ], responses=answers(schemas.DecisionReply))
    def decision(project: Project, run: RunName, seq: Seq) -> Response:
        """Return a decision."""
        stored = service.storage.decision(project, run, seq)
        return reply(200, schemas.of_decision(stored, service.pinned(project, run)))

    @router.get(base, dependencies=[READ], responses=answers(schemas.DecisionsReply))
    def decisions(project: Project, run: RunName, after: AfterSeq = -1, limit: Limit = 100) -> Response:
        """Return decisions in order."""
        version = service.pinned(project, run)
        found = service.storage.decisions(project, run, after, limit)
        return reply(200, {"decisions": [schemas.of_decision(record, version) for record in found]})


def _feedback(router: APIRouter, service: Service) -> None:
    base = "/projects/{project}/runs/{run:segment}/feedback"

    async def put_feedback(
        request: Request, project: Project, run: RunName, seq: Seq, body: schemas.FeedbackRequest
    ) -> Response:
        """Keep what came of a decision."""
        stored, new = await service.soon(service.reported, project, run, seq, body)
        return written(request, schemas.of_feedback(stored), new=new)

    _put(router, f"{base}/{{seq}}", put_feedback, schemas.FeedbackReply)

    @router.get(f"{base}/{{seq}}", dependencies=[READ], responses=answers(schemas.FeedbackReply))
    def feedback(project: Project, run: RunName, seq: Seq) -> Response:
        """Return what came of a decision."""
        return reply(200, schemas.of_feedback(service.storage.feedback(project, run, seq)))

    @router.get(base, dependencies=[READ], responses=answers(schemas.FeedbacksReply))
    def feedbacks(project: Project, run: RunName, after: AfterSeq = -1, limit: Limit = 100) -> Response:
        """Return what came of decisions, in their order."""
        found = service.storage.feedbacks(project, run, after, limit)
        return reply(200, {"feedback": [schemas.of_feedback(one) for one in found]})


def _batches(router: APIRouter, service: Service) -> None:
    base = "/projects/{project}/runs/{run:segment}"

    @router.post(f"{base}/decisions:batch", dependencies=[DECIDE], responses=answers(schemas.DecisionOutcomes))
    def put_decisions(request: Request, project: Project, run: RunName, body: schemas.DecisionBatch) -> Response:
        """Take or keep several decisions, one after the other; what fails leaves the others alone."""
        version = service.pinned(project, run)
        service.buckets.owe(caller_of(request).key, len(body.items) - 1)
        results: list[schemas.DecisionOutcome | schemas.Failure] = []
        for item in body.items:
            try:
                stored, new = service.decided(project, run, item.seq, item)
                told = schemas.of_decision(stored, version)
                results.append({"seq": item.seq, "status": 201 if new else 200, "decision": told})
            except (RlmixError, ProblemError) as error:
                results.append(_failed(item.seq, error))
        return reply(200, {"results": results})

    @router.post(f"{base}/feedback:batch", dependencies=[DECIDE], responses=answers(schemas.FeedbackOutcomes))
    def put_feedbacks(request: Request, project: Project, run: RunName, body: schemas.FeedbackBatch) -> Response:
        """Keep what came of several decisions; what fails leaves the others alone."""
        service.pinned(project, run)
        service.buckets.owe(caller_of(request).key, len(body.items) - 1)
        results: list[schemas.FeedbackOutcome | schemas.Failure] = []
        for item in body.items:
            try:
                stored, new = service.reported(project, run, item.seq, item)
                told = schemas.of_feedback(stored)
                results.append({"seq": item.seq, "status": 201 if new else 200, "feedback": told})
            except (RlmixError, ProblemError) as error:
                results.append(_failed(item.seq, error))
        return reply(200, {"results": results})


def _failed(seq: int, error: Exception) -> schemas.Failure:
    """Return what is said of an item that failed.

    Raises:
        Exception: this one, if it is a fault of the service.
    """
    found = as_problem(error)
    if found is None:
        raise error
    return {"seq": seq, "status": found.status, "problem": problem(found.status, found.title, found.detail)}
