"""The storage contract over client, server and storage: what a storage promises, the service in front of it keeps.

The server is real, on a real socket, and so is everything in it but for what the contract gives as data and the service
makes by itself. Each request carries that in a header, and these say it instead:

- `asking.decide`: what a policy answers, which is pure computation;
- `asking.now` and `routes.now`: the times of a decision and of feedback;
- `policies._read`: that a blob is a policy, since those of the contract are none.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("psycopg", reason="the extra `serve` is not installed")

from rlmix.errors import ConflictError, FencedError, MissingError
from rlmix.policy.decision import Decision
from rlmix.service import asking, policies, routes
from rlmix.service.app import create_app
from rlmix.service.decide import Choice
from rlmix.service.records import Alias, DecisionRecord, Ended, Feedback, PolicyVersion, Run, RunState, Spec
from rlmix.service.storage.opening import MEMORY, open_storage
from rlmix.testing import ServedContract

ERRORS = {(404, "not-found"): MissingError, (409, "fenced"): FencedError, (409, "conflict"): ConflictError}
# What the contract's records were asked of: four entries, and five numbers to read.
POLICY = SimpleNamespace(names=tuple("abcd"), policy=SimpleNamespace(observation_names=tuple("abcde")))
TOLD: ContextVar[Mapping[str, Any]] = ContextVar("told")


class Service:
    """One server for all tests, with an application for each, which finds in TOLD what the request says."""

    def __init__(self) -> None:
        self.app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            TOLD.set(json.loads(dict(scope["headers"]).get(b"told", b"{}")))
            await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def service() -> Service:
    return Service()


@pytest.fixture(scope="module")
def port(service: Service, serving: Callable[[Any], contextlib.AbstractContextManager[str]]) -> Iterator[int]:
    with serving(service) as address:
        yield int(address.rsplit(":", 1)[1])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the service say what the request tells it."""

    def decide(*_: object) -> Choice:
        answer = dict(TOLD.get()["answer"])
        return Choice(decision=Decision.from_json(answer.pop("decision")), **answer)

    monkeypatch.setattr(asking, "decide", decide)
    monkeypatch.setattr(asking, "now", lambda: TOLD.get()["now"])
    monkeypatch.setattr(routes, "now", lambda: TOLD.get()["now"])
    monkeypatch.setattr(policies, "_read", lambda document, tensors: POLICY)


class Served:
    """The methods of a storage that the service has routes for, over HTTP. One connection for each thread.

    What a decision was asked with is no part of the reply to it. So this remembers what it sent when the service took
    the decision, and `check` holds that against the page of runs that have ended, which has it.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._own = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self._documents: dict[tuple[str, str], str] = {}
        self._asked: dict[tuple[str, str, int], tuple[bytes, tuple[int, ...] | None]] = {}
        self._turns = itertools.count()

    def check(self) -> None:
        """Hold what was remembered against what is stored."""
        for project, name in {(project, run) for project, run, _ in self._asked}:
            run = self.run(project, name)
            if run.state == "active":
                self.end_run(project, name, "finished", run.attempt)
            found = next(one for one in self.ended(project, run.version.policy, 0, 50) if one.run.name == name)
            stored = {(project, name, one.seq): (one.observation, one.allowed) for one in found.decisions}
            assert stored == {key: asked for key, asked in self._asked.items() if key[:2] == (project, name)}

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def create_project(self, project: str) -> bool:
        return self._write("PUT", f"projects/{project}")[1]

    def projects(self) -> tuple[str, ...]:
        return tuple(self._read("projects")["projects"])

    def put_blob(self, data: bytes) -> tuple[str, bool]:
        reply, new = self._write("PUT", f"blobs/sha256/{hashlib.sha256(data).hexdigest()}", data)
        assert reply["size"] == len(data)
        return reply["digest"], new

    def blob(self, digest: str) -> bytes:
        return self._call("GET", f"blobs/sha256/{digest}")[1]

    def add_version(self, project: str, policy: str, document: str, tensors: str) -> tuple[PolicyVersion, bool]:
        body = {"document": document, "tensors": tensors}
        reply, new = self._write("POST", f"projects/{project}/policies/{policy}/versions", body)
        return version_of(reply, project), new

    def version(self, project: str, policy: str, number: int) -> PolicyVersion:
        return version_of(self._read(f"projects/{project}/policies/{policy}/versions/{number}"), project)

    def versions(self, project: str, policy: str, after: int, limit: int) -> list[PolicyVersion]:
        reply = self._read(f"projects/{project}/policies/{policy}/versions?after={after}&limit={limit}")
        return [version_of(one, project) for one in reply["versions"]]

    def set_alias(self, project: str, policy: str, alias: str, number: int, revision: int) -> Alias:
        body = {"version": number, "revision": revision}
        reply, new = self._write("PUT", f"projects/{project}/policies/{policy}/aliases/{alias}", body)
        assert not new
        return alias_of(reply, project)

    def alias(self, project: str, policy: str, alias: str) -> Alias:
        return alias_of(self._read(f"projects/{project}/policies/{policy}/aliases/{alias}"), project)

    def aliases(self, project: str, policy: str) -> tuple[Alias, ...]:
        reply = self._read(f"projects/{project}/policies/{policy}/aliases")
        return tuple(alias_of(one, project) for one in reply["aliases"])

    def policies(self, project: str) -> tuple[str, ...]:
        return tuple(self._read(f"projects/{project}/policies")["policies"])

    def create_run(
        self, project: str, run: str, policy: str, alias: str, spec: Spec, document: str | None = None
    ) -> tuple[Run, bool]:
        labels = {name.removeprefix("label/"): value for name, value in spec.items() if name.startswith("label/")}
        counts = {name: value for name, value in spec.items() if not name.startswith("label/")}
        body = {"policy": policy, "alias": alias, "document": document, "labels": labels, **counts}
        reply, new = self._write("PUT", f"projects/{project}/runs/{run}", body)
        found = run_of(reply, project)
        self._documents[project, run] = found.version.document
        return found, new

    def run(self, project: str, run: str) -> Run:
        return run_of(self._read(f"projects/{project}/runs/{run}"), project)

    def runs(self, project: str, after: str, limit: int) -> list[Run]:
        return [
            run_of(one, project) for one in self._read(f"projects/{project}/runs?after={after}&limit={limit}")["runs"]
        ]

    def claim_run(self, project: str, run: str) -> Run:
        return run_of(self._write("POST", f"projects/{project}/runs/{run}:claim")[0], project)

    def end_run(self, project: str, run: str, state: RunState, attempt: int) -> Run:
        body = {"state": state, "attempt": attempt}
        return run_of(self._write("POST", f"projects/{project}/runs/{run}:end", body)[0], project)

    def put_decision(self, project: str, run: str, record: DecisionRecord) -> tuple[DecisionRecord, bool]:
        decision = json.loads(record.decision)
        taken = {"origin": record.origin, "entry": record.entry, "decision": decision}
        body = {
            "step": record.step,
            "attempt": record.attempt,
            # Of a run that is not there nothing is known.
            "policy": self._documents.get((project, run), "0" * 64),
            "observation": struct.unpack(f"<{len(record.observation) // 4}f", record.observation),
            "allowed": record.allowed,
            "explore": None if record.explore is None else hex(record.explore),
            "taken": None if record.origin == "server" else taken,
        }
        answer = {name: getattr(record, name) for name in ("entry", "probability", "value")}
        told = {"answer": {**answer, "decision": decision}, "now": record.issued}
        reply, new = self._item(f"projects/{project}/runs/{run}/decisions", record.seq, body, told)
        assert reply["policy"]["document"] == body["policy"]
        asked = self._asked.setdefault((project, run, record.seq), (record.observation, record.allowed))
        return decision_of(reply, *asked), new

    def decision(self, project: str, run: str, seq: int) -> DecisionRecord:
        return self._remembered(project, run, self._read(f"projects/{project}/runs/{run}/decisions/{seq}"))

    def decisions(self, project: str, run: str, after: int, limit: int) -> list[DecisionRecord]:
        reply = self._read(f"projects/{project}/runs/{run}/decisions?after={after}&limit={limit}")
        return [self._remembered(project, run, one) for one in reply["decisions"]]

    def put_feedback(self, project: str, run: str, feedback: Feedback, attempt: int) -> tuple[Feedback, bool]:
        body = {"values": feedback.values, "attempt": attempt}
        place = f"projects/{project}/runs/{run}/feedback"
        reply, new = self._item(place, feedback.seq, body, {"now": feedback.received})
        return feedback_of(reply), new

    def feedback(self, project: str, run: str, seq: int) -> Feedback:
        return feedback_of(self._read(f"projects/{project}/runs/{run}/feedback/{seq}"))

    def feedbacks(self, project: str, run: str, after: int, limit: int) -> list[Feedback]:
        reply = self._read(f"projects/{project}/runs/{run}/feedback?after={after}&limit={limit}")
        return [feedback_of(one) for one in reply["feedback"]]

    def ended(self, project: str, policy: str, after: int, limit: int) -> list[Ended]:
        reply = self._read(f"projects/{project}/policies/{policy}/ended?after={after}&limit={limit}")
        return [
            Ended(
                cursor=one["cursor"],
                run=run_of(one["run"], project),
                decisions=tuple(transition_of(transition) for transition in one["decisions"]),
                feedback=tuple(feedback_of(feedback) for feedback in one["feedback"]),
            )
            for one in reply["ended"]
        ]

    def _remembered(self, project: str, run: str, reply: Any) -> DecisionRecord:
        return decision_of(reply, *self._asked[project, run, reply["seq"]])

    def _item(self, place: str, seq: int, body: Any, told: Any) -> tuple[Any, bool]:
        """Write a decision or feedback, every second time as a batch; return what is stored, and whether it is new."""
        if next(self._turns) % 2 == 0:
            return self._write("PUT", f"{place}/{seq}", body, told)
        (result,) = self._write("POST", f"{place}:batch", {"items": [{"seq": seq, **body}]}, told)[0]["results"]
        assert result["seq"] == seq
        if result["status"] >= 400:
            raise error_of(result["problem"], result["status"])
        return result["feedback" if place.endswith("feedback") else "decision"], result["status"] == 201

    def _write(self, method: str, place: str, body: Any = None, told: Any = None) -> tuple[Any, bool]:
        status, data = self._call(method, place, body, told)
        return json.loads(data), status == 201

    def _read(self, place: str) -> Any:
        return json.loads(self._call("GET", place)[1])

    def _call(self, method: str, place: str, body: Any = None, told: Any = None) -> tuple[int, bytes]:
        """Return status and body of an answer; raise the error that a problem stands for."""
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            self._connections.append(self._own.connection)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        self._own.connection.request(
            method, f"/v1/{place}", data, {"Content-Type": kind, "Told": json.dumps(told or {})}
        )
        reply = self._own.connection.getresponse()
        found = reply.read()
        if reply.status >= 400:
            assert reply.headers["Content-Type"] == "application/problem+json"
            raise error_of(json.loads(found), reply.status)
        return reply.status, found


def error_of(problem: Any, status: int) -> Exception:
    """Return what a problem stands for; one that no storage has fails the test."""
    assert problem["status"] == status
    found = ERRORS.get((status, problem["title"]), AssertionError)
    return found(f"{status}: {problem['title']}: {problem['detail']}")


def version_of(reply: Any, project: str) -> PolicyVersion:
    return PolicyVersion(
        project=project,
        policy=reply["policy"],
        number=reply["version"],
        document=reply["document"],
        tensors=reply["tensors"],
        created=microseconds(reply["created"]),
    )


def alias_of(reply: Any, project: str) -> Alias:
    return Alias(name=reply["alias"], version=version_of(reply["version"], project), revision=reply["revision"])


def run_of(reply: Any, project: str) -> Run:
    return Run(
        name=reply["run"],
        version=version_of(reply["policy"], project),
        created=microseconds(reply["created"]),
        renewed=microseconds(reply["renewed"]),
        ended=None if reply["ended"] is None else microseconds(reply["ended"]),
        **{name: reply[name] for name in ("spec", "alias", "state", "attempt", "next_seq")},
    )


def decision_of(reply: Any, observation: bytes, allowed: tuple[int, ...] | None) -> DecisionRecord:
    return DecisionRecord(
        observation=observation,
        allowed=allowed,
        explore=None if reply["explore"] is None else int(reply["explore"], 16),
        decision=json.dumps(reply["decision"], sort_keys=True),
        issued=microseconds(reply["issued"]),
        **{name: reply[name] for name in ("seq", "attempt", "step", "origin", "entry", "probability", "value")},
    )


def transition_of(reply: Any) -> DecisionRecord:
    observation = struct.pack(f"<{len(reply['observation'])}f", *reply["observation"])
    return decision_of(reply, observation, None if reply["allowed"] is None else tuple(reply["allowed"]))


def feedback_of(reply: Any) -> Feedback:
    return Feedback(seq=reply["seq"], values=reply["values"], received=microseconds(reply["received"]))


def microseconds(moment: str) -> int:
    read = datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    return (read - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)


@pytest.mark.usefixtures("told")
class TestServed(ServedContract):
    """In front of each storage."""

    @pytest.fixture(params=["memory", "file", "postgres"])
    def storage(self, request: pytest.FixtureRequest, tmp_path: Path, service: Service, port: int) -> Iterator[Served]:
        urls = {"file": f"sqlite:///{tmp_path}/rlmix.db"}
        if request.param == "postgres":
            urls["postgres"] = request.getfixturevalue("postgres")
        with contextlib.closing(open_storage(urls.get(request.param, MEMORY))) as kept:
            service.app = create_app(kept)
            with contextlib.closing(Served(port)) as client:
                yield client
                client.check()
