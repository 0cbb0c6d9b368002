"""Gamma and Dirichlet variates as a function of (key, purpose, index), in plain tensor code."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlmix.ops import rng

# The acceptance rate is lowest, 0.95, at a shape of 1: all ten rounds fail in fewer than one of 1e12 draws.
_ROUNDS = 10


def _log_gamma(keys: Tensor, purpose: int, shape: tuple[int, ...], alpha: float | Tensor) -> Tensor:
    """Return the logarithms of Gamma(alpha, 1) variates, float64 [G, *shape]; `alpha` as in `gamma`."""
    concentration = rng.on_device(alpha, torch.float64, keys.device).expand(keys.shape[0], *shape)
    uniform = rng.uniform64(keys, (purpose, (*shape, 3 * _ROUNDS + 1)))[0]
    radius, angle, chance = uniform[..., 1:].reshape(*uniform.shape[:-1], _ROUNDS, 3).unbind(-1)
    normal = torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(2.0 * math.pi * angle)
    # A shape below 1 is raised by 1 and brought down again by a power of a uniform number.
    small = concentration < 1.0
    scale = (concentration + small.double() - 1.0 / 3.0).unsqueeze(-1)
    cube = (1.0 + normal / torch.sqrt(9.0 * scale)) ** 3
    inside = cube > 0
    log_cube = torch.log(cube.masked_fill(~inside, 1.0))
    accepted = inside & (torch.log(chance) < 0.5 * normal.square() + scale * (1.0 - cube + log_cube))
    first = accepted.to(torch.uint8).argmax(-1, keepdim=True)
    # Where no round was accepted the first one is kept, held inside its range.
    raised = torch.log(scale).squeeze(-1) + log_cube.gather(-1, first).squeeze(-1)
    return raised + (torch.log(uniform[..., 0]) / concentration).masked_fill(~small, 0.0)


def gamma(keys: Tensor, purpose: int, shape: tuple[int, ...], alpha: float | Tensor) -> Tensor:
    """Return Gamma(alpha, 1) variates, float32 [G, *shape], not below 0.

    Rejection from a cubed normal number (Marsaglia and Tsang 2000, https://doi.org/10.1145/358407.358414) with a fixed
    number of rounds, so that nothing has to be read back: the probability that none is accepted is below 1e-12, and the
    first proposal is taken then.

    Args:
        keys: int64 [G].
        purpose: what the numbers are for.
        shape: shape for each key.
        alpha: above 0; a float or a tensor that broadcasts to [G, *shape].
    """
    return torch.exp(_log_gamma(keys, purpose, shape, alpha)).float()


def dirichlet(keys: Tensor, purpose: int, shape: tuple[int, ...], alpha: float | Tensor) -> Tensor:
    """Return symmetric Dirichlet variates, float64 [G, *shape], which sum to 1 along the last axis.

    Gamma variates over their sum, formed from logarithms, so that no small `alpha` makes every part 0.

    Args:
        keys: int64 [G].
        purpose: what the numbers are for.
        shape: shape for each key; the last axis holds the parts of one variate.
        alpha: above 0; a float or a tensor that broadcasts to [G, *shape].
    """
    return torch.softmax(_log_gamma(keys, purpose, shape, alpha), -1)
