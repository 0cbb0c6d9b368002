"""The hybrid head: probabilities, entropies and gradients against other ways to compute them, and PPO that learns."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Beta, Categorical, Independent, MixtureSameFamily

from rlmix.agents.checkpoint import borrowed_randomness
from rlmix.agents.hybrid import HybridDistribution, HybridPolicy
from rlmix.policy.decision import Decision
from rlmix.policy.parametric import MARGIN, HybridCodec
from rlmix.policy.space import MethodSpace, Parameter, Tunable

ALPHA = Parameter(name="alpha", low=0.1, high=8.0, scale="log")
RATE = Parameter(name="rate", low=0.0, high=1.0)
# Entries with no, one and two open parameters.
CODEC = HybridCodec(
    MethodSpace(
        {
            "none": Tunable(Decision("none")),
            "mixup": Tunable(Decision("mixup"), (ALPHA,)),
            "cutmix": Tunable(Decision("cutmix"), (ALPHA,)),
            "grafting": Tunable(Decision("grafting"), (Parameter(name="temperature", low=0.1, high=4.0), RATE)),
        }
    )
)
COUNT = 4


def outputs_of(rows, seed=0, scale=1.5):
    return scale * torch.randn(rows, CODEC.outputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given(outputs):
    return HybridDistribution(CODEC).proba_distribution(outputs)


def reference(row, entry, shares):
    """Return log p of one action, term by term with Python's own lgamma."""
    logits, rest = row[:COUNT], row[COUNT:].view(COUNT, 2, 2)
    total = float(logits[entry] - logits.logsumexp(0))
    for slot in range(len(CODEC.space.entries[entry].parameters)):
        a, b = (1.0 + math.log1p(math.exp(float(one))) for one in rest[entry, slot])
        u = float(shares[slot])
        total += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + (a - 1) * math.log(u) + (b - 1) * math.log1p(-u)
    return total


def test_log_prob_is_that_of_the_method_and_of_its_used_parameters():
    """An unused parameter's term would be noise on every gradient; a wrong order would train the other method's."""
    outputs = outputs_of(40)
    entries = torch.arange(40) % COUNT
    shares = torch.rand(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actions = CODEC.actions(entries, shares)
    found = given(outputs).log_prob(actions)
    expected = [reference(*row) for row in zip(outputs, entries.tolist(), shares, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    moved = actions.clone()
    moved[entries == 0, 1:] = 0.9
    moved[(entries == 1) | (entries == 2), 2] = -0.3
    assert torch.equal(given(outputs).log_prob(moved), found)


def test_log_prob_equals_torchs_own_mixture():
    """The density of (method, shares) with the method fixed, by torch's mixture with one possible method."""
    outputs = outputs_of(6, seed=3)
    alpha, beta = CODEC.concentrations(outputs)
    shares = torch.rand(6, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    only = torch.full((6, COUNT), -torch.inf, dtype=torch.float64)
    only[:, 3] = 0.0
    mixture = MixtureSameFamily(Categorical(logits=only), Independent(Beta(alpha, beta), 1))
    methods = Categorical(logits=outputs[:, :COUNT]).log_prob(torch.tensor(3))
    found = given(outputs).log_prob(CODEC.actions(torch.full((6,), 3), shares))
    torch.testing.assert_close(found, methods + mixture.log_prob(shares), atol=1e-9, rtol=1e-9)


def test_densities_sum_to_one_over_methods_and_shares():
    """The convention: counting measure over methods, Lebesgue over shares in [0, 1], not over actions in [-1, 1]."""
    outputs, total, steps = outputs_of(1, seed=5), 0.0, 200
    middles = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    for entry in range(COUNT):
        used = len(CODEC.space.entries[entry].parameters)
        grid = torch.cartesian_prod(middles, middles) if used == 2 else torch.stack([middles] * 2, 1)
        actions = CODEC.actions(torch.full((len(grid),), entry), grid)
        total += float(given(outputs.expand(len(grid), -1)).log_prob(actions).exp().mean())
    assert total == pytest.approx(1.0, abs=1e-3)


def test_gradients_equal_differences():
    """Through logits, softplus, gather and the clamp; in float64 to 1e-6."""
    outputs = outputs_of(3, seed=6).requires_grad_()
    entries, shares = torch.tensor([1, 3, 0]), torch.tensor([[0.2, 0.5], [0.9, 0.4], [0.5, 0.5]], dtype=torch.float64)
    actions = CODEC.actions(entries, shares).double()
    assert torch.autograd.gradcheck(lambda x: given(x).log_prob(actions), (outputs,))
    assert torch.autograd.gradcheck(lambda x: given(x).entropy(), (outputs,))


def test_entropy_is_the_mean_of_minus_log_prob():
    """Monte Carlo over 200,000 actions; five standard errors on each of 4 rows: false alarms below 3e-6."""
    count = 200_000
    for row in outputs_of(4, seed=7, scale=1.0).float():
        distribution = given(row.expand(count, -1))
        with torch.random.fork_rng():
            torch.manual_seed(8)
            surprise = -distribution.log_prob(distribution.sample()).double()
        error = float(surprise.std()) / math.sqrt(count)
        assert float(given(row.unsqueeze(0)).entropy()) == pytest.approx(float(surprise.mean()), abs=5 * error + 1e-5)


def test_entropy_is_largest_for_equal_methods_and_uniform_parameters():
    """An entropy over actions would pay log 2 for every parameter, and so draw the policy to methods that have some."""
    outputs = torch.zeros(1, CODEC.outputs, dtype=torch.float64)
    outputs[:, COUNT:] = -60.0
    best = float(given(outputs).entropy())
    assert best == pytest.approx(math.log(COUNT), abs=1e-9)
    assert all(float(given(outputs + outputs_of(1, seed=seed)).entropy()) < best for seed in range(5))


def test_samples_have_the_probabilities_and_means():
    """Five standard deviations on 4 shares and 4 means over 20,000 actions: false alarms below 6e-6."""
    count, row = 20_000, outputs_of(1, seed=9).float()
    distribution = given(row.expand(count, -1))
    with torch.random.fork_rng():
        torch.manual_seed(10)
        actions = distribution.sample()
    entries, shares, used = CODEC.parts(actions)
    expected = row[0, :COUNT].softmax(0)
    found = torch.bincount(entries, minlength=COUNT) / count
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt()).all()
    alpha, beta = (part[0] for part in CODEC.concentrations(row))
    for entry in range(COUNT):
        own = entries == entry
        for slot in range(len(CODEC.space.entries[entry].parameters)):
            law = Beta(alpha[entry, slot], beta[entry, slot])
            bound = 5 * float(law.stddev) / math.sqrt(int(own.sum())) + MARGIN
            assert float(shares[own, slot].mean()) == pytest.approx(float(law.mean), abs=bound)
    assert (actions[:, 1:][~used] == 0).all()
    assert actions.abs().max() <= 1.0


def test_mode_is_the_likeliest_method_with_the_means_of_its_parameters():
    """What is deployed."""
    outputs = outputs_of(30, seed=11)
    entries, shares, used = CODEC.parts(given(outputs).mode())
    alpha, beta = CODEC.concentrations(outputs)
    assert torch.equal(entries, outputs[:, :COUNT].argmax(1))
    expected = (alpha / (alpha + beta))[torch.arange(30), entries]
    torch.testing.assert_close(shares[used].double(), expected[used], atol=1e-6, rtol=0)
    torch.testing.assert_close(given(outputs).mode(), CODEC.complete(outputs, entries))


class Contextual(gymnasium.Env):
    """One decision; the context says which method is right and where its parameters should lie."""

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (COUNT + 1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, CODEC.shape, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.right = int(self.np_random.integers(COUNT))
        self.target = float(self.np_random.uniform(-0.8, 0.8))
        row = np.zeros(COUNT + 1, np.float32)
        row[self.right], row[COUNT] = 1.0, self.target
        return row, {}

    def step(self, action):
        entry = CODEC.entry(action.tolist())
        used = len(CODEC.space.entries[entry].parameters)
        wide = [abs(float(number) - self.target) / 2 for number in action[1 : 1 + used]]
        reward = float(entry == self.right) * (1.0 - sum(wide) / max(1, used))
        return np.zeros(COUNT + 1, np.float32), reward, True, False, {}


def ppo(steps):
    arguments = {"codec": CODEC, "net_arch": [32, 32], "activation_fn": torch.nn.Tanh}
    model = PPO(
        HybridPolicy, Contextual(), policy_kwargs=arguments, n_steps=512, batch_size=128, n_epochs=8, gamma=1.0,
        learning_rate=3e-3, ent_coef=0.003, seed=0, device="cpu",
    )  # fmt: skip
    return model.learn(steps)


def test_unmodified_ppo_learns_method_and_parameters():
    """Chance is 0.18; the right method with untrained parameters would earn about 0.85."""
    with borrowed_randomness():
        model = ppo(10_240)
        env = Contextual()
        env.reset(seed=1)
        rewards = []
        for _ in range(200):
            action, _ = model.predict(env.reset()[0], deterministic=True)
            rewards.append(env.step(action)[1])
    assert sum(rewards) / len(rewards) > 0.92


def test_the_policy_is_the_plain_one_but_for_its_head():
    """Initialisation, optimiser and value net are stable-baselines3's."""
    box = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    actions = gymnasium.spaces.Box(-1.0, 1.0, CODEC.shape, np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = HybridPolicy(box, actions, lambda _: 1e-3, codec=CODEC)
        torch.manual_seed(0)
        plain = ActorCriticPolicy(box, gymnasium.spaces.Discrete(CODEC.outputs), lambda _: 1e-3)
    assert CODEC.outputs == COUNT * (1 + 2 * 2)
    assert policy.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in policy.state_dict().items())
    row = torch.zeros(1, 3)
    actions, _, log_prob = policy(row)
    values, again, entropy = policy.evaluate_actions(row, actions)
    assert torch.equal(log_prob, again)
    assert entropy.shape == (1,)
    assert values.shape == (1, 1)
