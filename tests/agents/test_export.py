"""The deployed network answers as the trained one does."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from rlmix.agents.callbacks import Ranges
from rlmix.agents.export import export
from rlmix.policy.artifact import load, save
from rlmix.policy.codec import catalogue

CHEAP = catalogue("cheap")
NAMES = ("a", "constant", "b", "zero", "c")


def trained_policy():
    """Return a policy with weights large enough that a small mistake shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        box = gymnasium.spaces.Box(-5.0, 5.0, (len(NAMES),), np.float32)
        arch = {"pi": [16, 16], "vf": [16, 16]}
        actions = gymnasium.spaces.Discrete(len(CHEAP))
        policy = ActorCriticPolicy(box, actions, lambda _: 1e-3, net_arch=arch, activation_fn=torch.nn.Tanh)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.copy_(0.5 * torch.randn_like(parameter))
    return policy


def observations(count=200):
    rows = 2.0 * torch.randn(count, len(NAMES), generator=torch.Generator().manual_seed(1))
    rows[:, 1], rows[:, 3] = 0.7, 0.0
    return rows


def exported(policy, rows):
    ranges = Ranges.empty(len(NAMES))
    ranges.add(rows)
    return export(policy, ranges=ranges, names=NAMES, catalogue=CHEAP, horizon=8, card={"seed": 0})


def test_logits_and_values_agree_to_a_millionth_on_training_observations(tmp_path):
    """A transposed layer, a lost bias or a wrong order of entries would deploy another policy than was evaluated."""
    policy, rows = trained_policy(), observations()
    save(tmp_path, exported(policy, rows))
    deployed = load(tmp_path)
    assert deployed.observation_names == ("a", "b", "c")
    kept = rows[:, deployed.columns(NAMES)]
    with torch.no_grad():
        logits = policy.get_distribution(rows).distribution.logits
        values = policy.predict_values(rows).squeeze(1)
    found = deployed.network.logits(kept)
    torch.testing.assert_close(found - found.logsumexp(1, keepdim=True), logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(deployed.network.value(kept), values, atol=1e-6, rtol=1e-6)
    assert torch.equal(deployed.act(kept), torch.as_tensor(policy.predict(rows.numpy(), deterministic=True)[0]))


def test_entries_that_never_varied_are_left_out_and_ranges_are_those_of_training():
    """Untrained weights of a constant entry would act on whatever the entry shows elsewhere."""
    rows = observations()
    deployed = exported(trained_policy(), rows)
    assert torch.equal(deployed.low, rows[:, [0, 2, 4]].amin(0))
    assert torch.equal(deployed.high, rows[:, [0, 2, 4]].amax(0))
    assert dict(deployed.card) == {"seed": 0}


@pytest.mark.parametrize("count", [1, 5])
def test_a_policy_that_saw_one_observation_only_can_still_be_exported(count):
    """The very first wave may show every actor the same; saving must not fail for want of an input."""
    rows = observations(1).expand(count, -1)
    policy = trained_policy()
    deployed = exported(policy, rows)
    assert deployed.observation_names == ("a",)
    assert deployed.act(rows[:, :1]).tolist() == policy.predict(rows.numpy(), deterministic=True)[0].tolist()


def test_the_trained_policy_is_not_changed():
    """Folding must not write into the weights that training goes on with."""
    policy = trained_policy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    exported(policy, observations())
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
