"""What a monitor reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="the test client of starlette needs httpx2")

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from rlmix.policy.artifact import load
from rlmix.service.app import create_app
from rlmix.service.storage.abstract import AbstractStorage

LOCAL = "http://localhost"
RUN = {"policy": "default", "alias": "default", "total_steps": 100, "num_classes": 10}


def read(client: TestClient) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return every value by its name and the values of its labels."""
    reply = client.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def question(policy: Path, storage: AbstractStorage) -> dict[str, Any]:
    document = storage.version("default", "default", 1).document
    return {"step": 0, "policy": document, "observation": [0.0] * len(load(policy).observation_names)}


def test_what_happened_is_counted(storage: AbstractStorage, policy: Path) -> None:
    """A decision that was asked for twice is one decision, and two requests."""
    base, asked = "/v1/projects/default/runs", question(policy, storage)
    with TestClient(create_app(storage), LOCAL) as client:
        for run in ("a", "b"):
            client.put(f"{base}/{run}", json=RUN)
        said = client.put(f"{base}/a/decisions/0", json=asked).json()
        client.put(f"{base}/a/decisions/0", json=asked)
        taken = {"origin": "snapshot", "entry": said["entry"], "decision": said["decision"]}
        items = [{**asked, "seq": seq, "taken": taken} for seq in (1, 2)]
        client.post(f"{base}/a/decisions:batch", json={"items": items})
        client.post(f"{base}/b:end", json={"state": "failed"})
        client.get("/v1/nowhere/at/all")
        client.request("BREW", "/v1/info")
        found = read(client)
    route = "/v1/projects/{project}/runs/{run}/decisions/{seq}"
    assert found["rlmix_requests_total", ("PUT", route, "201")] == 1
    assert found["rlmix_requests_total", ("PUT", route, "200")] == 1
    assert found["rlmix_request_seconds_count", (route,)] == 2
    assert found["rlmix_requests_total", ("GET", "none", "404")] == 1
    assert found["rlmix_requests_total", ("other", "/v1/info", "405")] == 1
    assert found["rlmix_decisions_total", ("server",)] == 1
    assert found["rlmix_decisions_total", ("snapshot",)] == 2
    assert {name[1][0]: value for name, value in found.items() if name[0] == "rlmix_runs" and value} == {
        "active": 1,
        "failed": 1,
    }
    assert found["rlmix_alias_version", ("default", "default", "default")] == 1
    assert found["rlmix_writer_queue", ()] == 0
    assert [name for name in found if name[0] == "rlmix_info"]
    assert found["process_open_fds", ()] > 0


def test_addresses_that_are_made_up_do_not_fill_the_memory(storage: AbstractStorage) -> None:
    """A label for each of them would."""
    with TestClient(create_app(storage), LOCAL) as client:
        client.get("/v1/projects/default")
        before = len(read(client))
        for number in range(20):
            client.get(f"/made/up/{number}")
            client.get(f"/v1/projects/made-up-{number}/policies")
        after = read(client)
    assert len(after) - before < 60
    assert not [name for name in after if "made-up" in str(name)]


def test_two_services_in_one_process_count_apart(storage: AbstractStorage) -> None:
    """Embedded services, and tests, are several to a process."""
    with TestClient(create_app(storage), LOCAL) as first, TestClient(create_app(storage), LOCAL) as second:
        first.get("/v1/info")
        counted = ("rlmix_requests_total", ("GET", "/v1/info", "200"))
        assert read(first)[counted] == 1
        assert counted not in read(second)
