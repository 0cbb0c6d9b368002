"""A head start: the table in units of the reward, rollouts that leave no trace, and a policy that takes it up."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from rlmix._files import equal_trees, load_tree
from rlmix.agents.callbacks import Progress, Ranges
from rlmix.agents.head_start import fit, gains, goals, kept_decisions, rollouts
from rlmix.agents.ppo import PPOConfig, train_ppo
from rlmix.agents.runs import CHECKPOINT
from rlmix.envs.instances import Family, Recipe
from rlmix.envs.pool import Pool
from rlmix.envs.processes import ProcessPool
from rlmix.envs.reference import Table
from rlmix.errors import ConfigError
from rlmix.ops.modules import kept_random_state
from rlmix.policy.codec import catalogue

CHEAP = catalogue("cheap")
HORIZON = 4


def tiny(part="train", count=5):
    family = Family(data="digits", total_steps={8: 1, 16: 1}, train_size=(100, 200), noise=(0.0, 0.4))
    return Recipe(name="tiny", families=(family,), horizon=HORIZON).generate(part, count)


def untrained(inputs, seed=0):
    """Return a policy of stable-baselines3 that has seen nothing."""
    with kept_random_state(torch.device("cpu")):
        torch.manual_seed(seed)
        box = gymnasium.spaces.Box(-5.0, 5.0, (inputs,), np.float32)
        return ActorCriticPolicy(box, gymnasium.spaces.Discrete(len(CHEAP)), lambda _: 1e-3)


def test_gains_are_in_units_of_the_reward_and_bounded_like_it():
    """By hand: 0.05 is one unit, two units the limit, and uniform mixing gains nothing over itself."""
    scores = torch.tensor([[0.50, 0.55, 0.60, 0.20, 0.52], [1.0, 1.0, 1.0, 1.0, 1.0]]).double()
    both = torch.stack([scores - 0.01, scores + 0.01], 2)
    finished = both.unsqueeze(2) + torch.tensor([0.0, 0.05]).view(1, 1, 2, 1)
    found = gains(Table(("a", "b"), CHEAP.names, both, both), finished, CHEAP)
    plain, better = torch.tensor([-0.4, 0.6, 1.6, -2.0, 0.0]), torch.tensor([0.6, 1.6, 2.0, -2.0, 1.0])
    torch.testing.assert_close(found[0], torch.stack([plain, better, plain], 1))
    assert torch.equal(found[1], torch.tensor([0.0, 1.0, 0.0]).expand(5, 3))


def test_goals_are_what_the_table_says_and_nothing_that_it_does_not():
    """By hand, for two trainings of four decisions, finishes after two and three, and none."""
    clean, mixed, other = CHEAP.index("none"), CHEAP.index("cutmix-1"), CHEAP.index("mixup-1")
    gained = torch.zeros(2, len(CHEAP), 3)
    # Over both trainings the later finish is the best for cutmix; for mixup, none.
    gained[:, mixed] = torch.tensor([[0.1, 0.8, 0.3], [0.9, 0.4, 0.2]])
    gained[:, other] = torch.tensor([[-0.5, -0.4, -0.1], [-0.5, -0.4, -0.1]])
    found = goals(gained, torch.tensor([mixed, other]), CHEAP, 4)
    assert found.shape == (2, 4, len(CHEAP))
    for decision in (0, 1):
        assert found[:, decision, mixed].tolist() == pytest.approx([0.8, 0.4])
        assert found[:, decision, other].tolist() == pytest.approx([-0.1, -0.1])
        assert found[:, decision, clean].tolist() == [0.0, 0.0]
    # To finish now, or to go on with the later finish; then, to finish or to go on to the end.
    assert found[0, 2, [clean, mixed, other]].tolist() == pytest.approx([0.1, 0.8, -0.9])
    assert found[0, 3, [clean, mixed, other]].tolist() == pytest.approx([0.8, 0.3, -0.7])
    assert found[1, 2, [clean, mixed, other]].tolist() == pytest.approx([-0.5, -1.5, -0.1])
    assert found[1, 3, [clean, mixed, other]].tolist() == pytest.approx([-0.4, -1.4, -0.1])
    held_clean = goals(gained, torch.tensor([clean, clean]), CHEAP, 4)
    assert (held_clean[:, 2:].argmax(2) == clean).all()
    assert kept_decisions(2) == [1]
    assert torch.equal(goals(gained[..., 2:], torch.tensor([mixed, other]), CHEAP, 1)[:, 0], gained[..., 2])


def test_a_policy_takes_up_what_the_table_says_for_what_it_sees():
    """The first number shows which entry is best; the others are noise. The critic expects what the choice is worth."""
    generator = torch.Generator().manual_seed(0)
    observations = torch.rand(600, HORIZON, 3, generator=generator) * 2 - 1
    shown = torch.rand(600, generator=generator) * 2 - 1
    observations[..., 0] = shown.unsqueeze(1)
    best = (shown > 0).long() + 1
    gained = torch.nn.functional.one_hot(best, len(CHEAP)).float() + 0.3 * torch.randn(600, 5, generator=generator)
    worth = gained.unsqueeze(1).expand(-1, HORIZON, -1)
    policy = untrained(3)
    fit(policy, observations, worth, seed=0)
    fresh = torch.rand(200, 3, generator=generator) * 2 - 1
    with torch.no_grad():
        chosen = policy.get_distribution(fresh).distribution.probs.argmax(1)
        values = policy.predict_values(fresh).squeeze(1)
    right = chosen == (fresh[:, 0] > 0).long() + 1
    assert float(right.float().mean()) > 0.93
    # Odds of e**2 to 1 for the best of five: it is chosen in 65 of a hundred cases, and worth 1.
    assert float(values.mean()) == pytest.approx(0.65, abs=0.15)


def test_a_fit_is_repeated_by_its_seed():
    """Global random numbers would make it hang on what ran before."""
    observations, worth = torch.rand(40, HORIZON, 3), torch.randn(40, HORIZON, 5)

    def fitted(seed):
        policy = untrained(3)
        torch.rand(1)
        fit(policy, observations, worth, seed=seed)
        return policy.state_dict()

    assert equal_trees(fitted(1), fitted(1))
    assert not equal_trees(fitted(1), fitted(2))


@pytest.mark.parametrize("processes", [1, 2])
def test_rollouts_show_every_instance_and_leave_the_pool_as_it_was(processes):
    """The waves of the trials that follow must be those that a run without a head start would have."""
    instances, arguments = tiny(), {"seeds": [5, 6, 7], "catalogue": CHEAP, "reward": None}
    ranges = Ranges.empty(len(Pool(instances, **arguments).observation_names))
    pool = Pool(instances, **arguments) if processes == 1 else ProcessPool(2, instances, **arguments)
    pool.seed([5, 6, 7], 9)
    observations, held, ids = rollouts(pool, instances, passes=2, seed=3, ranges=ranges)
    assert (pool.seeds, pool.wave) == ((5, 6, 7), 9)
    assert observations.shape[:2] == (len(ids), HORIZON)
    # Ten trainings in waves of three: the last wave is filled up from the front.
    assert sorted(ids[:10]) == sorted(instances.ids * 2)
    assert ids[10:] == ids[:2]
    assert torch.equal(ranges.low, observations.flatten(0, 1).amin(0))
    again = rollouts(Pool(instances, **arguments), instances, passes=2, seed=3, ranges=ranges)[0]
    assert torch.equal(observations, again)
    # In waves of three, those in the middle change their entry, which is random mixing.
    assert (held[1::3] == CHEAP.index("uniform-cheap")).all()
    assert len(set(held[::3].tolist())) > 1
    if processes > 1:
        pool.close()


def config(out, **changes):
    fields = {"catalogue": "cheap", "timesteps": 64, "actors": 8, "evaluate_every": 0, "head_start": 1}
    return PPOConfig(**{**fields, "out": str(out), **changes})


def train(settings, **arguments):
    return train_ppo(settings, instances=tiny(), validation=tiny("validation", 2), **arguments)


def test_a_run_with_a_head_start_is_resumed_to_the_same_bits(tmp_path, monkeypatch):
    """A resumed run must neither repeat nor lose it."""
    monkeypatch.setenv("RLMIX_CACHE", str(tmp_path / "cache"))
    straight = train(config(tmp_path / "straight"))

    def stop(progress: Progress) -> None:
        if progress.decisions > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "broken"), progress=stop)
    train(config(tmp_path / "broken"), resume=True)
    assert equal_trees(*(load_tree(tmp_path / name / CHECKPOINT) for name in ("straight", "broken")))
    without = train(config(tmp_path / "without", head_start=0))
    assert not torch.equal(without.network.actor[0][0], straight.network.actor[0][0])


def test_actions_without_a_table_are_refused(tmp_path):
    """A method space has no table of its entries."""
    with pytest.raises(ConfigError, match=r'`head_start` is from the table .* got 1 with action "hybrid"'):
        config(tmp_path, action="hybrid")
