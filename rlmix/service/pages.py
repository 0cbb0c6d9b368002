"""The pages: what the service knows, to look at. They change nothing, and need no script and nothing from elsewhere."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, final

from fastapi import APIRouter, Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlmix.errors import MissingError
from rlmix.policy.decision import Decision
from rlmix.policy.limits import FACTS
from rlmix.service.policies import Policies
from rlmix.service.records import DecisionRecord, Feedback, PolicyVersion, Run
from rlmix.service.routes import READ, caller_of
from rlmix.service.storage.abstract import PAGE, AbstractStorage
from rlmix.service.storage.sql import now
from rlmix.service.timeline import LEFT, RIGHT, WIDTH, over_runs, timeline, until

T = TypeVar("T")
Answer: TypeAlias = "tuple[str, dict[str, Any]]"

_TEMPLATES = Path(__file__).parent / "templates"
_RUNS = 100
_VERSIONS = 200
_DECISIONS = 2 * PAGE
# Among how many of the newest decisions the last feedback is looked for.
_LATEST = 20
_POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def pages(storage: AbstractStorage, policies: Policies, since: int) -> APIRouter:
    """Return the routes of the pages.

    Args:
        storage: what they show.
        policies: of that storage.
        since: when the service began to listen, microseconds since 1970.
    """
    router = APIRouter(include_in_schema=False, dependencies=[READ])
    views = Views(storage, policies, since)
    writer = _writer()
    style = (_TEMPLATES / "style.css").read_bytes()

    def page(path: str, view: Callable[..., Answer]) -> None:
        @functools.wraps(view)
        def shown(**given: Any) -> Response:
            try:
                name, values = view(**given)
                status = 200
            except MissingError as error:
                name, values, status = "missing.html", {"detail": str(error)}, 404
            text = writer.get_template(name).render(**values)
            return Response(
                text, status_code=status, media_type="text/html", headers={"Content-Security-Policy": _POLICY}
            )

        router.add_api_route(path, shown, methods=["GET"], response_class=Response, response_model=None)

    page("/", views.projects)
    page("/projects/{project}", views.project)
    page("/projects/{project}/runs", views.runs)
    page("/projects/{project}/runs/{run}", views.run)
    page("/projects/{project}/policies/{policy}", views.policy)
    page("/projects/{project}/policies/{policy}/versions/{number}", views.version)

    @router.get("/style.css")
    def style_sheet() -> Response:
        return Response(style, media_type="text/css")

    return router


def _writer() -> Environment:
    """Return what writes pages: everything that it is given is text, never markup."""
    writer = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    writer.filters |= {"time": _time, "number": _number, "values": _values, "plain": _plain}
    writer.globals |= {"rlmix": importlib.metadata.version("rlmix"), "WIDTH": WIDTH, "LEFT": LEFT, "RIGHT": RIGHT}
    return writer


@final
class Views:
    """What each page shows: the name of its template, and the values in it.

    Args:
        storage: what is shown.
        policies: of that storage.
        since: when the service began to listen, microseconds since 1970.
    """

    def __init__(self, storage: AbstractStorage, policies: Policies, since: int) -> None:
        self._storage, self._policies, self._since = storage, policies, since

    def projects(self, request: Request) -> Answer:
        """Return all projects that the token opens."""
        caller = caller_of(request)
        rows = [
            {
                "name": name,
                "policies": len(self._storage.policies(name)),
                "newest": next(iter(self._storage.newest_runs(name, 1)), None),
            }
            for name in self._storage.projects()
            if caller.sees(name)
        ]
        census = self._storage.census(now(), self._since) if caller.project is None else {}
        return "projects.html", {"rows": rows, "census": census}

    def project(self, project: str) -> Answer:
        """Return the policies and the newest runs of a project."""
        policies = [
            {"name": name, "aliases": self._storage.aliases(project, name)} for name in self._storage.policies(project)
        ]
        newest = self._storage.newest_runs(project, _RUNS)
        rows = self._rows(project, newest)
        return "project.html", {"project": project, "policies": policies, "rows": rows, "more": len(newest) == _RUNS}

    def runs(self, project: str, after: str = "") -> Answer:
        """Return a page of the runs of a project, by name."""
        found = self._storage.runs(project, after, _RUNS)
        following = found[-1].name if len(found) == _RUNS else None
        return "runs.html", {
            "project": project, "rows": self._rows(project, found), "after": after, "following": following,
        }  # fmt: skip

    def run(self, project: str, run: str) -> Answer:
        """Return a run: what it is, and what happened in it."""
        found = self._storage.run(project, run)
        after = max(-1, found.next_seq - _DECISIONS - 1)
        decisions = list(_all(lambda seq: self._storage.decisions(project, run, seq, PAGE), after))
        feedback = list(_all(lambda seq: self._storage.feedbacks(project, run, seq, PAGE), after))
        policy = self._policies.get(found.version.document, found.version.tensors)
        reported = {one.seq: one.values for one in feedback}
        rows = [
            {
                "record": record,
                "end": end,
                "entry": policy.names[record.entry],
                "text": Decision.from_json(json.loads(record.decision)).text,
                "values": reported.get(record.seq, {}),
            }
            for record, end in zip(decisions, until(found, decisions), strict=True)
        ]
        return "run.html", {
            "project": project,
            "run": found,
            "phase": found.phase(now(), self._since),
            "origins": self._storage.origins(project, [run])[run],
            "labels": {name.removeprefix("label/"): value for name, value in found.spec.items() if value is not None},
            "rows": rows,
            "left_out": after + 1,
            "drawing": timeline(found, decisions, feedback, policy.names),
        }

    def policy(self, project: str, policy: str) -> Answer:
        """Return the versions and aliases of a policy, and what its newest runs reported."""
        versions: list[PolicyVersion] = list(
            _all(lambda number: self._storage.versions(project, policy, number, PAGE), 0)
        )
        aliases = self._storage.aliases(project, policy)
        leading: dict[int, list[str]] = {}
        for alias in aliases:
            leading.setdefault(alias.version.number, []).append(alias.name)
        # Of runs that go on, the last feedback is from the middle.
        newest = [
            run
            for run in self._storage.newest_runs(project, PAGE)
            if run.version.policy == policy and run.state == "finished"
        ]
        reported = [(run, self._last(project, run)) for run in reversed(newest)]
        return "policy.html", {
            "project": project,
            "policy": policy,
            "versions": versions[: -_VERSIONS - 1 : -1],
            "count": len(versions),
            "leading": leading,
            "aliases": aliases,
            "learner": self._storage.learner(project, policy),
            "reported": [(run, one) for run, one in reversed(reported) if one is not None][:_RUNS],
            "drawing": over_runs(reported),
        }

    def version(self, project: str, policy: str, number: str) -> Answer:
        """Return a version with its card."""
        if not number.isascii() or not number.isdigit() or len(number) > 9:
            raise MissingError(f"the policy `{policy}` has no version `{number}`.")
        found = self._storage.version(project, policy, int(number))
        learned = self._policies.get(found.document, found.tensors).policy
        card = dict(learned.card)
        results, limits = card.pop("results", None), card.pop("limits", None)
        ranges = zip(learned.observation_names, learned.low.tolist(), learned.high.tolist(), strict=True)
        return "version.html", {
            "project": project,
            "version": found,
            "aliases": [one.name for one in self._storage.aliases(project, policy) if one.version == found],
            "policy": learned,
            "card": card,
            "results": results,
            "limits": limits,
            "facts": FACTS,
            "entries": list(zip(learned.catalogue.names, learned.catalogue.decisions, strict=True)),
            "observation": list(ranges),
        }

    def _rows(self, project: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Return what a table of runs says of each."""
        origins = self._storage.origins(project, [run.name for run in runs])
        moment = now()
        return [
            {
                "run": run,
                "phase": run.phase(moment, self._since),
                "origins": origins[run.name],
                "last": self._last(project, run),
            }
            for run in runs
        ]

    def _last(self, project: str, run: Run) -> Feedback | None:
        """Return the newest feedback of a run, if one of its newest decisions has any."""
        found = self._storage.feedbacks(project, run.name, max(-1, run.next_seq - _LATEST - 1), _LATEST)
        return found[-1] if found else None


def _all(read: Callable[[int], Sequence[T]], after: int) -> Iterator[T]:
    """Yield what comes in pages, each of which begins after the number of the last of the one before."""
    while found := read(after):
        yield from found
        last = found[-1]
        after = last.number if isinstance(last, PolicyVersion) else _seq(last)
        if len(found) < PAGE:
            return


def _seq(last: object) -> int:
    if not isinstance(last, DecisionRecord | Feedback):
        raise TypeError(f"{type(last).__name__} has no number.")
    return last.seq


def _time(microseconds: int) -> str:
    """Return a time as people read it, in UTC, to the second."""
    return datetime.fromtimestamp(microseconds // 1_000_000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _values(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    """Return what a card says, as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_plain(one)}" for name, one in value.items())
    return json.dumps(value)
