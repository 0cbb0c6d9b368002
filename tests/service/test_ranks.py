"""Distributed trainings: two processes that see different batches, one of which speaks to the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from rlmix.policy.artifact import LearnedPolicy, save
from rlmix.policy.network import PolicyNetwork
from rlmix.policy.parametric import HybridCodec
from rlmix.policy.space import method_space
from rlmix.service.storage.abstract import AbstractStorage

SERVED = ("service", "explored", "dying")
# One process: all cases one after another, a line of JSON for each.
SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
torch.set_num_threads(1)
import rlmix
from rlmix.errors import RlmixError

rank, store, url, parametric = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

def trained(case, source, at=lambda step: None, change=lambda mixer: None, **options):
    problem = None
    mixer = rlmix.MixController(source, num_classes=10, total_steps=200, seed=4, **options)
    change(mixer)
    try:
        for step in range(200):
            at(step)
            generator = torch.Generator().manual_seed(2 * step + rank)
            images, labels = torch.rand(8, 1, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)
            mixer(images, labels)
            mixer.observe(loss=(1.0 + rank) / (1 + step) + rank, lr=0.1 * (1 + rank))
    except RuntimeError as error:
        problem = str(error)
    except RlmixError as error:
        problem = type(error).__name__
    if problem is None:
        mixer.report(val_accuracy=0.5 + rank)
    print(json.dumps({
        "case": case, "problem": problem, "origins": dict(mixer.close().origins),
        "decisions": [(step, decision.to_json()) for step, decision in mixer.decisions],
    }), flush=True)

def connect(**options):
    return rlmix.connect(url, deadline=20.0, setup_deadline=20.0, **options)

trained("service", connect(run="service"))
trained("explored", connect(run="explored", prefetch=5), explore=True)

source = connect(run="dying")
def die(step):
    if step == 60 and rank == 0:
        source._transport._port = source._courier._transport._port = 9
        source._transport.close()
trained("dying", source, die)

trained("absent", rlmix.connect("http://127.0.0.1:9", setup_deadline=0.2), allow=["cutmix-1"])
trained("directory", parametric, explore=True)

source = connect(run="failing")
if rank == 0:
    asked = source.choose
    def choose(number, *given):
        if number == 3:
            raise RuntimeError("a mistake in the source")
        return asked(number, *given)
    source.choose = choose
trained("failing", source)

def blind(mixer):
    def look(model, step):
        raise RuntimeError("a mistake of the user's")
    if rank == 0:
        mixer._observer.look = look
trained("blind", parametric, change=blind)

try:
    rlmix.connect("http://127.0.0.1:9", on_error="raise", setup_deadline=0.2)
except RlmixError as error:
    print(json.dumps({"case": "raise", "problem": type(error).__name__}), flush=True)
dist.destroy_process_group()
"""


@pytest.fixture
def parametric(tmp_path: Path) -> Path:
    """The folder of a policy whose actions set parameters, and whose draws differ from each other."""
    codec = HybridCodec(method_space("cheap"))
    names = ("time/progress", "loss/mean")
    generator = torch.Generator().manual_seed(0)
    layers = tuple(
        (torch.randn(wide, narrow, generator=generator), torch.zeros(wide))
        for narrow, wide in ((len(names), 8), (8, codec.outputs))
    )
    made = LearnedPolicy(
        network=PolicyNetwork(actor=layers, critic=None),
        observation_names=names,
        low=torch.full((len(names),), -1.0),
        high=torch.full((len(names),), 1.0),
        catalogue=codec.catalogue,
        horizon=8,
        card={},
        codec=codec,
    )
    save(tmp_path / "parametric", made)
    return tmp_path / "parametric"


@pytest.mark.slow
def test_all_processes_go_by_the_decisions_of_the_first(
    url: str, policy: Path, parametric: Path, storage: AbstractStorage, tmp_path: Path
) -> None:
    """Two halves of a model that were trained with different mixes would be a training that nobody asked for."""
    command = [sys.executable, "-c", SCRIPT]
    places = [str(tmp_path / "store"), url, str(parametric)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), *places],
            env={**os.environ, "OMP_NUM_THREADS": "1", "RLMIX_CACHE": str(tmp_path / f"cache{rank}")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    first, second = ({line["case"]: line for line in map(json.loads, output.splitlines())} for output in outputs)
    assert [process.returncode for process in processes] == [0, 0]

    def alike(case: str) -> Any:
        assert first[case]["decisions"] == second[case]["decisions"]
        assert second[case]["origins"] == {}
        return first[case]

    for case in SERVED:
        found = alike(case)
        assert found["problem"] is None
        stored = storage.decisions("default", case, -1, 100)
        told = [[one.step, json.loads(one.decision)] for one in stored]
        assert told == found["decisions"][: len(told)]
        assert sum(found["origins"].values()) == len(found["decisions"]) == 8
        if case != "dying":
            assert len(told) == 8
            # Only the first process's word counts.
            assert storage.feedback("default", case, 7).values == {"val_accuracy": 0.5}
    assert first["service"]["origins"] == {"server": 8}
    assert first["dying"]["origins"] == {"server": 3, "snapshot": 5}
    assert alike("absent")["origins"] == {"default": 1}
    drawn = alike("directory")["decisions"]
    assert len({json.dumps(decision) for _, decision in drawn}) > 3
    assert alike("failing")["problem"] == "a mistake in the source"
    assert second["failing"]["problem"] == "RlmixError"
    assert len(first["failing"]["decisions"]) == 3
    assert alike("blind")["problem"] == "a mistake of the user's"
    assert (first["blind"]["decisions"], second["blind"]["problem"]) == ([], "RlmixError")
    assert (first["raise"]["problem"], second["raise"]["problem"]) == ("ServiceError", "RlmixError")
    assert {run.name for run in storage.runs("default", "", 100)} == {*SERVED, "failing"}
