"""Policies that have learned nothing: where learning from real trainings can begin."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlmix.errors import ConfigError
from rlmix.policy import signals
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import Catalogue
from rlmix.policy.network import Layers, PolicyNetwork


def untrained(
    catalogue: Catalogue, *, horizon: int = 8, hidden: Sequence[int] = (64, 64), seed: int = 0
) -> LearnedPolicy:
    """Return a policy that chooses each entry with the same probability whatever it sees, and expects 0.

    Args:
        catalogue: what it chooses from.
        horizon: decisions in a training, at least 1.
        hidden: widths of the hidden layers of actor and critic, each at least 1.
        seed: of the hidden weights, in [0, 2**32).

    Raises:
        ConfigError: a value out of its range.
    """
    if horizon < 1 or not hidden or min(hidden) < 1 or not 0 <= seed < 2**32:
        raise ConfigError(
            f"`horizon` and the widths in `hidden` must be at least 1 and `seed` in [0, 2**32), got {horizon}, "
            f"{list(hidden)} and {seed}."
        )
    names = signals.names(catalogue)
    generator = torch.Generator().manual_seed(seed)
    widths = (len(names), *hidden)
    low, high = torch.tensor([_range(name) for name in names]).unbind(1)
    return LearnedPolicy(
        network=PolicyNetwork(actor=_layers(widths, len(catalogue), generator), critic=_layers(widths, 1, generator)),
        observation_names=names,
        low=low,
        high=high,
        catalogue=catalogue,
        horizon=horizon,
        card={"algorithm": "none: untrained, chooses each entry with the same probability", "seed": seed},
    )


def _layers(widths: Sequence[int], outputs: int, generator: torch.Generator) -> Layers:
    """Return orthogonal hidden layers, as PPO begins with, and a head of zeros."""
    hidden: list[tuple[Tensor, Tensor]] = []
    for inside, outside in itertools.pairwise(widths):
        weight = nn.init.orthogonal_(torch.empty(outside, inside), gain=math.sqrt(2.0), generator=generator)
        hidden.append((weight, torch.zeros(outside)))
    return (*hidden, (torch.zeros(outputs, widths[-1]), torch.zeros(outputs)))


def _range(name: str) -> tuple[float, float]:
    """Return the lowest and highest value that an observation entry can have."""
    shares = ("has/", "used/", "last/")
    return (0.0, 1.0) if name.startswith(shares) else (-signals.LIMIT, signals.LIMIT)
