"""The service over HTTP, in this process."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="the test client of starlette needs httpx2")

from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from rlmix.ops.rng import Streams
from rlmix.policy.artifact import DOCUMENT, TENSORS, load
from rlmix.service.app import create_app
from rlmix.service.guard import JSON_BYTES, Tokens
from rlmix.service.storage.abstract import AbstractStorage

BASE = "/v1/projects/default"
RUN = {"policy": "default", "alias": "default", "total_steps": 100, "num_classes": 10}
TOKEN = "t" * 32


@pytest.fixture
def client(storage: AbstractStorage) -> Iterator[TestClient]:
    with TestClient(create_app(storage)) as made:
        assert made.put(f"{BASE}/runs/r", json=RUN).status_code == 201
        yield made


@pytest.fixture
def digests(policy: Path) -> tuple[str, str]:
    document, tensors = (hashlib.sha256((policy / name).read_bytes()).hexdigest() for name in (DOCUMENT, TENSORS))
    return document, tensors


@pytest.fixture
def question(policy: Path, digests: tuple[str, str]) -> dict[str, Any]:
    values = [0.1 * place for place in range(len(load(policy).observation_names))]
    return {"step": 0, "policy": digests[0], "observation": values}


def test_a_decision_is_what_the_policy_says(client: TestClient, question: dict[str, Any], policy: Path) -> None:
    """A service that decides otherwise than its policy teaches a learner something that never happened."""
    local = load(policy)
    seen = torch.tensor(question["observation"])
    mask = torch.ones(len(local.catalogue), dtype=torch.bool)
    for seq, (explore, allowed) in enumerate([(None, None), (5, None), (2**63 - 1, [0, 2]), (None, [1])]):
        key = None if explore is None else hex(explore)
        reply = client.put(f"{BASE}/runs/r/decisions/{seq}", json={**question, "explore": key, "allowed": allowed})
        assert reply.status_code == 201, reply.text
        found = reply.json()
        named = mask if allowed is None else torch.tensor([entry in allowed for entry in range(len(mask))])
        streams = None if explore is None else Streams([explore])
        entry = int(local.act(seen.unsqueeze(0), named.unsqueeze(0), streams))
        assert found["entry"] == entry
        assert found["decision"] == local.catalogue.decisions[entry].to_json()
        assert found["probability"] == float(local.probabilities(seen, named)[entry])
        assert found["log_probability"] == math.log(found["probability"])
        assert found["explore"] == key
        assert found["policy"] == {"name": "default", "version": 1, "document": question["policy"]}


def test_a_repeated_question_has_the_same_bytes(client: TestClient, question: dict[str, Any]) -> None:
    """A client whose reply was lost acts on the second as it would have on the first."""
    place = f"{BASE}/runs/r/decisions/0"
    first = client.put(place, json=question)
    second, read = client.put(place, json=question), client.get(place)
    assert (first.status_code, second.status_code, read.status_code) == (201, 200, 200)
    assert first.headers["location"] == place
    assert first.content == second.content == read.content
    other = client.put(place, json={**question, "step": 1})
    assert other.status_code == 409
    assert client.get(place).content == first.content


def test_two_questions_at_once_store_one_decision(client: TestClient, question: dict[str, Any]) -> None:
    """Two processes of one training that ask at the same moment must act alike."""
    with ThreadPoolExecutor(8) as pool:
        for seq in range(5):
            place = f"{BASE}/runs/r/decisions/{seq}"
            replies = list(pool.map(lambda _, place=place: client.put(place, json=question), range(8)))
            assert sorted(reply.status_code for reply in replies) == [200] * 7 + [201]
            assert len({reply.content for reply in replies}) == 1
    assert [one["seq"] for one in client.get(f"{BASE}/runs/r/decisions").json()["decisions"]] == list(range(5))


def test_a_decision_that_the_client_took_is_kept_as_it_was(client: TestClient, question: dict[str, Any]) -> None:
    """What a training did without the service is part of its record, with a probability only where it has one."""
    said = client.put(f"{BASE}/runs/r/decisions/0", json=question).json()
    other = client.put(f"{BASE}/runs/r/decisions/1", json={**question, "allowed": [(said["entry"] + 1) % 4]}).json()

    def taken(origin: str, like: dict[str, Any]) -> dict[str, Any]:
        return {**question, "taken": {"origin": origin, "entry": like["entry"], "decision": like["decision"]}}

    copied = client.put(f"{BASE}/runs/r/decisions/2", json=taken("snapshot", said)).json()
    assert (copied["origin"], copied["probability"]) == ("snapshot", said["probability"])
    held = client.put(f"{BASE}/runs/r/decisions/3", json=taken("held", other)).json()
    assert (held["origin"], held["entry"], held["probability"]) == ("held", other["entry"], None)
    # The reply was lost, the client did the same by itself, or something else.
    assert client.put(f"{BASE}/runs/r/decisions/0", json=taken("snapshot", said)).json() == said
    assert client.put(f"{BASE}/runs/r/decisions/0", json=taken("held", other)).status_code == 409


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"unknown": 1}, 422),
        ({"step": -1}, 422),
        ({"step": 1.5}, 422),
        ({"step": True}, 422),
        ({"step": "1"}, 422),
        ({"step": 2**53}, 422),
        ({"policy": "0" * 64}, 409),
        ({"policy": "x"}, 422),
        ({"observation": []}, 422),
        ({"observation": [0.0] * 5000}, 422),
        ({"observation": "first"}, 422),
        ({"observation": math.nan}, 422),
        ({"observation": math.inf}, 422),
        ({"observation": 1e7}, 422),
        ({"allowed": []}, 422),
        ({"allowed": [1, 0]}, 422),
        ({"allowed": [99]}, 422),
        ({"explore": 5}, 422),
        ({"explore": "0x8000000000000000"}, 422),
        ({"taken": {"origin": "server", "entry": 0, "decision": {}}}, 422),
        ({"taken": {"origin": "held", "entry": 99, "decision": {"method": "none"}}}, 422),
        ({"taken": {"origin": "held", "entry": 0, "decision": {"method": "rm -rf"}}}, 422),
        ({"taken": {"origin": "held", "entry": 0, "decision": {"method": "mixup", "params": {"alpha": -1}}}}, 422),
    ],
)
def test_a_wrong_question_stores_nothing(
    client: TestClient, question: dict[str, Any], change: dict[str, Any], status: int
) -> None:
    """A number that is none, once stored, comes back in a learner's gradient."""
    value = change.get("observation")
    if isinstance(value, (float, str)):
        change = {"observation": [value, *question["observation"][1:]]}
    body = json.dumps({**question, **change})
    reply = client.put(f"{BASE}/runs/r/decisions/0", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["status"] == status
    assert client.get(f"{BASE}/runs/r/decisions/0").status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"values": {"a": NaN}}', 422),
        ('{"values": {"a": 1e999}}', 422),
        ('{"values": {}}', 422),
        ('{"values": {"A b": 1}}', 422),
        ('{"values": {"a": 1}, "b": 2}', 422),
        ("[" * 100_000, 400),
        ('{"values": {"a": ' + "9" * 5000 + "}}", 400),
        ("no json", 422),
        (" " * (JSON_BYTES + 1), 413),
    ],
)
def test_feedback_of_a_wrong_form_stores_nothing(
    client: TestClient, question: dict[str, Any], body: str, status: int
) -> None:
    """None of them may be a fault of the service either."""
    client.put(f"{BASE}/runs/r/decisions/0", json=question)
    reply = client.put(f"{BASE}/runs/r/feedback/0", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert client.get(f"{BASE}/runs/r/feedback/0").status_code == 404


def test_a_body_that_hides_its_length_is_counted(client: TestClient) -> None:
    """A header is a claim of the sender."""

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * (JSON_BYTES // 32)

    reply = client.put(f"{BASE}/runs/r/feedback/0", content=chunks(), headers={"Content-Type": "application/json"})
    assert reply.status_code == 413


def test_feedback_is_kept_once(client: TestClient, question: dict[str, Any]) -> None:
    """A letter that arrives twice must not count twice, nor change what a learner has read."""
    place = f"{BASE}/runs/r/feedback/0"
    assert client.put(place, json={"values": {"val_accuracy": 0.5}}).status_code == 404
    client.put(f"{BASE}/runs/r/decisions/0", json=question)
    first = client.put(place, json={"values": {"val_accuracy": 0.5}})
    second = client.put(place, json={"values": {"val_accuracy": 0.5}})
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.content == second.content == client.get(place).content
    assert client.put(place, json={"values": {"val_accuracy": 0.6}}).status_code == 409


def test_a_policy_is_uploaded_checked_and_promoted(
    client: TestClient, policy: Path, digests: tuple[str, str], tmp_path: Path
) -> None:
    """A policy that cannot be loaded must be found when it is uploaded, not by the training that gets it."""
    from dataclasses import replace

    from rlmix.policy.artifact import save

    save(tmp_path / "next", replace(load(policy), card={"next": True}))
    data = {name: (tmp_path / "next" / name).read_bytes() for name in (DOCUMENT, TENSORS)}
    names = {name: hashlib.sha256(value).hexdigest() for name, value in data.items()}
    for name, value in data.items():
        first = client.put(f"/v1/blobs/sha256/{names[name]}", content=value)
        assert first.status_code == (201 if name == DOCUMENT else 200)
        assert client.get(f"/v1/blobs/sha256/{names[name]}").content == value
    assert client.put(f"/v1/blobs/sha256/{'0' * 64}", content=b"x").status_code == 422
    versions = f"{BASE}/policies/default/versions"
    made = client.post(versions, json={"document": names[DOCUMENT], "tensors": names[TENSORS]})
    assert (made.status_code, made.json()["version"], made.headers["location"]) == (201, 2, f"{versions}/2")
    assert client.post(versions, json={"document": names[DOCUMENT], "tensors": names[TENSORS]}).status_code == 200
    crossed = client.post(versions, json={"document": names[TENSORS], "tensors": names[DOCUMENT]})
    assert crossed.status_code == 422
    assert "/tmp" not in crossed.text
    assert len(client.get(versions).json()["versions"]) == 2
    alias = f"{BASE}/policies/default/aliases/default"
    assert client.put(alias, json={"version": 2, "revision": 0}).status_code == 409
    assert client.put(alias, json={"version": 2, "revision": 1}).json()["revision"] == 2
    assert client.put(f"{BASE}/runs/s", json=RUN).json()["policy"]["version"] == 2
    assert client.get(f"{BASE}/runs/r").json()["policy"]["document"] == digests[0]


def test_runs_are_listed_and_end(client: TestClient) -> None:
    """Who looks after a cluster asks this first."""
    client.put(f"{BASE}/runs/s", json={**RUN, "labels": {"data": "digits"}})
    assert client.put(f"{BASE}/runs/s", json={**RUN, "labels": {"data": "letters"}}).status_code == 409
    assert [run["run"] for run in client.get(f"{BASE}/runs", params={"limit": 1}).json()["runs"]] == ["r"]
    assert [run["run"] for run in client.get(f"{BASE}/runs", params={"after": "r"}).json()["runs"]] == ["s"]
    ended = client.post(f"{BASE}/runs/r:finish").json()
    assert ended["state"] == "finished"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", ended["ended"])


@pytest.mark.parametrize("name", ["UP", "..", "a b", "-a", "a" * 64, "a%2Fb", "%00", "a\u00e9"])
def test_a_name_with_odd_characters_is_refused(client: TestClient, name: str) -> None:
    """Names end in addresses, logs and files."""
    assert client.put(f"/v1/projects/{name}").status_code in (404, 405, 422)
    assert client.get("/v1/projects").json() == {"projects": ["default"]}


def test_every_route_but_health_needs_the_token(storage: AbstractStorage) -> None:
    """A route that was added without its guard is the one that is found."""
    app = create_app(storage, tokens=Tokens((TOKEN,)))
    with TestClient(app) as client:
        routes = [(method, path) for path, operations in app.openapi()["paths"].items() for method in operations]
        assert len(routes) > 18
        for method, path in [*routes, ("get", "/v1/openapi.json")]:
            place = re.sub(r"{(\w+)}", lambda found: "1" if found[1] in ("seq", "number") else "0" * 64, path)
            reply = client.request(method, place)
            assert (reply.status_code == 401) == (path not in ("/healthz", "/readyz")), path
        assert client.get("/readyz").json() == {"status": "ready", "auth": "on"}
        for header in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", "Bearer \u00e9".encode()):
            assert client.get("/v1/projects", headers={"Authorization": header}).status_code == 401
        assert client.get("/v1/projects", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_list_of_routes_is_all_of_them(storage: AbstractStorage) -> None:
    """The test above reads the description, so nothing may be left out of it unnamed."""
    app = create_app(storage)
    hidden = [route.path for route in app.routes if isinstance(route, APIRoute) and not route.include_in_schema]
    others = [route for route in app.routes if not isinstance(route, APIRoute)]
    assert set(hidden) <= {"/v1/openapi.json"}
    assert not [route for route in others if getattr(route, "path", "").startswith("/docs")]


def test_a_page_of_another_site_cannot_reach_a_local_service(client: TestClient) -> None:
    """A browser can be made to believe that another site's name is this machine."""
    assert client.get("/v1/projects", headers={"Host": "attacker.example"}).status_code == 400


def test_a_storage_that_cannot_answer_is_said_so(client: TestClient, storage: AbstractStorage) -> None:
    """503 is what clients wait for; 500 is a fault."""
    storage.close()
    reply = client.get("/readyz")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert client.get("/healthz").status_code == 200
