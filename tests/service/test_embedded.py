"""Trainings that write to a database themselves, several at a time, without a server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from rlmix.errors import ConfigError, ServiceError
from rlmix.policy.controller import MixController
from rlmix.policy.remote import connect
from rlmix.service.embedded import Embedded
from rlmix.service.server import publish
from rlmix.service.storage.opening import open_storage

STEPS = 200


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLMIX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def database(tmp_path: Path, policy: Path) -> str:
    """The address of a database that has the policy."""
    url = f"sqlite:///{tmp_path / 'rlmix.db'}"
    with contextlib.closing(open_storage(url)) as storage:
        storage.create_project("default")
        publish(storage, policy)
    return url


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


def test_a_database_is_written_without_a_server(database: str, policy: Path) -> None:
    """The same calls, decisions and record as with one."""
    local, mine = begun(policy, explore=True), begun(connect(database, run="one", setup_deadline=20.0), explore=True)
    for one, two in zip(mixed(local, range(STEPS)), mixed(mine, range(STEPS)), strict=True):
        assert torch.equal(one, two)
    mine.report(val_accuracy=0.5)
    assert mine.close().origins == {"snapshot": 8}
    # Nobody is left who could keep the file from others, and a server may have it.
    assert not [thread for thread in threading.enumerate() if "rlmix" in thread.name]
    with contextlib.closing(open_storage(database)) as storage:
        stored = storage.decisions("default", "one", -1, 100)
        assert [(one.step, json.loads(one.decision)) for one in stored] == [
            (step, decision.to_json()) for step, decision in local.decisions
        ]
        assert all(one.probability for one in stored)
        assert storage.feedback("default", "one", 7).values == {"val_accuracy": 0.5}
        assert storage.run("default", "one").state == "finished"


def test_a_training_goes_on_in_its_run(database: str) -> None:
    """Claims are the same as with a server."""
    for attempt in (1, 2):
        mixer = begun(connect(database, run="one", setup_deadline=20.0))
        mixed(mixer, range(30))
        mixer.close()
        with contextlib.closing(open_storage(database)) as storage:
            run = storage.run("default", "one")
            assert (run.attempt, run.next_seq) == (attempt, 2 * attempt)


def test_a_database_that_cannot_be_used_ends_no_training(tmp_path: Path, policy: Path) -> None:
    """It is treated as a service that is away: the default mixes, or who asks for it is told."""
    (tmp_path / "broken.db").write_bytes(b"no database" * 1000)
    url = f"sqlite:///{tmp_path / 'broken.db'}"
    mixer = begun(connect(url, default=policy, setup_deadline=20.0))
    mixed(mixer, range(30))
    assert mixer.close().origins == {"default": 2}
    with pytest.raises(ServiceError, match="broken.db"):
        connect(url, on_error="raise", setup_deadline=20.0)
    with pytest.raises(ConfigError, match="belongs to a service"):
        connect("sqlite:/rlmix.db", run="one")


def test_a_call_ends_in_time_while_another_process_keeps_the_database(database: str) -> None:
    """A lock is waited for by a thread in the background alone."""
    with contextlib.closing(open_storage(database, shared=True)) as other:
        held, release = threading.Event(), threading.Event()

        def hold(connection: object) -> None:
            held.set()
            release.wait(30)

        holder = threading.Thread(target=other._engine.write, args=(hold,))  # type: ignore[attr-defined]
        holder.start()
        assert held.wait(30)
        mine = Embedded(database)
        try:
            with pytest.raises(ServiceError, match="in time"):
                mine.call("PUT", "/v1/projects/other", None, seconds=0.3, limit=1000)
        finally:
            release.set()
            holder.join()
        assert mine.call("PUT", "/v1/projects/other", None, seconds=20, limit=1000).status in (200, 201)
        with pytest.raises(ServiceError, match="more than 3 bytes"):
            mine.call("GET", "/v1/projects", None, seconds=20, limit=3)
        mine.close()


WRITER = """
import sys, torch, rlmix
torch.set_num_threads(1)
for number in range(3):
    source = rlmix.connect(sys.argv[1], run=f"{sys.argv[2]}-{number}", setup_deadline=60.0)
    mixer = rlmix.MixController(source, num_classes=10, total_steps=200, seed=number)
    for step in range(200):
        mixer(torch.rand(4, 1, 8, 8), torch.randint(10, (4,)))
    mixer.report(val_accuracy=number / 10)
    assert mixer.close().origins == {"snapshot": 8}, mixer.close()
"""


@pytest.mark.slow
def test_several_processes_write_to_one_file(database: str) -> None:
    """One machine, one file, no server: nothing is lost between them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITER, database]
    processes = [subprocess.Popen([*command, f"p{number}"], env=environment) for number in range(3)]
    try:
        assert [process.wait(300) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    # On a busy machine five seconds may not have been enough for what a training had left to tell.
    last = connect(database, setup_deadline=60.0)
    courier = last._courier  # type: ignore[attr-defined]
    with courier._changed:
        assert courier._changed.wait_for(lambda: not courier._away and not courier._letters, 60)
    last.close(finished=False)
    with contextlib.closing(open_storage(database)) as storage:
        runs = storage.runs("default", "", 100)
        assert [run.state for run in runs] == ["finished"] * 9
        for run in runs:
            assert [one.seq for one in storage.decisions("default", run.name, -1, 100)] == list(range(8))
            assert storage.feedback("default", run.name, 7).values == {"val_accuracy": int(run.name[-1]) / 10}
