"""Evolution strategies as pure tensor code: what to try, and what to make of how well it went.

Salimans et al. 2017, "Evolution Strategies as a Scalable Alternative to Reinforcement Learning"
(https://arxiv.org/abs/1703.03864), Alg. 1 with the antithetic pairs and the rank shaping of its section 2.1, and Adam
(Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, Alg. 1) as the optimiser, as in the authors' code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from rlmix.errors import CheckpointError, InputError
from rlmix.ops import rng
from rlmix.policy.network import Layers

# What the perturbations are drawn for.
_NOISE = 130
_DECAYS = 0.9, 0.999
_EPSILON = 1e-8


@final
class EvolutionStrategy:
    """A search distribution N(centre, sigma^2 I) that climbs the fitness of its members.

    `ask` gives the members of this generation, `tell` takes their fitness and begins the next one. The perturbations
    are a function of seed and generation, so that `tree` is the whole state.

    Args:
        centre: float32 [P], where the search begins.
        pairs: antithetic pairs in a generation: 2 * pairs members.
        sigma: standard deviation of the perturbations, above 0.
        learning_rate: step size of Adam.
        weight_decay: factor of the L2 penalty, added to the gradient as the authors do.
        seed: in [0, 2**63).

    Raises:
        InputError: `pairs` below 1, or `sigma` not above 0.
    """

    def __init__(
        self, centre: Tensor, *, pairs: int, sigma: float, learning_rate: float, weight_decay: float, seed: int
    ) -> None:
        if pairs < 1 or not 0 < sigma < math.inf:
            raise InputError(f"`pairs` must be at least 1 and `sigma` above 0, got {pairs} and {sigma}.")
        self.centre = centre.detach().clone()
        self.generation = 0
        self._pairs, self._sigma, self._seed = pairs, sigma, seed
        self._rate, self._decay = learning_rate, weight_decay
        self._first, self._second = torch.zeros_like(self.centre), torch.zeros_like(self.centre)

    def ask(self) -> Tensor:
        """Return the members, float32 [pairs, 2, P]: centre plus and centre minus the same perturbation."""
        change = self._sigma * self._noise()
        return torch.stack([self.centre + change, self.centre - change], dim=1)

    def tell(self, fitness: Tensor) -> float:
        """Move the centre and begin the next generation.

        The gradient is 1/(n sigma) * sum of u_i eps_i over all n = 2 * pairs members, with their shaped fitness u.

        Args:
            fitness: float [pairs, 2] of the members that `ask` gives; higher is better.

        Returns:
            The length of the step.

        Raises:
            InputError: another shape, or numbers that are not finite.
        """
        if fitness.shape != (self._pairs, 2) or not bool(torch.isfinite(fitness).all()):
            given = f"{list(fitness.shape)} with {int((~torch.isfinite(fitness)).sum())} numbers that are not finite"
            raise InputError(f"`fitness` must be finite and of shape [{self._pairs}, 2], got {given}.")
        shaped = centred_ranks(fitness.flatten()).view_as(fitness)
        weights = (shaped[:, 0] - shaped[:, 1]).float()
        ascent = weights @ self._noise() / (2 * self._pairs * self._sigma)
        step = self._adam(self._decay * self.centre - ascent)
        self.centre = self.centre - step
        return float(step.norm())

    def tree(self) -> dict[str, Any]:
        """Return the state for `restore` and `rlmix._files.save_tree`."""
        return {
            "generation": self.generation,
            "centre": self.centre,
            "first": self._first,
            "second": self._second,
        }

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Go back to what `tree` returned.

        Raises:
            CheckpointError: it is of a network of another size, or damaged.
        """
        try:
            centre, first, second = (tree[name].clone() for name in ("centre", "first", "second"))
            generation = int(tree["generation"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"the state of the evolution strategy is damaged ({error!r}).") from error
        if not centre.shape == first.shape == second.shape == self.centre.shape:
            raise CheckpointError(
                f"the state has {list(centre.shape)} parameters, this strategy {list(self.centre.shape)}."
            )
        self.centre, self._first, self._second, self.generation = centre, first, second, generation

    def _noise(self) -> Tensor:
        key = torch.tensor([rng.derive(self._seed, self.generation)])
        return rng.normal(key, _NOISE, (self._pairs, self.centre.numel()))[0]

    def _adam(self, gradient: Tensor) -> Tensor:
        self.generation += 1
        slow, slower = _DECAYS
        self._first = slow * self._first + (1 - slow) * gradient
        self._second = slower * self._second + (1 - slower) * gradient.square()
        mean = self._first / (1 - slow**self.generation)
        scale = (self._second / (1 - slower**self.generation)).sqrt()
        return self._rate * mean / (scale + _EPSILON)


def centred_ranks(values: Tensor) -> Tensor:
    """Return the ranks of values, scaled to [-0.5, 0.5], float64 [n]; equal values share the mean of their ranks.

    The authors break ties by position. Here pairs often tie: a small perturbation that changes no choice gives two
    trainings that are equal bit for bit, and the order in memory must not become a gradient.

    Args:
        values: [n].
    """
    above = (values.unsqueeze(1) > values).sum(1).double()
    equal = (values.unsqueeze(1) == values).sum(1).double() - 1
    return (above + 0.5 * equal) / max(1, len(values) - 1) - 0.5


def initial(widths: Sequence[int], seed: int) -> Tensor:
    """Return the parameters of a network with these widths, float32 [P]: orthogonal layers and a head of zeros.

    With a head of zeros no entry is preferred before anything is learned. A weight is its parameter over the square
    root of the layer's inputs, see `layers_of`.

    Args:
        widths: lengths of input, hidden layers and output.
        seed: in [0, 2**63).
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[Tensor] = []
    for number, (inputs, outputs) in enumerate(_shapes(widths)):
        weight = torch.zeros(outputs, inputs)
        if number < len(widths) - 2:
            nn.init.orthogonal_(weight, gain=math.sqrt(2 * inputs), generator=generator)
        parts += [weight.flatten(), torch.zeros(outputs)]
    return torch.cat(parts)


def layers_of(parameters: Tensor, widths: Sequence[int]) -> Layers:
    """Return the layers of one network; a weight is its parameter over the square root of the layer's inputs.

    Args:
        parameters: float32 [P].
        widths: lengths of input, hidden layers and output.
    """
    return tuple((weight[0].clone(), bias[0].clone()) for weight, bias in _unpacked(parameters.unsqueeze(0), widths))


def member_logits(members: Tensor, observations: Tensor, widths: Sequence[int]) -> Tensor:
    """Return what M networks answer, each to its own observations, float32 [M, k, E].

    Args:
        members: float32 [M, P].
        observations: float32 [M, k, D].
        widths: lengths of input, hidden layers and output.
    """
    *hidden, (weight, bias) = _unpacked(members, widths)
    values = observations
    for matrix, shift in hidden:
        values = torch.baddbmm(shift.unsqueeze(1), values, matrix.transpose(1, 2)).tanh()
    return torch.baddbmm(bias.unsqueeze(1), values, weight.transpose(1, 2))


def _shapes(widths: Sequence[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(widths))


def _unpacked(members: Tensor, widths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return weights [M, out, in] and biases [M, out] of each layer.

    A weight is its parameter over sqrt(in) (Jacot et al. 2018, https://arxiv.org/abs/1806.07572). Without that, the
    perturbations of 64 weights drown that of the one bias, every member is a random function of its observations, and
    even the best entry for all of them is not found from rewards as noisy as these.
    """
    sizes = [size for inputs, outputs in _shapes(widths) for size in (inputs * outputs, outputs)]
    parts = torch.split(members, sizes, dim=1)
    return [
        (weight.reshape(-1, outputs, inputs) / math.sqrt(inputs), bias)
        for weight, bias, (inputs, outputs) in zip(parts[::2], parts[1::2], _shapes(widths), strict=True)
    ]
