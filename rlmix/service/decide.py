"""What a policy answers to one question: pure, so that the same question always has the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from rlmix.ops.rng import Streams
from rlmix.policy.decision import Decision
from rlmix.policy.sources import Learned


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An answer.

    Attributes:
        entry: position in the policy's catalogue.
        decision: what it means.
        probability: of the entry, in [0, 1].
        value: what the critic expects; None without a critic.
    """

    entry: int
    decision: Decision
    probability: float
    value: float | None


def decide(policy: Learned, observation: Tensor, allowed: Sequence[int] | None, explore: int | None) -> Choice:
    """Return what the policy chooses: what a client with a copy of it would choose.

    Args:
        policy: the policy.
        observation: float32 [D], its entries in its order.
        allowed: the entries that may be chosen, one at least; None for all.
        explore: a key in [0, 2**63) to draw with; None for the most probable entry.
    """
    mask = None
    if allowed is not None:
        mask = torch.zeros(len(policy.names), dtype=torch.bool)
        mask[list(allowed)] = True
    streams = None if explore is None else Streams([explore])
    entry, probability = policy.policy.answer(observation, mask, streams)
    network = policy.policy.network
    seen = torch.clamp(observation, policy.policy.low, policy.policy.high)
    return Choice(
        entry=entry,
        decision=policy.decision(entry, observation, streams),
        probability=probability,
        value=None if network.critic is None else float(network.value(seen)),
    )
