"""rlmix.policy.joined: several policies as one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlmix.errors import PolicyError
from rlmix.policy import artifact
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import catalogue
from rlmix.policy.joined import joined
from rlmix.policy.network import Layers, PolicyNetwork
from rlmix.policy.parametric import find_codec

READ = ("time/progress", "loss/mean", "has/val")


def perceptron(generator: torch.Generator, *widths: int) -> Layers:
    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return tuple((drawn(after, before), drawn(after)) for before, after in itertools.pairwise(widths))


def policy(seed: int, *hidden: int, critic: bool = True) -> LearnedPolicy:
    generator, entries = torch.Generator().manual_seed(seed), catalogue("cheap")
    return LearnedPolicy(
        network=PolicyNetwork(
            actor=perceptron(generator, len(READ), *hidden, len(entries)),
            critic=perceptron(generator, len(READ), *hidden, 1) if critic else None,
        ),
        observation_names=READ, low=torch.full((3,), -1.0 - seed), high=torch.full((3,), 2.0 - seed),
        catalogue=entries, horizon=8, card={"seed": seed},
    )  # fmt: skip


@pytest.mark.parametrize("hidden", [(), (7,), (16, 16), (5, 6, 7)])
def test_it_says_the_mean_of_what_they_say(hidden: tuple[int, ...]) -> None:
    """For a batch and for one observation, values with it."""
    policies = [policy(seed, *hidden) for seed in range(3)]
    found = joined(policies)
    observations = torch.randn(20, 3, generator=torch.Generator().manual_seed(9))
    for given in (observations, observations[0]):
        logits = torch.stack([each.network.logits(given) for each in policies])
        values = torch.stack([each.network.value(given) for each in policies])
        torch.testing.assert_close(found.network.logits(given), logits.mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.network.value(given), values.mean(0), rtol=1e-5, atol=1e-5)


def test_policies_of_different_widths_are_joined() -> None:
    """A wider network is still one of the same kind."""
    policies = [policy(0, 4, 9), policy(1, 11, 2)]
    given = torch.randn(5, 3, generator=torch.Generator().manual_seed(9))
    logits = torch.stack([each.network.logits(given) for each in policies])
    torch.testing.assert_close(joined(policies).network.logits(given), logits.mean(0), rtol=1e-5, atol=1e-5)


def test_it_is_written_and_read_like_any_other(tmp_path: Path) -> None:
    """And its card says what it was made of, and its range is what any of them met."""
    artifact.save(tmp_path / "policy", joined([policy(0, 8), policy(1, 8)]))
    read = artifact.load(tmp_path / "policy")
    assert read.card == {"joined": 2, "members": [{"seed": 0}, {"seed": 1}]}
    assert (read.low.tolist(), read.high.tolist()) == ([-2.0] * 3, [2.0] * 3)
    assert read.act(torch.zeros(4, 3)).shape == (4,)


def test_without_the_critic_of_one_there_is_none() -> None:
    """The mean of some critics would be that of other policies."""
    assert joined([policy(0, 8), policy(1, 8, critic=False)]).network.critic is None


def test_policies_that_do_not_fit_are_refused() -> None:
    """Each message says in what they differ."""
    one = policy(0, 8)
    entries = catalogue("v0")
    wide = perceptron(torch.Generator().manual_seed(1), 3, 8, len(entries))
    others = {
        "horizon": (replace(one, horizon=4), "decisions in a training"),
        "names": (replace(one, observation_names=(*READ[:2], "has/probe")), "observation entries"),
        "catalogue": (replace(one, catalogue=entries, network=PolicyNetwork(actor=wide)), "catalogues"),
        "depth": (policy(1, 8, 8), "hidden layers"),
    }
    for other, words in others.values():
        with pytest.raises(PolicyError, match=words):
            joined([one, other])
    with pytest.raises(PolicyError, match="two policies or more"):
        joined([one])
    codec = find_codec("hybrid", "v0")
    parametric = LearnedPolicy(
        network=PolicyNetwork(actor=perceptron(torch.Generator().manual_seed(1), 3, 8, codec.outputs)),
        observation_names=READ, low=one.low, high=one.high, catalogue=codec.catalogue, horizon=8, card={}, codec=codec,
    )  # fmt: skip
    with pytest.raises(PolicyError, match="set parameters"):
        joined([parametric, parametric])
