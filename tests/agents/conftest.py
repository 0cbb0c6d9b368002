"""What a training of an agent leaves, made without one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rlmix.monitor.board import Board
from rlmix.policy.artifact import LearnedPolicy, save
from rlmix.policy.codec import catalogue
from rlmix.policy.network import PolicyNetwork

CHEAP = catalogue("cheap")


def make_policy(seed=0, **config) -> LearnedPolicy:
    """Return a policy with weights by its seed, as a training leaves it."""
    read = ("time/progress", "probe/accuracy")
    weights = 3.0 * torch.randn(len(CHEAP), len(read), generator=torch.Generator().manual_seed(seed))
    return LearnedPolicy(
        network=PolicyNetwork(actor=((weights, torch.zeros(len(CHEAP))),), critic=None),
        observation_names=read,
        low=-torch.ones(len(read)),
        high=torch.ones(len(read)),
        catalogue=CHEAP,
        horizon=4,
        card={
            "algorithm": "PPO", "seed": seed, "timesteps": 96, "config": {"seed": seed, "catalogue": "cheap", **config},
            "versions": {"rlmix": "0.1.0", "torch": "2.9"},
        },
    )  # fmt: skip


def make_training(folder, seed=0, gains=(-0.01, 0.02), **config):
    """Write a training of one session: a policy, and evaluations after 32, 64 ... decisions."""
    save(folder / "policy", make_policy(seed, **config))
    with Board(folder) as board:
        for place, gain in enumerate(gains):
            board.scalars(32 * (place + 1), {"eval/accuracy_to_uniform": gain, "train/loss": 1.0})
    return folder


@pytest.fixture(scope="session")
def training_folder() -> Callable:
    """Return what writes the folder of a finished training."""
    return make_training
