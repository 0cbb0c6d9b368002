"""Several policies as one: the mean of what they say.

Policies that were trained alike but for their seeds err in different places. The mean of their logits errs less than
each of them, as with any ensemble; and since a policy is a small perceptron, so is the mean of several: their hidden
units side by side, which nothing connects, and one head over all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlmix.errors import PolicyError
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.network import Layers, PolicyNetwork

_SAME: tuple[tuple[str, Callable[[LearnedPolicy], Any]], ...] = (
    ("observation entries", lambda policy: policy.observation_names),
    ("catalogues", lambda policy: policy.catalogue),
    ("decisions in a training", lambda policy: policy.horizon),
    ("hidden layers", lambda policy: len(policy.network.actor) - 1),
)


def joined(policies: Sequence[LearnedPolicy]) -> LearnedPolicy:
    """Return one policy whose logits and values are the means of those of several.

    The logits are those of each policy before the softmax, so what it chooses with the highest probability is what has
    the highest product of the policies' probabilities. Observations are clipped to what any of them met in training.
    A critic is kept where all have one. The card names the members' cards.

    Args:
        policies: at least two that choose entries of one catalogue, and that read the same observation.

    Raises:
        PolicyError: fewer than two, policies that set parameters, or policies that do not fit each other.
    """
    if len(policies) < 2:
        raise PolicyError(f"two policies or more can be joined, got {len(policies)}.")
    first = policies[0]
    if any(policy.codec is not None for policy in policies):
        raise PolicyError("policies that set parameters cannot be joined: the mean of two ranges is none of them.")
    for name, part in _SAME:
        if any(part(policy) != part(first) for policy in policies):
            raise PolicyError(
                f"the policies have different {name}. Train them with the same settings but for the seed."
            )
    critics = [policy.network.critic for policy in policies]
    known = [critic for critic in critics if critic is not None]
    alike = len(known) == len(critics) and len({len(critic) for critic in known}) == 1
    return LearnedPolicy(
        network=PolicyNetwork(
            actor=_side_by_side([policy.network.actor for policy in policies]),
            critic=_side_by_side(known) if alike else None,
        ),
        observation_names=first.observation_names,
        low=torch.stack([policy.low for policy in policies]).amin(0),
        high=torch.stack([policy.high for policy in policies]).amax(0),
        catalogue=first.catalogue,
        horizon=first.horizon,
        card={"joined": len(policies), "members": [dict(policy.card) for policy in policies]},
    )


def _side_by_side(networks: Sequence[Layers]) -> Layers:
    """Return the perceptron whose output is the mean of several of the same depth."""
    layers = []
    for number, each in enumerate(zip(*networks, strict=True)):
        weights, biases = [weight for weight, _ in each], [bias for _, bias in each]
        if number == len(networks[0]) - 1:
            layers.append(_head(weights, biases, alone=number == 0))
        else:
            layers.append((torch.cat(weights) if number == 0 else _diagonal(weights), torch.cat(biases)))
    return tuple(layers)


def _head(weights: list[Tensor], biases: list[Tensor], *, alone: bool) -> tuple[Tensor, Tensor]:
    """Return the last layer: over all hidden units, or over the observation where there are none."""
    mean = torch.stack(weights).mean(0) if alone else torch.cat(weights, 1) / len(weights)
    return mean, torch.stack(biases).mean(0)


def _diagonal(blocks: list[Tensor]) -> Tensor:
    """Return matrices side by side and below each other, with zeros between them."""
    joint = torch.zeros(sum(block.shape[0] for block in blocks), sum(block.shape[1] for block in blocks))
    down = across = 0
    for block in blocks:
        joint[down : down + block.shape[0], across : across + block.shape[1]] = block
        down, across = down + block.shape[0], across + block.shape[1]
    return joint
