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

from starlette.testclient import TestClient

from rlmix.ops.rng import Streams
from rlmix.policy.artifact import DOCUMENT, TENSORS, load
from rlmix.service.app import create_app
from rlmix.service.front import JSON_BYTES
from rlmix.service.schemas import BATCH
from rlmix.service.storage.abstract import AbstractStorage

BASE = "/v1/projects/default"
RUN = {"policy": "default", "alias": "default", "total_steps": 100, "num_classes": 10}
LOCAL = "http://localhost"


@pytest.fixture
def client(storage: AbstractStorage) -> Iterator[TestClient]:
    with TestClient(create_app(storage), LOCAL) as made:
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
        assert found["probability"] == pytest.approx(float(local.probabilities(seen, named)[entry]), rel=1e-6)
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
        ({"step": None}, 422),
        ({"step": 2**53}, 422),
        ({"policy": "0" * 64}, 409),
        ({"policy": "x"}, 422),
        ({"observation": []}, 409),
        ({"observation": [0.0] * 5000}, 422),
        ({"observation": "first"}, 422),
        ({"observation": math.nan}, 422),
        ({"observation": math.inf}, 422),
        ({"observation": 1e7}, 422),
        ({"allowed": []}, 422),
        ({"allowed": [1, 0]}, 409),
        ({"allowed": [99]}, 409),
        ({"explore": 5}, 422),
        ({"explore": "0x8000000000000000"}, 422),
        ({"taken": {"origin": "server", "entry": 0, "decision": {}}}, 422),
        ({"taken": {"origin": "held", "entry": 99, "decision": {"method": "none"}}}, 409),
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
        ("[" * 100_000, 422),
        ('{"values": {"a": ' + "9" * 5000 + "}}", 422),
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
    assert client.put(f"/v1/blobs/sha256/{'0' * 64}", content=b"x").status_code == 409
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
    ended = client.post(f"{BASE}/runs/r:end", json={"state": "finished"}).json()
    assert ended["state"] == "finished"
    assert client.post(f"{BASE}/runs/r:end", json={"state": "finished"}).json() == ended
    assert client.post(f"{BASE}/runs/r:end", json={"state": "failed"}).status_code == 409
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", ended["ended"])


def test_a_training_that_was_taken_over_from_is_told_so(client: TestClient, question: dict[str, Any]) -> None:
    """It must not go on asking, nor write into what is another's now; and it must tell this from other conflicts."""
    first = client.put(f"{BASE}/runs/r/decisions/0", json=question).json()
    assert first["attempt"] == 1
    claimed = client.post(f"{BASE}/runs/r:claim").json()
    assert (claimed["attempt"], claimed["next_seq"]) == (2, 1)
    told = client.put(f"{BASE}/runs/r/decisions/0", json=question)
    assert (told.status_code, told.json()["title"]) == (409, "fenced")
    for place, body in ((":end", {"state": "finished"}), ("/feedback/0", {"values": {"loss": 1.0}, "attempt": 2})):
        call = client.post if place == ":end" else client.put
        assert call(f"{BASE}/runs/r{place}", json=body).json()["title"] == "fenced"
    again = client.put(f"{BASE}/runs/r/decisions/1", json={**question, "attempt": 2})
    assert (again.status_code, again.json()["attempt"]) == (201, 2)


@pytest.mark.parametrize("name", ["UP", "..", "a b", "-a", "a" * 64, "a%2Fb", "%00", "a\u00e9"])
def test_a_name_with_odd_characters_is_refused(client: TestClient, name: str) -> None:
    """Names end in addresses, logs and files."""
    assert client.put(f"/v1/projects/{name}").status_code in (404, 405, 422)
    assert client.get("/v1/projects").json() == {"projects": ["default"]}


def test_a_page_of_another_site_cannot_reach_a_local_service(client: TestClient) -> None:
    """A browser can be made to believe that another site's name is this machine."""
    for host in ("attacker.example", "localhost.attacker.example", "attacker.example:80", "", "127.0.0.1.example"):
        assert client.get("/v1/projects", headers={"Host": host}).status_code == 400
    for host in ("localhost", "LOCALHOST:8490", "127.0.0.1:1", "[::1]", "[::1]:8490"):
        assert client.get("/v1/projects", headers={"Host": host}).status_code == 200


def test_a_storage_that_cannot_answer_is_said_so(client: TestClient, storage: AbstractStorage) -> None:
    """503 is what clients wait for; 500 is a fault."""
    storage.close()
    reply = client.get("/readyz")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert client.get("/healthz").status_code == 200


def test_a_batch_does_what_its_items_would_alone(client: TestClient, question: dict[str, Any]) -> None:
    """One item that fails must not take what was decided without the service with it."""
    asked = [{**question, "seq": seq, "step": seq} for seq in range(4)]
    asked[2]["policy"] = "0" * 64
    client.put(f"{BASE}/runs/r/decisions/1", json={**question, "step": 1})
    results = client.post(f"{BASE}/runs/r/decisions:batch", json={"items": asked}).json()["results"]
    assert [(one["seq"], one["status"]) for one in results] == [(0, 201), (1, 200), (2, 409), (3, 201)]
    assert results[2]["problem"]["title"] == "other-policy"
    for one in (results[0], results[1], results[3]):
        assert one["decision"] == client.get(f"{BASE}/runs/r/decisions/{one['seq']}").json()
    again = client.post(f"{BASE}/runs/r/decisions:batch", json={"items": asked}).json()["results"]
    assert [one["status"] for one in again] == [200, 200, 409, 200]
    told = [{"seq": seq, "values": {"loss": float(seq)}} for seq in (0, 2, 3)]
    results = client.post(f"{BASE}/runs/r/feedback:batch", json={"items": told}).json()["results"]
    assert [(one["seq"], one["status"]) for one in results] == [(0, 201), (2, 404), (3, 201)]
    assert client.get(f"{BASE}/runs/r/feedback").json()["feedback"] == [results[0]["feedback"], results[2]["feedback"]]
    assert client.get(f"{BASE}/runs/r/feedback", params={"after": 0}).json()["feedback"] == [results[2]["feedback"]]


@pytest.mark.parametrize("count", [0, BATCH + 1])
def test_a_batch_has_a_size(client: TestClient, count: int) -> None:
    """A request must not keep others waiting for as long as it likes."""
    items = [{"seq": seq, "values": {"loss": 1.0}} for seq in range(count)]
    assert client.post(f"{BASE}/runs/r/feedback:batch", json={"items": items}).status_code == 422


def test_what_ended_is_read_on_from_where_it_was_left(client: TestClient, question: dict[str, Any]) -> None:
    """A learner elsewhere must see each run once, with all that it needs to learn from it."""
    place = f"{BASE}/policies/default/ended"
    asked = {**question, "explore": "0x7", "allowed": [0, 2]}
    decision = client.put(f"{BASE}/runs/r/decisions/0", json=asked).json()
    feedback = client.put(f"{BASE}/runs/r/feedback/0", json={"values": {"val_accuracy": 0.5}}).json()
    client.put(f"{BASE}/runs/s", json=RUN)
    assert client.get(place).json() == {"ended": []}
    for name in ("s", "r"):
        client.post(f"{BASE}/runs/{name}:end", json={"state": "finished"})
    first, second = client.get(place).json()["ended"]
    assert (first["run"]["run"], second["run"]["run"]) == ("s", "r")
    (seen,) = second["decisions"]
    assert {name: value for name, value in seen.items() if name not in ("observation", "allowed")} == decision
    assert seen["observation"] == torch.tensor(question["observation"], dtype=torch.float32).tolist()
    assert (seen["allowed"], second["feedback"]) == ([0, 2], [feedback])
    assert client.get(place, params={"limit": 1}).json()["ended"] == [first]
    assert client.get(place, params={"after": first["cursor"]}).json()["ended"] == [second]
    assert client.get(f"{BASE}/policies/absent/ended").status_code == 404


def test_what_a_version_would_answer_is_not_kept(client: TestClient, question: dict[str, Any]) -> None:
    """It is what the policy says, and nobody learns from it."""
    asked = {"observation": question["observation"], "explore": "0x5"}
    found = client.post(f"{BASE}/policies/default/versions/1:decide", json=asked)
    assert found.status_code == 200
    stored = client.put(f"{BASE}/runs/r/decisions/0", json={**question, "explore": "0x5"}).json()
    assert found.json() == {name: stored[name] for name in found.json()}
    assert len(client.get(f"{BASE}/runs/r/decisions").json()["decisions"]) == 1
    assert client.post(f"{BASE}/policies/default/versions/2:decide", json=asked).status_code == 404
    assert client.post(f"{BASE}/policies/default/versions/1:decide", json={"observation": [0.0]}).status_code == 409


def test_policies_and_their_aliases_are_listed(client: TestClient) -> None:
    """What is there must be found without knowing its name."""
    assert client.get(f"{BASE}/policies").json() == {"policies": ["default"]}
    alias = client.get(f"{BASE}/policies/default/aliases/default").json()
    assert client.get(f"{BASE}/policies/default/aliases").json() == {"aliases": [alias]}
    assert client.get(f"{BASE}/policies/absent/aliases").status_code == 404
    assert client.get("/v1/projects/absent/policies").status_code == 404


def test_a_blob_that_is_known_is_not_sent_again(client: TestClient, digests: tuple[str, str]) -> None:
    """Each training reads the policy at its beginning, and most of them have it."""
    place = f"/v1/blobs/sha256/{digests[0]}"
    tag = client.get(place).headers["etag"]
    for given in (tag, f'"x", {tag}', "*", f"W/{tag}"):
        reply = client.get(place, headers={"If-None-Match": given})
        assert (reply.status_code, reply.content, reply.headers["etag"]) == (304, b"", tag)
    assert client.get(place, headers={"If-None-Match": '"x"'}).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "text/json"]
)
def test_another_media_type_is_refused(client: TestClient, question: dict[str, Any], kind: str) -> None:
    """A form on another site's page can send these, and no others without asking."""
    place, body = f"{BASE}/runs/r/decisions/0", json.dumps(question)
    assert client.put(place, content=body, headers={"Content-Type": kind}).status_code == 415
    told = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.put(place, content=body, headers=told).status_code == 201
    digest = hashlib.sha256(b"x").hexdigest()
    refused = client.put(f"/v1/blobs/sha256/{digest}", content=b"x", headers={"Content-Type": "application/json"})
    assert refused.status_code == 415


def test_every_answer_says_what_browsers_must_not_do(client: TestClient) -> None:
    """Errors and refusals included."""
    for place, host in (("/v1/info", "localhost"), ("/nowhere", "localhost"), ("/v1/info", "a.example"), ("/", "::1")):
        reply = client.get(place, headers={"Host": host, "Origin": "https://attacker.example"})
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["rlmix-api-version"] == "1"
        assert not [name for name in reply.headers if name.startswith("access-control-")]
    assert client.options("/v1/info", headers={"Origin": "https://attacker.example"}).status_code == 405


def test_a_request_keeps_its_name(client: TestClient) -> None:
    """It joins the logs of a proxy with those of a training; what could break a log is replaced."""
    assert client.get("/healthz", headers={"X-Request-Id": "a-B.9"}).headers["x-request-id"] == "a-B.9"
    for odd in ("a b", "x" * 200, "<script>", ""):
        assert re.fullmatch(
            "[0-9a-f]{16}", client.get("/healthz", headers={"X-Request-Id": odd}).headers["x-request-id"]
        )


def test_a_fault_is_a_problem_that_says_nothing_of_itself(
    storage: AbstractStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong inside is for the service's own log."""

    def broken() -> None:
        raise RuntimeError("/etc/secret")

    monkeypatch.setattr(type(storage), "projects", lambda self: broken())
    with TestClient(create_app(storage), LOCAL, raise_server_exceptions=False) as client:
        reply = client.get("/v1/projects")
    assert (reply.status_code, reply.json()["title"]) == (500, "fault")
    assert "secret" not in reply.text


def test_a_number_is_what_json_says_that_it_is(client: TestClient, question: dict[str, Any]) -> None:
    """3.0 is 3 there, and many a language writes it so."""
    place, told = f"{BASE}/runs/r/decisions/0", {"Content-Type": "application/json"}
    body = json.dumps({**question, "step": 3.0}).replace('"step": 3.0', '"step": 0.3e1')
    assert client.put(place, content=body, headers=told).json()["step"] == 3
    assert client.put(place, json={**question, "step": 3}).status_code == 200


def test_another_method_is_told_which_there_are(client: TestClient) -> None:
    """All of them, although each route knows of its own alone."""
    for place, methods in (
        (f"{BASE}/runs/r", "GET, PUT"),
        (f"{BASE}/runs/r:end", "POST"),
        (f"{BASE}/policies/default/versions", "GET, POST"),
        (f"{BASE}/policies/default/versions/1:decide", "POST"),
        ("/", "GET"),
    ):
        reply = client.request("DELETE", place)
        assert (reply.status_code, reply.headers["allow"]) == (405, methods)
