"""Bandits: updates by hand, regret on toys whose best arm is known, and going on from a file bit for bit."""

from __future__ import annotations

import math

import pytest
import torch

from rlmix.agents.agent import Feedback
from rlmix.agents.baselines.bandits import BanditAgent, Exp3S, Thompson, learn_online
from rlmix.envs.instances import Family, Recipe
from rlmix.errors import InputError, PolicyError
from rlmix.ops import rng
from rlmix.policy.codec import catalogue

CHEAP = catalogue("cheap")
ARMS = len(CHEAP)
HORIZON, ROWS = 4, 8
MEANS = torch.tensor([0.0, -0.5, 1.0, 0.2, -0.2])
NONE = torch.zeros(ROWS, 1)
RULES = {
    "exp3s": lambda: Exp3S(ARMS, gamma=0.1, alpha=1e-3),
    "thompson": lambda: Thompson(ARMS, discount=0.995, prior=1.0, noise=0.5),
}


def play(agent, waves, *, first=0, means=lambda wave: MEANS):
    """Return the regret of each wave's trainings to always playing the best arm; rewards have the deviation 0.5."""
    regrets = []
    for wave in range(first, first + waves):
        chosen = []
        for decision in range(HORIZON):
            actions = agent.act(NONE)
            chosen.append(actions)
            noise = 0.5 * rng.normal(torch.tensor([rng.derive(17, wave)]), 100, (ROWS,))[0]
            expected = means(wave)[torch.stack(chosen)].mean(0)
            done = decision == HORIZON - 1
            rewards = expected + noise if done else torch.zeros(ROWS)
            agent.observe(Feedback(actions=actions, observations=NONE, rewards=rewards, done=done))
        regrets.append(float((means(wave).max() - expected).mean()))
    return regrets


def agent(name, *, seed=0, redraw="training"):
    return BanditAgent(RULES[name](), CHEAP, redraw=redraw, seed=seed)


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize(("name", "bound"), [("exp3s", 0.6), ("thompson", 0.08)])
def test_finds_the_best_arm(name, bound):
    """Random play loses 0.9 a training. Over 30 other seeds EXP3.S lost 0.41 (sd 0.04), Thompson 0.043 (sd 0.006).

    The bounds are 4.6 and 6 standard deviations away: of 100,000 seeds less than one would fail.
    """
    bandit = agent(name, seed=1000)
    assert mean(play(bandit, 100)) < bound
    assert bandit.best().entry == CHEAP.names[int(MEANS.argmax())]


@pytest.mark.parametrize(("name", "bound"), [("exp3s", 0.42), ("thompson", 0.06)])
def test_finds_the_new_best_arm_after_a_switch(name, bound):
    """The last 100 of 200 waves with other means: EXP3.S lost 0.27 (sd 0.03), Thompson 0.03 (sd 0.005) on 30 seeds.

    A bandit that forgets nothing would still play the old arm, which loses 1 a training (see the next test). Bounds as
    above.
    """
    bandit = agent(name, seed=1000)
    play(bandit, 100)
    assert mean(play(bandit, 200, first=100, means=lambda wave: MEANS.roll(2))[100:]) < bound
    assert bandit.rule.best() == 4


def test_without_forgetting_the_old_arm_is_kept_longer():
    """If it made no difference, the switching toy would not test the discount."""

    def after(discount):
        bandit = BanditAgent(Thompson(ARMS, discount=discount, noise=0.5), CHEAP, seed=0)
        play(bandit, 60)
        return mean(play(bandit, 20, first=60, means=lambda wave: MEANS.roll(2)))

    assert after(1.0) > 2 * after(0.98)


def test_exp3s_update_by_hand():
    """Auer et al. 2002, section 8, for two trainings that are played by one arm each."""
    rule = Exp3S(3, gamma=0.3, alpha=0.01, reservoir=2)
    assert rule.probabilities([True] * 3) == pytest.approx([1 / 3] * 3)
    # A single reward has no scale: it counts as 1/2.
    rule.learn([(1, 1 / 3)] * 4, 7.0, key=0)
    shared = math.e * 0.01 / 3 * 3
    weights = [1 + shared, math.exp(0.3 * (0.5 / (1 / 3)) / 3) + shared, 1 + shared]
    expected = [0.7 * weight / sum(weights) + 0.1 for weight in weights]
    assert rule.probabilities([True] * 3) == pytest.approx(expected)
    # Between the quantiles 20 % and 80 % of 7 and 8, which are 7.2 and 7.8, a reward of 8 is the most there is.
    rule.learn([(0, expected[0])], 8.0, key=0)
    shared = math.e * 0.01 / 3 * sum(weights)
    weights = [weights[0] * math.exp(0.1 / expected[0]) + shared, weights[1] + shared, weights[2] + shared]
    again = [0.7 * weight / sum(weights) + 0.1 for weight in weights]
    assert rule.probabilities([True] * 3) == pytest.approx(again)


def test_exp3s_draws_with_its_probabilities():
    """Of 4,000 draws each count is within 4.5 standard deviations: fails for one seed in 50,000."""
    rule = Exp3S(3, gamma=0.2)
    rule.learn([(2, 0.1)], 0.0, key=0)
    expected = rule.probabilities([True, False, True])
    arms = [rule.draw([True, False, True], rng.derive(5, number))[0] for number in range(4000)]
    assert expected[1] == 0.0
    assert sum(expected) == pytest.approx(1.0)
    for arm, probability in enumerate(expected):
        deviation = math.sqrt(4000 * probability * (1 - probability))
        assert abs(arms.count(arm) - 4000 * probability) <= 4.5 * deviation


def test_thompson_posterior_by_hand():
    """The conjugate normal posterior, with the evidence of the first training discounted once."""
    rule = Thompson(2, discount=0.5, prior=2.0, noise=3.0)
    rule.learn([(0, 1.0), (0, 1.0), (0, 1.0), (1, 1.0)], 4.0, key=0)
    rule.learn([(0, 1.0)], 1.0, key=0)
    count, total = 0.75 * 0.5 + 1, 0.75 * 4 * 0.5 + 1
    precision = 1 / 4 + count / 9
    assert rule.posterior()[0] == pytest.approx((total / 9 / precision, precision**-0.5))
    assert rule.posterior()[1] == pytest.approx((0.5 / 9 / (0.25 + 0.125 / 9), (0.25 + 0.125 / 9) ** -0.5))


@pytest.mark.parametrize("name", RULES)
def test_an_arm_is_drawn_for_the_training_or_at_each_decision(name):
    """Credit for a training belongs to what was done in it: held, one arm gets all of it."""
    for redraw, distinct in (("training", 1), ("decision", 2)):
        bandit = agent(name, redraw=redraw)
        rows = []
        for _ in range(HORIZON):
            actions = bandit.act(NONE)
            rows.append(actions)
            bandit.observe(Feedback(actions=actions, observations=NONE, rewards=torch.zeros(ROWS), done=False))
        numbers = [len(set(column)) for column in torch.stack(rows).T.tolist()]
        assert max(numbers) >= distinct
        assert (max(numbers) == 1) == (redraw == "training")


@pytest.mark.parametrize("name", RULES)
def test_masked_arms_are_never_drawn(name):
    """Where saliency is not to be had, a method that needs it must not be chosen."""
    mask = torch.zeros(200, ARMS, dtype=torch.bool)
    mask[:, 1] = mask[:, 3] = True
    assert set(agent(name).act(torch.zeros(200, 1), mask).tolist()) == {1, 3}


@pytest.mark.parametrize("redraw", ["training", "decision"])
@pytest.mark.parametrize("name", RULES)
def test_a_loaded_bandit_goes_on_bit_for_bit(tmp_path, name, redraw):
    """In the middle of a wave too: whatever the file forgets shows in what is drawn later."""
    bandit = agent(name, redraw=redraw)
    play(bandit, 5)
    actions = bandit.act(NONE)
    bandit.observe(Feedback(actions=actions, observations=NONE, rewards=torch.zeros(ROWS), done=False))
    # Between drawing and observing too.
    actions = bandit.act(NONE)
    bandit.save(tmp_path / "a.json")
    loaded = BanditAgent.load(tmp_path / "a.json")
    for each in (bandit, loaded):
        each.observe(Feedback(actions=actions, observations=NONE, rewards=torch.zeros(ROWS), done=False))
    for each in (bandit, loaded):
        actions = each.act(NONE)
        each.observe(Feedback(actions=actions, observations=NONE, rewards=torch.ones(ROWS), done=True))
        play(each, 5, first=6)
    bandit.save(tmp_path / "a.json")
    loaded.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_the_reservoir_keeps_a_sample_of_its_size():
    """Keeping the last rewards instead would forget the scale while the best arm is played."""
    rule = Exp3S(2, reservoir=50)
    for number in range(2000):
        rule.learn([(0, 0.5)], float(number), key=rng.derive(9, number))
    kept = rule.document()["state"]["rewards"]
    assert len(kept) == 50
    # The mean of 50 uniform draws from 0 to 1,999 has the deviation 82.
    assert abs(mean(kept) - 1000) < 4.5 * 82


def test_what_does_not_fit_is_refused(tmp_path):
    """A bandit over another catalogue would act by arms that mean something else."""
    with pytest.raises(InputError, match="a rule with 5 arms.*got 4 arms"):
        BanditAgent(Thompson(4), CHEAP)
    with pytest.raises(InputError, match=r"`gamma` in \(0, 1\]"):
        Exp3S(3, gamma=0.0)
    with pytest.raises(InputError, match="0 entries were drawn, 8 were used"):
        agent("exp3s").observe(Feedback(actions=torch.zeros(8), observations=NONE, rewards=torch.zeros(8), done=True))
    path = tmp_path / "bandit.json"
    agent("thompson").save(path)
    path.write_text(path.read_text().replace('"sums"', '"totals"'))
    with pytest.raises(PolicyError, match="is no bandit"):
        BanditAgent.load(path)


def test_learning_online_uses_the_environments_reward():
    """Through the pool: the reward of a training reaches the arm that was played in it."""
    family = Family(data="digits", total_steps={4: 1}, train_size=(100, 100), noise=(0.0, 0.0))
    instances = Recipe(name="tiny", families=(family,), horizon=HORIZON).generate("train", 2)
    bandit = agent("thompson")
    means = learn_online(bandit, instances, waves=2, actors=4, catalogue=CHEAP)
    again = agent("thompson")
    first = learn_online(again, instances, waves=1, actors=4, catalogue=CHEAP)
    second = learn_online(again, instances, waves=1, actors=4, first_wave=1, catalogue=CHEAP)
    assert means == first + second
    assert all(-2 <= value <= 2 for value in means)
    assert again.rule.document() == bandit.rule.document()
    assert sum(bandit.rule.document()["state"]["counts"]) > 4
