"""Trainings that a real service decides for."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from rlmix._files import load_tree, save_tree
from rlmix.errors import ServiceError
from rlmix.policy.controller import MixController
from rlmix.policy.remote import connect
from rlmix.policy.sources import AbstractSource
from rlmix.service.server import publish
from rlmix.service.storage.abstract import AbstractStorage

STEPS = 200
SPEC = {"total_steps": STEPS, "num_classes": 10, "num_examples": None}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLMIX_CACHE", str(tmp_path / "cache"))


def begun(source: Any, **options: Any) -> MixController:
    return MixController(source, num_classes=10, total_steps=STEPS, seed=4, **options)


def mixed(mixer: MixController, steps: range, at: Callable[[int], object] = lambda step: None) -> list[torch.Tensor]:
    """Mix the batches of some steps; `at` is called before each."""
    found = []
    for step in steps:
        at(step)
        generator = torch.Generator().manual_seed(step)
        images, labels = torch.rand(8, 1, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)
        found.extend(mixer(images, labels))
        mixer.observe(loss=1.0 / (1 + step), lr=0.1)
    return found


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def remote(url: str, **options: Any) -> AbstractSource:
    # The machine that runs the tests may be slow; nothing here is about time.
    return connect(url, **{"deadline": 10.0, "setup_deadline": 10.0, **options})


@pytest.mark.parametrize("explore", [False, True])
def test_a_service_decides_what_its_policy_decides_in_process(
    url: str, policy: Path, storage: AbstractStorage, explore: bool
) -> None:
    """If the two differed, nobody could say which of them was evaluated."""
    local, far = begun(policy, explore=explore), begun(remote(url, run="one"), explore=explore)
    assert equal(mixed(local, range(STEPS)), mixed(far, range(STEPS)))
    assert far.decisions == local.decisions
    assert far.probabilities == local.probabilities
    far.report(val_accuracy=0.75, val_tsnll=0.5)
    report = far.close()
    assert report.origins == {"server": len(local.decisions)}
    stored = storage.decisions("default", "one", -1, 100)
    assert [one.step for one in stored] == [step for step, _ in local.decisions]
    assert all(one.probability and one.origin == "server" for one in stored)
    assert storage.feedback("default", "one", len(stored) - 1).values == {"val_accuracy": 0.75, "val_tsnll": 0.5}
    assert storage.run("default", "one").state == "finished"


def test_an_address_is_all_that_a_controller_needs(url: str, policy: Path, storage: AbstractStorage) -> None:
    """The first line that somebody tries."""
    mixer = begun(url)
    mixed(mixer, range(3))
    mixer.close()
    (run,) = storage.runs("default", "", 10)
    assert (run.state, run.spec["total_steps"]) == ("active", STEPS)


def test_an_interrupted_training_goes_on_in_its_run(
    url: str, policy: Path, storage: AbstractStorage, tmp_path: Path
) -> None:
    """Half a run under one name and half under another teaches nothing."""
    whole = mixed(begun(policy), range(STEPS))
    first = begun(remote(url, run="one"))
    half = mixed(first, range(STEPS // 2))
    save_tree(tmp_path / "state", first.state_dict())
    # It went on for a while after the checkpoint, and asks the same again: under numbers that were not used.
    mixed(first, range(STEPS // 2, STEPS // 2 + 40))
    first.close()
    second = begun(remote(url, run="one"))
    second.load_state_dict(load_tree(tmp_path / "state"))
    assert equal(whole, half + mixed(second, range(STEPS // 2, STEPS)))
    second.report(val_accuracy=0.5)
    assert second.close().origins.keys() == {"server"}
    stored = storage.decisions("default", "one", -1, 100)
    assert [(one.attempt, one.seq, one.step) for one in stored] == [
        *((1, seq, 25 * seq) for seq in range(6)),
        *((2, seq, 25 * (seq - 2)) for seq in range(6, 10)),
    ]
    assert storage.feedback("default", "one", 9).values == {"val_accuracy": 0.5}
    assert storage.run("default", "one").state == "finished"


def promoted(storage: AbstractStorage, policy: Path, folder: Path) -> str:
    """Let the alias lead to another version, which decides the same; return the document of the one before."""
    shutil.copytree(policy, folder)
    document = folder / "policy.json"
    document.write_text(document.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    before = storage.alias("default", "default", "default").version.document
    publish(storage, folder)
    assert storage.alias("default", "default", "default").version.document != before
    return before


def test_a_policy_that_moves_on_while_a_training_begins_loses_no_decision(
    url: str, policy: Path, storage: AbstractStorage, tmp_path: Path
) -> None:
    """A learner publishes at any time: the run must be of the version that the training has, not of the newest."""
    source = remote(url, run="one")
    before = promoted(storage, policy, tmp_path / "next")
    far = begun(source)
    mixed(far, range(STEPS))
    assert far.close().origins == {"server": 8}
    assert storage.run("default", "one").version.document == before
    assert len(storage.decisions("default", "one", -1, 100)) == 8


def test_a_run_of_another_version_is_left_alone(
    url: str, policy: Path, storage: AbstractStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else began the run meanwhile: its decisions are not this policy's, and it must not be taken over."""
    source = remote(url, run="one")
    promoted(storage, policy, tmp_path / "next")
    storage.create_run("default", "one", "default", "default", SPEC)
    far = begun(source)
    expected = mixed(begun(policy), range(STEPS))
    assert equal(expected, mixed(far, range(STEPS)))
    assert far.close().origins == {"snapshot": 8}
    assert "began with another version" in caplog.text
    run = storage.run("default", "one")
    assert (run.attempt, run.state, run.next_seq) == (1, "active", 0)


def test_who_asks_for_it_is_told_of_a_service_that_has_gone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment about the service must not go on without it."""
    source = remote(url, on_error="raise")
    mixer = begun(source)
    mixed(mixer, range(2))
    monkeypatch.setattr(source._transport, "_port", 9)  # type: ignore[attr-defined]
    source._transport.close()  # type: ignore[attr-defined]
    with pytest.raises(ServiceError, match="cannot be reached"):
        mixed(mixer, range(2, STEPS))
    mixer.close()


@pytest.mark.parametrize(("stale", "kinds"), [(0, {"server", "snapshot"}), (30, {"server", "held", "snapshot"})])
def test_without_the_service_its_last_word_or_the_copy_stands_in(
    url: str, storage: AbstractStorage, policy: Path, stale: int, kinds: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done without the service is told when it is back, as what it was."""
    source = remote(url, run="one", max_stale_steps=stale)
    far, local = begun(source), begun(policy)

    def at(step: int) -> None:
        if step == 60:
            source._courier.missed()  # type: ignore[attr-defined]
            monkeypatch.setattr(source._courier, "_pause", 60.0)  # type: ignore[attr-defined]

    found = mixed(far, range(STEPS), at)
    if not stale:
        assert equal(found, mixed(local, range(STEPS)))
    monkeypatch.undo()
    with source._courier._changed:  # type: ignore[attr-defined]
        source._courier._away = False  # type: ignore[attr-defined]
        source._courier._changed.notify_all()  # type: ignore[attr-defined]
    far.report(val_accuracy=0.5)
    origins = far.close().origins
    assert origins.keys() == kinds
    stored = storage.decisions("default", "one", -1, 100)
    assert {kind: sum(one.origin == kind for one in stored) for kind in kinds} == origins
    assert all((one.probability is None) == (one.origin == "held") for one in stored)
    assert [json.loads(one.decision) for one in stored] == [decision.to_json() for _, decision in far.decisions]


@pytest.mark.slow
def test_a_killed_service_changes_nothing_and_hears_of_it_later(
    start: Callable[..., Any], policy: Path, tmp_path: Path
) -> None:
    """The whole story with processes of their own: killed in the middle, started again, told what it missed."""
    local = begun(policy)
    expected = mixed(local, range(STEPS))
    address, process = start("--port", "0", "--policy", str(policy))
    port = address.rsplit(":", 1)[1]
    far = begun(remote(address, run="one", deadline=2.0))

    def at(step: int) -> None:
        if step == STEPS // 2:
            process.send_signal(signal.SIGKILL)
            process.wait()

    assert equal(expected, mixed(far, range(STEPS), at))
    far.report(val_accuracy=0.5)
    report = far.close()
    assert sum(report.origins.values()) == len(local.decisions)
    assert report.origins.keys() == {"server", "snapshot"}

    start("--port", port)
    # The next training on this machine delivers what the first one could not.
    second = begun(remote(address, run="two"))
    mixed(second, range(1))
    second.close()
    connection = http.client.HTTPConnection("127.0.0.1", int(port))
    end = time.monotonic() + 30
    stored: list[dict[str, Any]] = []
    while len(stored) < len(local.decisions) and time.monotonic() < end:
        connection.request("GET", "/v1/projects/default/runs/one/decisions")
        stored = json.loads(connection.getresponse().read())["decisions"]
    connection.request("GET", "/v1/projects/default/runs/one")
    assert json.loads(connection.getresponse().read())["state"] == "finished"
    connection.close()
    assert [one["decision"] for one in stored] == [decision.to_json() for _, decision in local.decisions]
    assert {kind: sum(one["origin"] == kind for one in stored) for kind in report.origins} == report.origins


def test_a_service_that_hangs_costs_one_deadline(url: str, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training with a hundred decisions must not wait a hundred times."""
    expected = mixed(begun(policy), range(STEPS))
    source = remote(url)
    far = begun(source)
    with socket.create_server(("127.0.0.1", 0)) as hung:
        # It takes connections, since the system does that for it, and never answers.
        port = hung.getsockname()[1]

        def at(step: int) -> None:
            if step == 50:
                for transport in (source._transport, source._courier._transport):  # type: ignore[attr-defined]
                    monkeypatch.setattr(transport, "_port", port)
                    transport.close()
                source._options = replace(source._options, deadline=0.2)  # type: ignore[attr-defined]

        asked = []
        call = source._called  # type: ignore[attr-defined]
        monkeypatch.setattr(source, "_called", lambda *given: asked.append(time.monotonic()) or call(*given))
        assert equal(expected, mixed(far, range(STEPS), at))
        origins = far.close().origins
    # Of the decisions after the hang one was waited for.
    assert len(asked) == origins["server"] + 1
    assert origins["snapshot"] > 1
