"""The policy's network against torch's own layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from rlmix.errors import PolicyError
from rlmix.policy.network import Layers, PolicyNetwork, sizes


def perceptron(*widths: int, seed: int = 0) -> Layers:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (torch.randn(two, one, generator=generator) / one**0.5, torch.randn(two, generator=generator))
        for one, two in itertools.pairwise(widths)
    )


def reference(layers: Layers) -> nn.Module:
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        modules += [linear, nn.Tanh()]
    return nn.Sequential(*modules[:-1])


@pytest.mark.parametrize("hidden", [(), (7,), (64, 64), (5, 6, 7)])
def test_outputs_are_those_of_torch_modules(hidden: tuple[int, ...]) -> None:
    """The deployed network must be the one that was trained."""
    actor, critic = perceptron(12, *hidden, 5), perceptron(12, *hidden, 1, seed=1)
    network = PolicyNetwork(actor=actor, critic=critic)
    observations = torch.randn(9, 12, generator=torch.Generator().manual_seed(2))
    expected = reference(actor)(observations)
    assert torch.allclose(network.logits(observations), expected, atol=1e-5)
    assert torch.allclose(torch.stack([network.logits(one) for one in observations]), expected, atol=1e-5)
    assert torch.allclose(network.value(observations), reference(critic)(observations).squeeze(1), atol=1e-5)
    assert network.value(observations[0]).shape == ()
    assert (network.inputs, network.outputs, sizes(actor)) == (12, 5, (12, *hidden, 5))


def test_weights_are_not_written() -> None:
    """`tanh_` works in place: on results only."""
    layers = perceptron(4, 3, 2)
    copies = [(weight.clone(), bias.clone()) for weight, bias in layers]
    observation = torch.randn(4)
    before = observation.clone()
    PolicyNetwork(actor=layers).logits(observation)
    assert torch.equal(observation, before)
    assert all(
        torch.equal(one, two) for pair in zip(layers, copies, strict=True) for one, two in zip(*pair, strict=True)
    )


def test_a_policy_without_critic_says_so() -> None:
    """Only learning needs the critic; asking for a value without it is a mistake of the caller."""
    with pytest.raises(PolicyError, match="no critic"):
        PolicyNetwork(actor=perceptron(4, 2)).value(torch.zeros(4))


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ((), "`actor` has no layers"),
        (perceptron(4, 3) + perceptron(2, 2), r"layer 1 must have a weight \[out, 3\]"),
        (((torch.zeros(3), torch.zeros(3)),), "layer 0 must have a weight"),
        (((torch.zeros(3, 4), torch.zeros(2)),), r"got weight \[3, 4\] and bias \[2\]"),
        (((torch.zeros(3, 4).double(), torch.zeros(3)),), "must be float32, got torch.float64"),
        (((torch.full((3, 4), torch.nan), torch.zeros(3)),), "not finite"),
    ],
)
def test_layers_that_form_no_network_are_refused(layers: Layers, match: str) -> None:
    """Files from strangers end here."""
    with pytest.raises(PolicyError, match=match):
        PolicyNetwork(actor=layers)


def test_a_critic_must_fit_the_actor() -> None:
    """One observation goes into both."""
    with pytest.raises(PolicyError, match=r"`critic` must lead from 4 numbers to 1, got \[5, 1\]"):
        PolicyNetwork(actor=perceptron(4, 2), critic=perceptron(5, 1))
