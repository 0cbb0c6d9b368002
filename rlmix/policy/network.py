"""The network of a learned policy: plain weights, fast for one observation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from torch import Tensor
from torch.nn import functional as F

from rlmix.errors import PolicyError

Layers: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""Weight [out, in] and bias [out] of each linear layer, float32 on the CPU; Tanh stands between two of them."""


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyNetwork:
    """Two perceptrons with Tanh units: the actor gives a logit for each entry, the critic one value.

    Args:
        actor: its layers, the head last.
        critic: its layers, or None; only learning needs it.

    Raises:
        PolicyError: layers that do not fit each other, another dtype, or numbers that are not finite.
    """

    actor: Layers
    critic: Layers | None = None

    def __post_init__(self) -> None:
        """Check that the layers form a network."""
        _check("actor", self.actor)
        if self.critic is None:
            return
        _check("critic", self.critic)
        if self.critic[0][0].shape[1] != self.inputs or self.critic[-1][1].shape[0] != 1:
            raise PolicyError(f"`critic` must lead from {self.inputs} numbers to 1, got {list(sizes(self.critic))}.")

    @property
    def inputs(self) -> int:
        """Length of an observation."""
        return self.actor[0][0].shape[1]

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return self.actor[-1][1].shape[0]

    def logits(self, observations: Tensor) -> Tensor:
        """Return float32 [outputs] for an observation [inputs], or [N, outputs] for [N, inputs]."""
        return _forward(self.actor, observations)

    def value(self, observations: Tensor) -> Tensor:
        """Return float32 [] for an observation [inputs], or [N] for [N, inputs].

        Raises:
            PolicyError: the policy was saved without its critic.
        """
        if self.critic is None:
            raise PolicyError("this policy has no critic. Only choosing is possible.")
        return _forward(self.critic, observations).squeeze(-1)


def sizes(layers: Layers) -> tuple[int, ...]:
    """Return the lengths of input, hidden layers and output."""
    return (layers[0][0].shape[1], *(bias.shape[0] for _, bias in layers))


def _check(name: str, layers: Layers) -> None:
    if not layers:
        raise PolicyError(f"`{name}` has no layers.")
    width = layers[0][0].shape[-1] if layers[0][0].dim() == 2 else -1
    for number, (weight, bias) in enumerate(layers):
        given = f"weight {list(weight.shape)} and bias {list(bias.shape)}"
        if weight.dim() != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1] or 0 in weight.shape:
            inputs = width if number else "in"
            raise PolicyError(
                f"`{name}` layer {number} must have a weight [out, {inputs}] and a bias [out], got {given}."
            )
        if weight.dtype != torch.float32 or bias.dtype != torch.float32:
            raise PolicyError(f"`{name}` layer {number} must be float32, got {weight.dtype} and {bias.dtype}.")
        if not bool(torch.isfinite(weight).all() & torch.isfinite(bias).all()):
            raise PolicyError(f"`{name}` layer {number} holds numbers that are not finite.")
        width = weight.shape[0]


@torch.inference_mode()
def _forward(layers: Layers, observations: Tensor) -> Tensor:
    # For one observation `addmv` on 1-D tensors has a third of the overhead of a module that goes through [1, D].
    linear = torch.addmv if observations.dim() == 1 else _batched
    values = observations
    for weight, bias in layers[:-1]:
        values = linear(bias, weight, values).tanh_()
    weight, bias = layers[-1]
    return linear(bias, weight, values)


def _batched(bias: Tensor, weight: Tensor, values: Tensor) -> Tensor:
    return F.linear(values, weight, bias)
