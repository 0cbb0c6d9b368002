"""Agents of a catalogue beside agents whose actions set parameters: the same trainings, fairly compared."""

from __future__ import annotations

import pytest
import torch

from rlmix.agents.agent import AbstractAgent, EncodedAgent, Feedback, LearnedAgent
from rlmix.agents.baselines.fixed import FixedAgent
from rlmix.agents.comparison import LEARNED, compare
from rlmix.agents.evaluate import evaluate
from rlmix.envs.instances import Family, Recipe
from rlmix.errors import InputError, UnknownNameError
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import catalogue
from rlmix.policy.network import PolicyNetwork
from rlmix.policy.parametric import find_codec
from rlmix.policy.signals import names

CHEAP, HYBRID = catalogue("cheap"), find_codec("hybrid", "cheap")


def tiny(part, count=2):
    family = Family(data="digits", total_steps={8: 1}, train_size=(100, 200))
    return Recipe(name="tiny", families=(family,), horizon=4).generate(part, count)


def policy():
    """Return a policy that mixes with alpha = 2 all the time."""
    bias = torch.zeros(HYBRID.outputs)
    bias[1] = 5.0
    return LearnedPolicy(
        network=PolicyNetwork(actor=((torch.zeros(HYBRID.outputs, 1), bias),)), observation_names=("time/progress",),
        low=torch.tensor([-1.0]), high=torch.tensor([1.0]), catalogue=HYBRID.catalogue, horizon=4, card={},
        codec=HYBRID,
    )  # fmt: skip


def test_encoded_agents_train_exactly_what_they_train_alone():
    """A comparison in which the baselines are others than elsewhere would be none."""
    fixed: dict[str, AbstractAgent] = {name: FixedAgent(name, CHEAP) for name in CHEAP.names}
    alone = evaluate(fixed, tiny("heldout"), catalogue=CHEAP)
    encoded = {name: EncodedAgent(agent, CHEAP, HYBRID) for name, agent in fixed.items()}
    beside = evaluate(
        {LEARNED: LearnedAgent(policy(), names(HYBRID.catalogue)), **encoded}, tiny("heldout"), catalogue=HYBRID
    )
    for name in CHEAP.names:
        assert [run.score for run in beside.of(name)] == [run.score for run in alone.of(name)]
        assert [run.accuracy for run in beside.of(name)] == [run.accuracy for run in alone.of(name)]
    assert beside.of("mixup-0.2")[0].actions == ("mixup(alpha=0.2)",) * 4
    assert beside.of(LEARNED)[0].actions == ("mixup(alpha=0.8944272)",) * 4


def test_a_policy_that_sets_parameters_is_compared_with_a_catalogue():
    """With its published methods, or with its own entries."""
    found = compare(policy(), tiny("heldout"), tiny("validation"), catalogue=CHEAP)
    assert {LEARNED, *CHEAP.names, "best-fixed"} <= set(found.agents)
    found = compare(policy(), tiny("heldout", 1), tiny("validation", 1))
    assert {LEARNED, *HYBRID.catalogue.names} <= set(found.agents)
    with pytest.raises(UnknownNameError, match="the method space has no `rmix`"):
        compare(policy(), tiny("heldout"), tiny("validation"), catalogue=catalogue("v0"))


def test_actions_of_another_kind_are_refused():
    """A row of two numbers put in the place of one would be read as something else."""
    agents = {LEARNED: LearnedAgent(policy(), names(HYBRID.catalogue))}
    with pytest.raises(InputError, match=r"`learned` gives actions of shape \[2, 2\], which are no discrete ones"):
        evaluate(agents, tiny("heldout"), catalogue=CHEAP)


class Witness(AbstractAgent):
    def __init__(self):
        self.heard = []

    def act(self, observations, mask=None):
        return torch.arange(len(observations))

    def observe(self, feedback):
        self.heard.append(feedback.actions.tolist())

    def save(self, path):
        pass


@pytest.mark.parametrize("kind", ["discrete", "hybrid"])
def test_agents_hear_of_their_own_entries(kind):
    """One that learns while it acts would else learn about others."""
    codec, witness = (find_codec(kind, "cheap"), Witness())
    agent = EncodedAgent(witness, CHEAP, codec)
    observations = torch.zeros(5, 3)
    actions = agent.act(observations)
    assert [codec.decode(action) for action in actions.tolist()] == list(CHEAP.decisions)
    agent.observe(Feedback(actions=actions, observations=observations, rewards=torch.zeros(5), done=False))
    assert witness.heard == [[0, 1, 2, 3, 4]]
