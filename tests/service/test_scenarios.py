"""What other services are known to get wrong, one by one and by name."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from rlmix.service.records import LEASE_SECONDS, LOST_SECONDS
from rlmix.service.storage import sql
from rlmix.service.storage.abstract import AbstractStorage

ROOT = Path(__file__).resolve().parents[2]
BASE = "/v1/projects/default"
HOUR = 3_600_000_000


@pytest.fixture
def storms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A service in a process; it is no part of the package, so the path is the checkout's."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.storm")


class Clock:
    """Says what time it is, and can be set."""

    def __init__(self) -> None:
        self.ahead = 0

    def __call__(self) -> int:
        return time.time_ns() // 1000 + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the service, in this process."""
    made = Clock()
    for place in ("storage.sql", "asking", "routes"):
        monkeypatch.setattr(f"rlmix.service.{place}.now", made)
    return made


class Client:
    """A training on one connection.

    Args:
        port: of the service.
        question: what it asks.
    """

    def __init__(self, port: int, question: dict[str, Any]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._question = question

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        kind = {} if body is None else {"Content-Type": "application/json"}
        self._connection.request(method, BASE + path, None if body is None else json.dumps(body), kind)
        reply = self._connection.getresponse()
        return reply.status, reply.read()

    def ask(self, seq: int, attempt: int = 1) -> tuple[int, bytes]:
        body = {**self._question, "step": 10 * seq, "attempt": attempt, "explore": hex(seq + 1)}
        return self.call("PUT", f"/runs/r/decisions/{seq}", body)

    def close(self) -> None:
        self._connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["service.before_commit", "service.after_commit"])
def test_vizier_a_client_that_comes_back_after_a_crash_is_answered(
    storms: ModuleType, policy: Path, tmp_path: Path, place: str
) -> None:
    """OSS Vizier keeps the operation that it was killed in, and lets the same client wait for it for ever."""
    service = storms.Service(tmp_path, f"sqlite:///{tmp_path}/x.db", policy)
    question = storms.question_for(policy)
    with contextlib.closing(service):
        service.start(f"{place}:30")
        acknowledged: dict[int, bytes] = {}
        with contextlib.closing(Client(service.port, question)) as client:
            assert client.call("PUT", "/runs/r", storms.RUN)[0] == 201
            with contextlib.suppress(OSError, http.client.HTTPException):
                for seq in range(31):
                    status, acknowledged[seq] = client.ask(seq)
                    assert status == 201
        killed_in = len(acknowledged)
        assert service.wait() == 9

        service.start()
        with contextlib.closing(Client(service.port, question)) as client:
            begun = time.perf_counter()
            status, said = client.ask(killed_in)
            # On an idle machine it takes milliseconds.
            assert time.perf_counter() - begun < 5
            assert status == (200 if place == "service.after_commit" else 201)
            assert client.ask(killed_in) == (200, said)
            assert client.ask(killed_in + 1)[0] == 201
            assert [client.ask(seq)[1] for seq in acknowledged] == list(acknowledged.values())


TRAINING = """
import http.client, json, signal, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
def call(method, path, body):
    headers = {"Content-Type": "application/json"}
    connection.request(method, "/v1/projects/default/runs/r" + path, json.dumps(body), headers)
    reply = connection.getresponse()
    assert reply.status == 201, reply.read()
    reply.read()
call("PUT", "", json.loads(sys.argv[2]))
for seq in range(5):
    call("PUT", f"/decisions/{seq}", {**json.loads(sys.argv[3]), "step": 10 * seq, "explore": hex(seq + 1)})
    print(seq, flush=True)
# It is killed between two decisions: one that is under way may be stored after its training is gone.
signal.pause()
"""


def test_optuna_4234_and_5470_a_training_that_was_killed_is_seen_to_be_lost_and_can_come_back(
    url: str, storage: AbstractStorage, storms: ModuleType, policy: Path, clock: Clock
) -> None:
    """With Optuna's ask and tell, the trial of a killed worker stays RUNNING for ever, and nobody can take it up."""
    port, question = int(url.rpartition(":")[2]), storms.question_for(policy)
    command = [sys.executable, "-c", TRAINING, str(port), json.dumps(storms.RUN), json.dumps(question)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        for _ in range(5):
            training.stdout.readline()
        training.send_signal(signal.SIGKILL)

    def phase() -> str:
        run = storage.run("default", "r")
        counted = storage.census(clock(), 0)
        assert {name: count for name, count in counted.items() if count} == {run.phase(clock()): 1}
        return run.phase(clock())

    kept = storage.decisions("default", "r", -1, 500)
    assert len(kept) == 5
    assert phase() == "active"
    clock.ahead = (LEASE_SECONDS + 60) * 10**6
    assert phase() == "stale"
    clock.ahead = (LOST_SECONDS + 60) * 10**6
    assert phase() == "lost"
    # A service that was away itself has no right to say so.
    assert storage.run("default", "r").phase(clock(), since=clock()) == "active"

    with contextlib.closing(Client(port, question)) as client:
        claimed = json.loads(client.call("POST", "/runs/r:claim")[1])
        assert (claimed["attempt"], claimed["next_seq"]) == (2, len(kept))
        assert phase() == "active"
        assert client.ask(len(kept), attempt=2)[0] == 201
        status, said = client.ask(len(kept) + 1, attempt=1)
        assert (status, json.loads(said)["title"]) == (409, "fenced")
        assert client.call("POST", "/runs/r:end", {"state": "finished", "attempt": 2})[0] == 200
    clock.ahead *= 10
    assert phase() == "finished"
    assert storage.decisions("default", "r", -1, 500)[: len(kept)] == kept


def test_a_run_that_was_silent_comes_back_by_asking_alone(
    url: str, storage: AbstractStorage, storms: ModuleType, policy: Path, clock: Clock
) -> None:
    """A training that sat in a queue for a day is none that was killed."""
    with contextlib.closing(Client(int(url.rpartition(":")[2]), storms.question_for(policy))) as client:
        client.call("PUT", "/runs/r", storms.RUN)
        client.ask(0)
        clock.ahead = (LOST_SECONDS + 60) * 10**6
        assert storage.run("default", "r").phase(clock()) == "lost"
        assert client.ask(1)[0] == 201
        assert storage.run("default", "r").phase(clock()) == "active"


@pytest.mark.parametrize("jump", [-HOUR, -100 * 24 * HOUR, HOUR])
def test_a_clock_that_jumps_changes_no_answer_and_no_order(
    url: str, storage: AbstractStorage, storms: ModuleType, policy: Path, clock: Clock, jump: int
) -> None:
    """A machine whose clock is set right must not fence, end or reorder a training."""
    with contextlib.closing(Client(int(url.rpartition(":")[2]), storms.question_for(policy))) as client:
        client.call("PUT", "/runs/r", storms.RUN)
        client.call("PUT", "/runs/first", storms.RUN)
        said = [client.ask(seq) for seq in range(3)]
        assert client.call("POST", "/runs/first:end", {"state": "finished"})[0] == 200
        clock.ahead = jump
        assert [client.ask(seq)[1] for seq in range(3)] == [data for _, data in said]
        assert client.ask(3)[0] == 201
        assert client.call("PUT", "/runs/r/feedback/3", {"values": {"loss": 1.0}})[0] == 201
        assert storage.run("default", "r").phase(clock()) == "active"
        assert client.call("POST", "/runs/r:end", {"state": "finished"})[0] == 200
    assert [one.seq for one in storage.decisions("default", "r", -1, 9)] == [0, 1, 2, 3]
    assert [one.run.name for one in storage.ended("default", "default", 0, 9)] == ["first", "r"]


def test_a_lease_is_passed_on_after_a_clock_that_jumped(storage: AbstractStorage, clock: Clock) -> None:
    """Whoever had it before must not write any more, whatever the clock says."""
    first = storage.acquire("learner", "a", 60)
    clock.ahead = -HOUR
    assert storage.acquire("learner", "a", 60) == first
    assert storage.acquire("learner", "b", 60) is None
    clock.ahead = 0
    second = storage.acquire("learner", "b", 60)
    assert first is not None
    assert second is not None
    assert second > first


def test_the_clock_of_these_tests_is_the_service_s(clock: Clock) -> None:
    """A patch that no longer reaches the service would let all of them pass."""
    clock.ahead = 7 * HOUR
    assert sql.now is clock
