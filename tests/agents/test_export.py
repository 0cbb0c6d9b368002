"""The deployed network answers as the trained one does."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from rlmix.agents.callbacks import Ranges
from rlmix.agents.export import export
from rlmix.agents.hybrid import HybridPolicy
from rlmix.envs.shell import action_space
from rlmix.policy.artifact import load, save
from rlmix.policy.codec import catalogue
from rlmix.policy.controller import MixController
from rlmix.policy.parametric import find_codec
from rlmix.policy.sources import Learned

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


@pytest.mark.parametrize("kind", ["multidiscrete", "hybrid"])
def test_deployed_policies_decide_as_the_mode_of_the_trained_one(tmp_path, kind):
    """Methods exactly, parameters to a millionth, over the network, the file and the codec."""
    codec = find_codec(kind, "v0")
    box = gymnasium.spaces.Box(-5.0, 5.0, (len(NAMES),), np.float32)
    head = {"codec": codec} if kind == "hybrid" else {}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        policy = (HybridPolicy if head else ActorCriticPolicy)(
            box, action_space(codec), lambda _: 1e-3, net_arch={"pi": [16], "vf": [16]}, activation_fn=torch.nn.Tanh,
            **head,
        )  # fmt: skip
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.copy_(0.5 * torch.randn_like(parameter))
    rows, ranges = observations(), Ranges.empty(len(NAMES))
    ranges.add(rows)
    save(tmp_path, export(policy, ranges=ranges, names=NAMES, catalogue=codec, horizon=8, card={}))
    deployed = load(tmp_path)
    expected, _ = policy.predict(rows.numpy(), deterministic=True)
    kept = rows[:, deployed.columns(NAMES)]
    found = set()
    source = Learned(deployed)
    allowed = torch.ones(len(codec.catalogue), dtype=torch.bool)
    for row, action in zip(kept, expected.tolist(), strict=True):
        entry = source.choose(0, row, allowed, None)
        decision, wanted = source.decision(entry, row, None), codec.decode(action)
        assert (decision.method, decision.probability) == (wanted.method, wanted.probability)
        for (name, value), (other, target) in zip(decision.params, wanted.params, strict=True):
            assert name == other
            assert value == (pytest.approx(target, rel=1e-6, abs=1e-6) if isinstance(target, float) else target)
        found.add(decision.method)
    assert {"mixup", "rmix", "grafting"} <= found
    torch.testing.assert_close(deployed.act(kept).float(), torch.as_tensor(expected).float(), atol=1e-6, rtol=0)


def test_a_controller_carries_out_the_parameters_that_were_set():
    """The entry's middle would be mixed with, if only the entry were carried over."""
    codec = find_codec("hybrid", "cheap")
    box = gymnasium.spaces.Box(-5.0, 5.0, (1,), np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        policy = HybridPolicy(box, action_space(codec), lambda _: 1e-3, codec=codec, activation_fn=torch.nn.Tanh)
        with torch.no_grad():
            policy.action_net.bias[1] = 9.0
            # mixup's concentrations drift with progress.
            policy.action_net.weight[4 + 2 : 4 + 4].mul_(200.0)
    ranges = Ranges.empty(1)
    ranges.add(torch.tensor([[-1.0], [1.0]]))
    exported = export(policy, ranges=ranges, names=("time/progress",), catalogue=codec, horizon=4, card={})
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8) % 4
    arguments = {"num_classes": 4, "total_steps": 8, "seed": 1}
    mixer, state, mixed = MixController(Learned(exported), **arguments), None, []
    for step in range(8):
        if step == 3:
            state = mixer.state_dict()
        mixed.append(mixer(images, labels)[0])
    decisions = [decision for _, decision in mixer.decisions]
    assert {decision.method for decision in decisions} == {"mixup"}
    assert len(set(decisions)) == 4
    actions, _ = policy.predict(np.array([[-1.0], [-0.5], [0.0], [0.5]], np.float32), deterministic=True)
    for decision, action in zip(decisions, actions.tolist(), strict=True):
        assert dict(decision.params)["alpha"] == pytest.approx(dict(codec.decode(action).params)["alpha"], rel=1e-6)
    # Each batch is mixed as its Decision alone would mix it.
    for step in range(8):
        fixed = MixController(decisions[step // 2], **arguments)
        for _ in range(step):
            fixed(images, labels)
        assert torch.equal(fixed(images, labels)[0], mixed[step])
    again = MixController(Learned(exported), **arguments)
    again.load_state_dict(state)
    assert all(torch.equal(again(images, labels)[0], mixed[step]) for step in range(3, 8))
    explored = [MixController(Learned(exported), explore=True, **arguments) for _ in range(2)]
    for one in explored:
        for _ in range(8):
            one(images, labels)
    assert explored[0].decisions == explored[1].decisions != mixer.decisions
