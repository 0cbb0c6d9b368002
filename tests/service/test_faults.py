"""Trainings whose way to a real service is disturbed, forked, or ended by a signal."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

import rlmix.policy.remote
from rlmix._files import load_tree, save_tree
from rlmix.policy.controller import MixController
from rlmix.policy.decision import Decision
from rlmix.policy.remote import Remote, connect
from rlmix.policy.sources import Schedule
from rlmix.service.storage.abstract import AbstractStorage

STEPS = 200
DECISIONS = 8


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLMIX_CACHE", str(tmp_path / "cache"))


def canned(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


CANNED = {
    "500": canned("500 Oops", b"{}"),
    "429": canned("429 Busy", b"{}"),
    "garbage": canned("200 OK", b"\xff\x00 no json"),
    "another's": canned("200 OK", b'{"seq": 0, "entry": 0, "decision": {"method": "mixup"}}'),
    "10 MB": canned("200 OK", b" " * 10_000_000),
    "no http": b"220 smtp ready\r\n" * 10,
}


class FaultProxy:
    """Stands between a client and a service, and treats each request as `rule` says of its first line.

    "pass"; "slow": half a second late; "hang": never answered; "absent": reset at once; "half-close": the request is
    carried out and the reply's side closed; "reset N": after N bytes of the reply; "lost": carried out, and reset;
    "twice": carried out twice; or one of CANNED, not carried out.
    """

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.rule: Callable[[str], str] = lambda line: "pass"
        self.lines: list[str] = []
        self._over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listening.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            while request := received(client):
                line = request.split(b"\r\n", 1)[0].decode()
                self.lines.append(line)
                if not self._treat(client, request, self.rule(line)):
                    return

    def _treat(self, client: socket.socket, request: bytes, fault: str) -> bool:
        """Answer a request; return whether the connection goes on."""
        kind, _, count = fault.partition(" ")
        if fault in CANNED:
            client.sendall(CANNED[fault])
            return fault != "no http"
        if kind == "hang":
            self._over.wait(60)
            return False
        if kind == "slow":
            self._over.wait(0.5)
        if kind == "absent":
            reset(client)
            return False
        reply = self._carried_out(request)
        if kind == "twice":
            again = self._carried_out(request)
            # A new one is 201, a repeated one 200; nothing else may differ.
            assert again.partition(b"\r\n\r\n")[2] == reply.partition(b"\r\n\r\n")[2]
        if kind == "half-close":
            client.shutdown(socket.SHUT_WR)
            client.recv(1)
            return False
        if kind in ("reset", "lost"):
            client.sendall(reply[: int(count or 0)])
            reset(client)
            return False
        client.sendall(reply)
        return True

    def _carried_out(self, request: bytes) -> bytes:
        with socket.create_connection(self._target) as service:
            service.sendall(request)
            return received(service)


def received(connection: socket.socket) -> bytes:
    """Return one request or reply, or nothing at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < sum(lengths):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.fixture
def proxy(url: str) -> Iterator[FaultProxy]:
    made = FaultProxy(url)
    yield made
    made.close()


def begun(source: Any, **options: Any) -> MixController:
    return MixController(source, num_classes=10, total_steps=STEPS, seed=4, **options)


def mixed(mixer: MixController, steps: range) -> list[torch.Tensor]:
    found = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.rand(8, 1, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)
        found.extend(mixer(images, labels))
        mixer.observe(loss=1.0 / (1 + step), lr=0.1)
    return found


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def settled(source: Any) -> None:
    """Wait until the service has all that a training has to tell."""
    courier = source._courier
    with courier._changed:
        assert courier._changed.wait_for(lambda: not courier._away and not courier._letters, 60)


def told(storage: AbstractStorage, run: str, mixer: MixController) -> None:
    """Check that a run's record is what the training did, once each."""
    stored = storage.decisions("default", run, -1, 100)
    assert [(one.step, json.loads(one.decision)) for one in stored] == [
        (step, decision.to_json()) for step, decision in mixer.decisions
    ]
    assert [one.seq for one in stored] == list(range(len(stored)))


FAULTS = ["absent", "hang", "slow", "half-close", "lost", "reset 1", "reset 40", "reset 300", *CANNED]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_service_that_fails_in_the_middle_changes_nothing(
    fault: str, proxy: FaultProxy, policy: Path, storage: AbstractStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy decides as the service would have, and the record has each decision once, whatever got through."""
    if fault != "hang":
        # There the question whether it is back would hang as well.
        monkeypatch.setattr("rlmix.policy._courier._FIRST_PAUSE", 0.02)
    local = begun(policy)
    expected = mixed(local, range(STEPS))
    source = connect(proxy.url, run="one", deadline=10.0, setup_deadline=10.0)
    far = begun(source)
    found = mixed(far, range(60))
    source._options = replace(source._options, deadline=0.2)  # type: ignore[attr-defined]
    proxy.rule = lambda line: fault
    begin = time.monotonic()
    found += mixed(far, range(60, STEPS))
    # One deadline, of a machine that may be busy; ten decisions each waiting for one would take two seconds.
    assert time.monotonic() - begin < 1.5
    assert equal(expected, found)
    assert far.decisions == local.decisions
    proxy.rule = lambda line: "pass"
    settled(source)
    far.report(val_accuracy=0.5)
    origins = far.close().origins
    assert origins.keys() == {"server", "snapshot"}
    told(storage, "one", far)
    assert storage.feedback("default", "one", DECISIONS - 1).values == {"val_accuracy": 0.5}
    assert storage.run("default", "one").state == "finished"


@pytest.mark.parametrize("fault", ["twice", "random"])
def test_requests_that_arrive_twice_or_never_leave_the_same_record(
    fault: str, proxy: FaultProxy, policy: Path, storage: AbstractStorage
) -> None:
    """Networks repeat and lose; neither is to be seen afterwards."""
    draws = torch.randint(6, (1000,), generator=torch.Generator().manual_seed(1)).tolist()
    kinds = ["pass", "lost", "absent", "twice", "reset 40", "500"]
    numbers = itertools.count()
    source = connect(proxy.url, run="one", deadline=5.0, setup_deadline=10.0)
    far = begun(source)
    proxy.rule = lambda line: "twice" if fault == "twice" else kinds[draws[next(numbers)]]
    assert equal(mixed(begun(policy), range(STEPS)), mixed(far, range(STEPS)))
    proxy.rule = lambda line: "pass"
    settled(source)
    far.report(val_accuracy=0.5)
    origins = far.close().origins
    assert (set(origins) == {"server"}) == (fault == "twice")
    told(storage, "one", far)


def test_who_is_taken_over_from_goes_on_alone(
    proxy: FaultProxy, policy: Path, storage: AbstractStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """Two trainings under one name: the older one must not write any more, and must not end."""
    expected = mixed(begun(policy), range(STEPS))
    first, second = (connect(proxy.url, run="one", deadline=10.0, setup_deadline=10.0) for _ in range(2))
    older = begun(first)
    found = mixed(older, range(STEPS // 2))
    newer = begun(second)
    found += mixed(older, range(STEPS // 2, STEPS))
    older.report(val_accuracy=0.1)
    assert equal(expected, found)
    assert older.close().origins == {"server": 4, "snapshot": 4}
    assert sum("another training goes on" in record.getMessage() for record in caplog.records) == 1
    assert storage.run("default", "one").state == "active"
    mixed(newer, range(STEPS))
    newer.report(val_accuracy=0.9)
    assert newer.close().origins == {"server": DECISIONS}
    stored = storage.decisions("default", "one", -1, 100)
    assert [one.attempt for one in stored] == [1] * 4 + [2] * DECISIONS
    assert [one.seq for one in stored] == list(range(4 + DECISIONS))
    assert storage.feedback("default", "one", 11).values == {"val_accuracy": 0.9}


def test_feedback_finds_the_decision_that_was_taken_before_the_interruption(
    proxy: FaultProxy, storage: AbstractStorage, tmp_path: Path
) -> None:
    """A training is resumed, and reports before the next decision: what came of an earlier attempt's."""
    first = begun(connect(proxy.url, run="one", setup_deadline=10.0, deadline=10.0))
    mixed(first, range(60))
    save_tree(tmp_path / "state", first.state_dict())
    first.close()
    second = begun(connect(proxy.url, run="one", setup_deadline=10.0, deadline=10.0))
    second.load_state_dict(load_tree(tmp_path / "state"))
    second.report(val_accuracy=0.25)
    mixed(second, range(60, 80))
    second.report(val_accuracy=0.75)
    second.close()
    assert storage.feedback("default", "one", 2).values == {"val_accuracy": 0.25}
    assert storage.feedback("default", "one", 3).values == {"val_accuracy": 0.75}
    assert [one.attempt for one in storage.decisions("default", "one", -1, 100)] == [1, 1, 1, 2]


def test_a_run_that_has_ended_or_is_another_is_left_alone(proxy: FaultProxy, storage: AbstractStorage) -> None:
    """Its record is complete."""
    mixer = begun(connect(proxy.url, run="one", setup_deadline=10.0, deadline=10.0))
    mixed(mixer, range(STEPS))
    mixer.close()
    before = storage.decisions("default", "one", -1, 100)
    for other in (begun, lambda source: MixController(source, num_classes=9, total_steps=STEPS, seed=4)):
        again = other(connect(proxy.url, run="one", setup_deadline=10.0, deadline=10.0))
        images, labels = torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64)
        again(images, labels)
        again.report(val_accuracy=0.5)
        assert again.close().origins == {"snapshot": 1}
    assert storage.decisions("default", "one", -1, 100) == before


def failing(mixer: MixController, error: type[BaseException]) -> None:
    mixed(mixer, range(3))
    raise error


def test_a_training_that_an_error_ends_has_failed(proxy: FaultProxy, storage: AbstractStorage) -> None:
    """Unless it has a name under which it can go on; who interrupts it may want that too."""
    for run, error in ((None, ValueError), ("one", ValueError), (None, KeyboardInterrupt)):
        source = connect(proxy.url, run=run, setup_deadline=10.0, deadline=10.0)
        with pytest.raises(error), begun(source) as mixer:
            failing(mixer, error)
        expected = "failed" if (run, error) == (None, ValueError) else "active"
        assert isinstance(source, Remote)
        assert storage.run("default", source._run).state == expected


def test_a_snapshot_is_never_asked_about_and_told_of_later(
    proxy: FaultProxy, policy: Path, storage: AbstractStorage
) -> None:
    """No step waits, and the record has what the learner needs."""
    source = connect(proxy.url, run="one", mode="snapshot", setup_deadline=10.0)
    far = begun(source, explore=True)
    assert equal(mixed(begun(policy, explore=True), range(STEPS)), mixed(far, range(STEPS)))
    far.report(val_accuracy=0.5)
    assert far.close().origins == {"snapshot": DECISIONS}
    told(storage, "one", far)
    assert all(one.probability for one in storage.decisions("default", "one", -1, 100))


def prefetched(source: Any, mixer: MixController, steps: range, late: int | None = None) -> list[torch.Tensor]:
    """Mix the batches of some steps, and give each answer the time to come, but that to decision `late`."""
    found = []
    for step in steps:
        found += mixed(mixer, range(step, step + 1))
        asking = source._asking
        if asking is not None and asking.seq != late:
            wait_for(lambda asking=asking: asking.asked.reply is not None)  # type: ignore[misc]
    return found


def wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_is_prefetched_can_be_replayed_from_the_record(proxy: FaultProxy, storage: AbstractStorage) -> None:
    """An answer that comes too late changes nothing, and the record says which decision held from which step on."""
    came = threading.Event()

    def rule(line: str) -> str:
        if "/decisions/5" in line:
            came.wait(30)
        return "pass"

    proxy.rule = rule
    source = connect(proxy.url, run="one", prefetch=5, setup_deadline=10.0, deadline=20.0)
    far = begun(source, explore=True)
    found = prefetched(source, far, range(126), late=5)
    came.set()
    found += prefetched(source, far, range(126, STEPS))
    settled(source)
    assert far.close().origins == {"server": DECISIONS - 1, "snapshot": 1}
    told(storage, "one", far)
    stored = storage.decisions("default", "one", -1, 100)
    parts = [(one.step / STEPS, Decision.from_json(json.loads(one.decision))) for one in stored]
    assert equal(found, mixed(begun(Schedule(parts)), range(STEPS)))


def test_a_training_that_is_interrupted_between_question_and_decision_goes_on(
    proxy: FaultProxy, storage: AbstractStorage, tmp_path: Path
) -> None:
    """What it saw is in its state, so the same is asked again."""
    sources = [connect(proxy.url, run=run, prefetch=5, setup_deadline=10.0, deadline=20.0) for run in ("one", "two")]
    whole, first = (begun(source) for source in sources)
    expected = prefetched(sources[0], whole, range(STEPS))
    found = prefetched(sources[1], first, range(73))
    save_tree(tmp_path / "state", first.state_dict())
    first.close()
    third = connect(proxy.url, run="two", prefetch=5, setup_deadline=10.0, deadline=20.0)
    second = begun(third)
    second.load_state_dict(load_tree(tmp_path / "state"))
    found += prefetched(third, second, range(73, STEPS))
    assert equal(expected, found)
    assert second.decisions == whole.decisions
    whole.close()
    assert second.close().origins == {"server": DECISIONS - 3}


# What a process of its own does.
TRAINING = """
import gc, json, os, signal, sys, threading
import torch
torch.set_num_threads(1)
import rlmix
assert threading.active_count() == 1, "a thread at import"
source = rlmix.connect(sys.argv[1], run="one", deadline=float(sys.argv[2]), setup_deadline=20.0)
mixer = rlmix.MixController(source, num_classes=10, total_steps=200, seed=4)

def train(steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.rand(8, 1, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)
        mixer(images, labels)
        mixer.observe(loss=1.0 / (1 + step), lr=0.1)

def say(**words):
    words["decisions"] = [(step, decision.to_json()) for step, decision in mixer.decisions]
    print(json.dumps(words), flush=True)
"""
KILLED = """
train(range(60))
say()
sys.stdin.readline()
train(range(60, 200))
mixer.report(val_accuracy=0.5)
say()
signal.pause()
"""
FORKED = """
train(range(60))
courier = source._courier
for number in range(2):
    child = os.fork()
    if child == 0:
        if number:
            train(range(60, 200))
            mixer.report(val_accuracy=0.1)
            report = mixer.close()
            del mixer, source, courier
            gc.collect()
            os._exit(0 if dict(report.origins) == {"server": 3, "snapshot": 5} else 3)
        del mixer, source, courier
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
train(range(60, 200))
mixer.report(val_accuracy=0.5)
say(origins=dict(mixer.close().origins))
"""


@contextlib.contextmanager
def running(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", TRAINING + script, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def said(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


@pytest.mark.slow
@pytest.mark.parametrize("run", ["one", "two"])
def test_what_a_terminated_training_could_not_tell_the_next_one_tells_once(
    run: str, proxy: FaultProxy, storage: AbstractStorage
) -> None:
    """Schedulers end jobs by SIGTERM while a service hangs. The next may be another, or go on with the same run."""
    with running(KILLED, proxy.url, "0.2") as process:
        said(process)
        proxy.rule = lambda line: "hang"
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        done = said(process)
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
    # Nothing but the first three got through, or was tried twice without an answer.
    assert len(storage.decisions("default", "one", -1, 100)) == 3
    proxy.rule = lambda line: "pass"
    source = connect(proxy.url, run=run, setup_deadline=20.0)
    mixer = begun(source)
    settled(source)
    stored = storage.decisions("default", "one", -1, 100)
    assert [[one.step, json.loads(one.decision)] for one in stored] == done["decisions"]
    assert [one.seq for one in stored] == list(range(DECISIONS))
    assert {one.attempt for one in stored} == {1}
    assert [one.origin for one in stored] == ["server"] * 3 + ["snapshot"] * 5
    assert storage.feedback("default", "one", DECISIONS - 1).values == {"val_accuracy": 0.5}
    assert storage.run("default", "one").attempt == (2 if run == "one" else 1)
    mixer.close()
    assert not list(Path(os.environ["RLMIX_CACHE"]).rglob("*.jsonl"))


@pytest.mark.slow
def test_a_forked_child_leaves_its_parent_alone(proxy: FaultProxy, policy: Path, storage: AbstractStorage) -> None:
    """Loaders fork workers in the middle of a training; one that used its connection would mix up the answers."""
    with running(FORKED, proxy.url, "20") as process:
        done = said(process)
        assert process.wait(30) == 0
    assert done["origins"] == {"server": DECISIONS}
    stored = storage.decisions("default", "one", -1, 100)
    assert [[one.step, json.loads(one.decision)] for one in stored] == done["decisions"]
    assert storage.feedback("default", "one", DECISIONS - 1).values == {"val_accuracy": 0.5}
    local = begun(policy)
    mixed(local, range(STEPS))
    assert [[step, decision.to_json()] for step, decision in local.decisions] == done["decisions"]


@pytest.mark.slow
def test_a_forked_child_leaves_its_parents_letters_alone(proxy: FaultProxy, storage: AbstractStorage) -> None:
    """They are all that is known of what was done without the service."""
    # The service is away from step 60 on, so that letters lie there when the first child is forked.
    away = "train(range(60)); source._courier.missed(); source._courier._pause = 60.0; train(range(60, 90))"
    script = FORKED.replace("train(range(60))", away).replace("range(60, 200)", "range(90, 200)")
    with running(script, proxy.url, "20") as process:
        done = said(process)
        assert process.wait(30) == 0
    assert done["origins"] == {"server": 3, "snapshot": 5}
    source = connect(proxy.url, run="two", setup_deadline=20.0)
    settled(source)
    source.close(finished=False)
    stored = storage.decisions("default", "one", -1, 100)
    assert [[one.step, json.loads(one.decision)] for one in stored] == done["decisions"]


def test_nothing_is_done_when_a_client_is_collected() -> None:
    """What runs at an unknown time, in an unknown process, cannot keep any promise."""
    for path in Path(rlmix.policy.remote.__file__).parent.glob("*.py"):
        assert "__del__" not in path.read_text(encoding="utf-8")
