"""Small training problems."""

from __future__ import annotations

import pytest

from rlmix.envs.instances import Instance, InstanceSet


def make_instance(name: str, **changes) -> Instance:
    fields = {
        "id": name,
        "data": "digits",
        "seed": sum(map(ord, name)),
        "train_size": 100,
        "noise": 0.2,
        "model": "mlp",
        "batch_size": 16,
        "total_steps": 8,
        "learning_rate": 0.1,
    }
    return Instance(**{**fields, **changes})


@pytest.fixture(scope="session")
def instance():
    """Return a function that makes an instance of 8 steps, with changes."""
    return make_instance


@pytest.fixture(scope="session")
def tiny() -> InstanceSet:
    """Return instances of two buckets, with 4 decisions each."""
    short = [make_instance(f"short-{index}", train_size=60 + 40 * index) for index in range(4)]
    long = [make_instance(f"long-{index}", total_steps=16, noise=0.1 * index) for index in range(3)]
    return InstanceSet("tiny", (*short, *long), 4)
