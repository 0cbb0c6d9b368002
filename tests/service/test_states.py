"""A model of runs, decisions and feedback, held against the service over HTTP while clients do all that clients do.

They repeat, reorder, lose replies, are taken over from, ask something else, and the service is closed and opened again.
`RLMIX_STATES=500` plays so many games instead of a few.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="the test client of starlette needs httpx2")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule
from starlette.testclient import TestClient

from rlmix.policy.artifact import DOCUMENT, load, save
from rlmix.service.app import create_app
from rlmix.service.schemas import of_decision, of_feedback
from rlmix.service.server import publish
from rlmix.service.storage.abstract import PAGE
from rlmix.service.storage.opening import open_storage

GAMES = int(os.environ.get("RLMIX_STATES", "6"))
POLICY = Path(__file__).resolve().parent.parent / "policy" / "artefacts" / "discrete"
LEARNED = load(POLICY)
BASE = "/v1/projects/default"
ALIAS = f"{BASE}/policies/default/aliases/default"
SPECS = tuple({"total_steps": 100, "num_classes": 10, "labels": {"data": data}} for data in ("digits", "letters"))
# From one state to the next, nothing else.
STATES = {"active": {"active", "finished", "failed", "cancelled"}} | {
    state: {state} for state in ("finished", "failed", "cancelled")
}

names = st.sampled_from(["a", "b", "c"])
seqs = st.integers(0, 4)
# Behind the run's attempt, mostly in it, before it.
behind = st.sampled_from([0, 0, 0, 0, 0, 1, -1])
questions = st.fixed_dictionaries({
    "step": st.integers(0, 1),
    "observation": st.sampled_from([[0.0] * len(LEARNED.observation_names), [-0.5] * len(LEARNED.observation_names)]),
    "allowed": st.sampled_from([None, None, [0, 2]]),
    "explore": st.sampled_from([None, None, "0x7"]),
})  # fmt: skip
values = st.sampled_from([{"loss": 0.5}, {"loss": 0.25}, {"b": 1.0, "a": 1e-300, "c": -0.0}])
endings = st.sampled_from(["finished", "failed", "cancelled"])


@dataclass
class Decided:
    """A decision as the model has it: what was asked, by which attempt, and the reply."""

    question: dict[str, Any]
    attempt: int
    said: bytes | None = None

    @property
    def answered(self) -> tuple[int, Any]:
        assert self.said is not None
        found = json.loads(self.said)
        return found["entry"], found["decision"]


@dataclass
class Reported:
    """Feedback as the model has it."""

    values: dict[str, float]
    said: bytes | None = None


@dataclass
class Training:
    """A run as the model has it."""

    spec: int
    version: int
    attempt: int = 1
    state: str = "active"
    decisions: dict[int, Decided] = field(default_factory=dict)
    feedback: dict[int, Reported] = field(default_factory=dict)

    def refuses(self, attempt: int) -> str | None:
        """The kind of the problem that a call of an attempt meets."""
        return "fenced" if attempt < self.attempt else "conflict" if attempt > self.attempt else None


Outcome = tuple[int, str | None]


class Games(RuleBasedStateMachine):
    """What clients do, in any order."""

    asked = Bundle("asked")
    told = Bundle("told")

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="rlmix-states-")
        root = Path(self.folder.name)
        save(root / "next", replace(LEARNED, card={"next": True}))
        self.url = f"sqlite:///{root}/x.db"
        self.runs: dict[str, Training] = {}
        self.ended: list[str] = []
        self.alias, self.revision = 1, 1
        self.documents = [""]
        self.seen: dict[str, tuple[str, int]] = {}
        self.connect()
        self.storage.create_project("default")
        for folder in (root / "next", POLICY):
            publish(self.storage, folder)
            self.documents.append(hashlib.sha256((folder / DOCUMENT).read_bytes()).hexdigest())
        self.alias = self.revision = 2

    def connect(self) -> None:
        self.storage = open_storage(self.url)
        self.client = TestClient(create_app(self.storage), "http://127.0.0.1").__enter__()

    def disconnect(self) -> None:
        self.client.__exit__()
        self.storage.close()

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.everything_is_read_back()
            self.disconnect()
            self.folder.cleanup()

    steps = 0

    def call(self, method: str, path: str, body: Any, expected: Outcome) -> bytes:
        """Make a call whose outcome the model knows: the status, and the kind of the problem."""
        self.steps += 1
        reply = self.client.request(method, path, json=body)
        kind = reply.json()["title"] if reply.status_code >= 400 else None
        assert (reply.status_code, kind) == expected, (method, path, body, reply.text, expected)
        return reply.content

    # What the model expects.

    def expect_decision(self, name: str, seq: int, body: dict[str, Any], answer: tuple[int, Any] | None) -> Outcome:
        """Return what comes of a question, or of a report with `answer`, and note it."""
        run = self.runs.get(name)
        if run is None:
            return 404, "not-found"
        if body["policy"] != self.documents[run.version]:
            return 409, "other-policy"
        refused = run.refuses(body["attempt"])
        if refused is not None:
            return 409, refused
        question = {key: body[key] for key in ("step", "observation", "allowed", "explore")}
        stored = run.decisions.get(seq)
        if stored is not None:
            # In one batch with the first it has no reply to be compared with yet, and needs none.
            same = stored.question == question and (answer is None or answer == stored.answered)
            return (200, None) if same else (409, "conflict")
        if answer is None and run.state != "active":
            return 409, "conflict"
        run.decisions[seq] = Decided(question, body["attempt"])
        return 201, None

    def expect_feedback(self, name: str, seq: int, body: dict[str, Any]) -> Outcome:
        """Return what comes of feedback, and note it."""
        run = self.runs.get(name)
        if run is None or seq not in run.decisions:
            return 404, "not-found"
        if body["attempt"] != run.decisions[seq].attempt:
            return 409, "fenced"
        stored = run.feedback.get(seq)
        if stored is not None:
            return (200, None) if stored.values == body["values"] else (409, "conflict")
        run.feedback[seq] = Reported(body["values"])
        return 201, None

    def attempt(self, name: str, behind: int) -> int:
        run = self.runs.get(name)
        return max(1, (run.attempt if run else 1) - behind)

    def note(self, kept: Decided | Reported, said: bytes) -> None:
        """Keep what was acknowledged first; all that comes later is the same."""
        kept.said = kept.said or said
        assert kept.said == said

    # What clients do.

    @rule(name=names, spec=st.integers(0, 1))
    def begin(self, name: str, spec: int) -> None:
        new = name not in self.runs
        run = self.runs.setdefault(name, Training(spec, self.alias))
        expected = (201 if new else 200, None) if run.spec == spec else (409, "conflict")
        self.call("PUT", f"{BASE}/runs/{name}", {"policy": "default", "alias": "default", **SPECS[spec]}, expected)

    @rule(target=asked, name=names, seq=seqs, question=questions, behind=behind, lost=st.booleans())
    def ask(self, name: str, seq: int, question: dict[str, Any], behind: int, lost: bool) -> Any:
        """Ask, and if the reply is lost, ask again."""
        run = self.runs.get(name)
        document = self.documents[run.version if run else 1]
        body = {**question, "policy": document, "attempt": self.attempt(name, behind)}
        path = f"{BASE}/runs/{name}/decisions/{seq}"
        status, kind = self.expect_decision(name, seq, body, None)
        said = self.call("PUT", path, body, (status, kind))
        if kind is not None:
            return multiple()
        if lost:
            said = self.call("PUT", path, body, (200, None))
        self.note(self.runs[name].decisions[seq], said)
        return name, seq, body

    @rule(before=asked)
    def repeat(self, before: tuple[str, int, dict[str, Any]]) -> None:
        """Send an old question again: the same bytes, unless the run was claimed since."""
        name, seq, body = before
        expected = self.expect_decision(name, seq, body, None)
        said = self.call("PUT", f"{BASE}/runs/{name}/decisions/{seq}", body, expected)
        if expected[0] == 200:
            self.note(self.runs[name].decisions[seq], said)

    @rule(name=names, seq=seqs, question=questions)
    def ask_another_policy(self, name: str, seq: int, question: dict[str, Any]) -> None:
        run = self.runs.get(name)
        body = {**question, "policy": self.documents[3 - run.version] if run else "0" * 64, "attempt": 1}
        expected = self.expect_decision(name, seq, body, None)
        self.call("PUT", f"{BASE}/runs/{name}/decisions/{seq}", body, expected)

    @rule(
        name=names, seq=seqs, question=questions, behind=behind, entry=st.sampled_from([0, 2]),
        origin=st.sampled_from(["held", "snapshot"]),
    )  # fmt: skip
    def report(self, name: str, seq: int, question: dict[str, Any], behind: int, entry: int, origin: str) -> None:
        """Report what the client did by itself."""
        run = self.runs.get(name)
        document = self.documents[run.version if run else 1]
        decision = LEARNED.catalogue.decisions[entry].to_json()
        taken = {"origin": origin, "entry": entry, "decision": decision}
        body = {**question, "policy": document, "attempt": self.attempt(name, behind), "taken": taken}
        expected = self.expect_decision(name, seq, body, (entry, decision))
        said = self.call("PUT", f"{BASE}/runs/{name}/decisions/{seq}", body, expected)
        if expected[1] is None and run is not None:
            self.note(run.decisions[seq], said)
            assert json.loads(said)["entry"] == entry

    @rule(name=names, items=st.lists(st.tuples(seqs, questions, behind), min_size=1, max_size=4))
    def ask_many(self, name: str, items: Sequence[tuple[int, dict[str, Any], int]]) -> None:
        """Ask several in one request; each fails by itself."""
        run = self.runs.get(name)
        path = f"{BASE}/runs/{name}/decisions:batch"
        document = self.documents[run.version if run else 1]
        bodies = [
            {"seq": seq, **question, "policy": document, "attempt": self.attempt(name, behind)}
            for seq, question, behind in items
        ]
        if run is None:
            self.call("POST", path, {"items": bodies}, (404, "not-found"))
            return
        outcomes = [self.expect_decision(name, body["seq"], body, None) for body in bodies]
        results = json.loads(self.call("POST", path, {"items": bodies}, (200, None)))["results"]
        for body, outcome, result in zip(bodies, outcomes, results, strict=True):
            assert (result["seq"], result["status"]) == (body["seq"], outcome[0])
            if outcome[1] is None:
                self.note(run.decisions[body["seq"]], dumped(result["decision"]))

    @rule(target=told, name=names, seq=seqs, values=values, behind=behind, lost=st.booleans())
    def give(self, name: str, seq: int, values: dict[str, float], behind: int, lost: bool) -> Any:
        """Say what came of a decision, and if the reply is lost, say it again."""
        run = self.runs.get(name)
        of = run.decisions[seq].attempt if run is not None and seq in run.decisions else 1
        body = {"values": values, "attempt": max(1, of - behind)}
        path = f"{BASE}/runs/{name}/feedback/{seq}"
        expected = self.expect_feedback(name, seq, body)
        said = self.call("PUT", path, body, expected)
        if expected[1] is not None:
            return multiple()
        if lost:
            said = self.call("PUT", path, body, (200, None))
        self.note(self.runs[name].feedback[seq], said)
        return name, seq, body

    @rule(before=told)
    def give_again(self, before: tuple[str, int, dict[str, Any]]) -> None:
        """Even after a claim and after the end: what was reported is so."""
        name, seq, body = before
        body = {**body, "values": dict(reversed(body["values"].items()))}
        said = self.call("PUT", f"{BASE}/runs/{name}/feedback/{seq}", body, (200, None))
        self.note(self.runs[name].feedback[seq], said)

    @rule(name=names)
    def claim(self, name: str) -> None:
        run = self.runs.get(name)
        active = run is not None and run.state == "active"
        expected = (404, "not-found") if run is None else (200, None) if active else (409, "conflict")
        said = self.call("POST", f"{BASE}/runs/{name}:claim", None, expected)
        if active and run is not None:
            run.attempt += 1
            found = json.loads(said)
            assert (found["attempt"], found["next_seq"]) == (run.attempt, 1 + max(run.decisions, default=-1))

    @rule(name=names, state=endings, behind=behind)
    def end(self, name: str, state: str, behind: int) -> None:
        run = self.runs.get(name)
        body = {"state": state, "attempt": self.attempt(name, behind)}
        refused = "not-found" if run is None else run.refuses(body["attempt"])
        if run is not None and refused is None:
            if run.state == "active":
                run.state = state
                self.ended.append(name)
            refused = None if run.state == state else "conflict"
        status = 200 if refused is None else 404 if refused == "not-found" else 409
        self.call("POST", f"{BASE}/runs/{name}:end", body, (status, refused))

    @rule(stale=st.booleans())
    def promote(self, stale: bool) -> None:
        """Move the alias: runs that go on keep their version."""
        body = {"version": 3 - self.alias, "revision": self.revision - stale}
        self.call("PUT", ALIAS, body, (409, "conflict") if stale else (200, None))
        if not stale:
            self.alias, self.revision = 3 - self.alias, self.revision + 1

    @precondition(lambda self: self.steps >= 12)
    @rule()
    def restart(self) -> None:
        """Not at every second step: an application takes longer to make than anything else here."""
        self.steps = 0
        self.disconnect()
        self.connect()
        self.everything_is_read_back()

    # What always holds.

    @invariant()
    def the_storage_knows_what_the_model_knows_and_nothing_else(self) -> None:
        """After each step, without the way over HTTP, which would take most of the time."""
        if not hasattr(self, "client"):
            return
        found = {run.name: run for run in self.storage.runs("default", "", PAGE)}
        assert found.keys() == self.runs.keys()
        for name, run in self.runs.items():
            is_now = found[name]
            told = (is_now.state, is_now.attempt, is_now.next_seq, is_now.version.document)
            next_seq = 1 + max(run.decisions, default=-1)
            assert told == (run.state, run.attempt, next_seq, self.documents[run.version])
            before, attempt = self.seen.get(name, ("active", 1))
            assert is_now.state in STATES[before]
            assert is_now.attempt >= attempt
            self.seen[name] = (is_now.state, is_now.attempt)
            decisions = self.storage.decisions("default", name, -1, PAGE)
            held_against(run.decisions, [dict(of_decision(one, is_now.version)) for one in decisions])
            held_against(
                run.feedback, [dict(of_feedback(one)) for one in self.storage.feedbacks("default", name, -1, PAGE)]
            )
        assert [one.run.name for one in self.storage.ended("default", "default", 0, PAGE)] == self.ended

    def everything_is_read_back(self) -> None:
        """Over HTTP, page by page and one by one."""
        for name, run in self.runs.items():
            for kind, kept in (("decisions", run.decisions), ("feedback", run.feedback)):
                base = f"{BASE}/runs/{name}/{kind}"
                held_against(kept, self.client.get(base).json()[kind])
                for seq, one in kept.items():
                    assert self.client.get(f"{base}/{seq}").content == one.said
        ended = self.client.get(f"{BASE}/policies/default/ended", params={"limit": 50}).json()["ended"]
        assert [one["run"]["run"] for one in ended] == self.ended


def held_against(kept: Mapping[int, Decided | Reported], items: Sequence[dict[str, Any]]) -> None:
    """Hold a list of answers against what was acknowledged, byte for byte."""
    assert [item["seq"] for item in items] == sorted(kept)
    assert {item["seq"]: dumped(item) for item in items} == {seq: one.said for seq, one in kept.items()}


def dumped(item: dict[str, Any]) -> bytes:
    """Return the bytes of an answer that is part of a list."""
    return json.dumps(item, separators=(",", ":")).encode()


TestGames = Games.TestCase
TestGames.settings = settings(
    max_examples=GAMES,
    stateful_step_count=40,
    deadline=None,
    # The same games each time, unless more were asked for.
    derandomize="RLMIX_STATES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
