"""Agents without learning: what they choose, what a mask does, and what comes back from a file."""

from __future__ import annotations

import json
import math

import pytest
import torch

from rlmix.agents.baselines.fixed import BestFixedPerBudget, BudgetLookup, BudgetRanges, FixedAgent, uniform_entry
from rlmix.errors import EnvError, PolicyError, UnknownNameError
from rlmix.policy.codec import catalogue
from rlmix.policy.signals import Context, History, signals

V0 = catalogue("v0")


def observe(*, total_steps, num_examples, batch_size=32):
    """Return the first observation of one training, as the environment and the controller compute it."""
    context = Context.of(
        1,
        total_steps=total_steps,
        num_examples=num_examples,
        batch_size=batch_size,
        num_classes=10,
        height=8,
        width=8,
        num_params=26_000,
    )
    return signals(context, History.initial(1, V0), 0, catalogue=V0)


def per_budget(measure, bounds, entries):
    return BestFixedPerBudget(
        lookup=BudgetLookup(ranges=BudgetRanges(measure=measure, bounds=bounds), entries=entries),
        otherwise="uniform",
        catalogue=V0,
    )


def test_fixed_agent_always_chooses_its_entry():
    """The bar that every learned agent is measured against."""
    agent = FixedAgent("cutmix-1", V0)
    assert agent.act(torch.randn(3, 5)).tolist() == [V0.index("cutmix-1")] * 3


def test_masked_entry_gives_way_to_the_first_allowed_one():
    """Where saliency is not to be had, a method that needs it must not be chosen."""
    mask = torch.ones(2, len(V0), dtype=torch.bool)
    mask[0, V0.index("rmix")] = False
    mask[0, 0] = False
    assert FixedAgent("rmix", V0).act(torch.zeros(2, 5), mask).tolist() == [1, V0.index("rmix")]


def test_uniform_random_is_the_widest_mixture():
    """Taking the cheap mixture would compare against random choice among fewer methods."""
    assert uniform_entry(V0) == "uniform"
    assert uniform_entry(catalogue("cheap")) == "uniform-cheap"
    with pytest.raises(EnvError, match="has only none, cutmix-1"):
        uniform_entry(V0.subset(("none", "cutmix-1")))


@pytest.mark.parametrize("total_steps", [56, 120, 240, 30_000])
@pytest.mark.parametrize("num_examples", [100, 873, 50_000])
def test_budget_is_read_back_from_the_observation(total_steps, num_examples):
    """The lookup must not fall into a neighbouring range by the rounding of transforms and float32."""
    observation = observe(total_steps=total_steps, num_examples=num_examples)
    agent = per_budget("steps", (total_steps * 0.999, total_steps * 1.001), ("none", "mixup-1", "cutmix-1"))
    assert agent.act(observation).tolist() == [V0.index("mixup-1")]
    epochs = total_steps * 32 / num_examples
    by_epochs = per_budget("epochs", (epochs * 0.999, epochs * 1.001), ("none", "mixup-1", "cutmix-1"))
    assert by_epochs.act(observation).tolist() == [V0.index("mixup-1")]


def test_unknown_number_of_examples_means_the_entry_for_any_budget():
    """Without n the epochs cannot be known; reading zeros as a budget would choose at random."""
    observation = observe(total_steps=56, num_examples=math.nan)
    assert per_budget("steps", (), ("none",)).act(observation).tolist() == [V0.index("uniform")]


def test_agents_come_back_from_their_files(tmp_path):
    """A baseline that was chosen on one day must be the same on another."""
    fixed = FixedAgent("rmix", V0)
    fixed.save(tmp_path / "fixed.json")
    assert FixedAgent.load(tmp_path / "fixed.json") == fixed
    lookup = per_budget("epochs", (1.5, 20.0), ("none", "mixup-1", "cutmix-1"))
    lookup.save(tmp_path / "lookup.json")
    assert BestFixedPerBudget.load(tmp_path / "lookup.json") == lookup


def test_foreign_files_are_refused(tmp_path):
    """A file of another agent, or by hand, must fail when it is loaded, not when it acts."""
    path = tmp_path / "agent.json"
    with pytest.raises(PolicyError, match="cannot be read as an agent"):
        FixedAgent.load(path)
    per_budget("epochs", (), ("none",)).save(path)
    with pytest.raises(PolicyError, match="must hold exactly the fields catalogue, entry, kind, schema"):
        FixedAgent.load(path)
    path.write_text(json.dumps({"schema": "rlmix.agent/1", "kind": "other", "entry": "none", "catalogue": []}))
    with pytest.raises(PolicyError, match="holds rlmix.agent/1/other, expected rlmix.agent/1/fixed"):
        FixedAgent.load(path)


def test_unknown_entries_name_the_nearest():
    """A typo in a name must not act as entry 0."""
    with pytest.raises(UnknownNameError, match="the catalogue has no entry `cutmix`. Did you mean `cutmix-1`?"):
        FixedAgent("cutmix", V0)
