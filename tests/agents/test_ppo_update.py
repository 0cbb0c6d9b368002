"""PPO on recorded decisions: equal to stable-baselines3's on its own data, and sound on data that is not so neat."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from rlmix.agents.checkpoint import borrowed_randomness
from rlmix.agents.export import layers_of
from rlmix.agents.ppo_update import (
    WEIGHT_LIMIT,
    Batch,
    UpdateOptions,
    advantages_of,
    entries_and_values,
    optimizer_of,
    ppo_update,
    trainable,
)
from rlmix.errors import ConfigError, InputError
from rlmix.policy.network import PolicyNetwork

INPUTS, ENTRIES, HORIZON, ACTORS = 5, 3, 6, 8


class Stub(gymnasium.Env):
    """Something that PPO can be built on; it is never stepped."""

    observation_space = gymnasium.spaces.Box(-5.0, 5.0, (INPUTS,), np.float32)
    action_space = gymnasium.spaces.Discrete(ENTRIES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network_of(model):
    extractor = model.policy.mlp_extractor
    return PolicyNetwork(
        actor=layers_of(extractor.policy_net, model.policy.action_net),
        critic=layers_of(extractor.value_net, model.policy.value_net),
    )


def theirs(options, learning_rate, rows, seed=0):
    """Return stable-baselines3's PPO with a full buffer of whole episodes, the same as a batch, and its network."""
    model = PPO(
        "MlpPolicy", DummyVecEnv([Stub] * ACTORS), learning_rate=learning_rate, n_steps=HORIZON, batch_size=rows,
        n_epochs=options.epochs, gamma=1.0, gae_lambda=options.gae_lambda, clip_range=options.clip,
        ent_coef=options.entropy, seed=seed, device="cpu",
        policy_kwargs={"net_arch": {"pi": [16, 16], "vf": [16, 16]}, "activation_fn": nn.Tanh},
    )  # fmt: skip
    model.set_logger(Logger(folder=None, output_formats=[]))
    observations = torch.randn(HORIZON, ACTORS, INPUTS, generator=generator(seed))
    rewards = torch.randn(HORIZON, ACTORS, generator=generator(seed + 1)).numpy()
    buffer, draws = model.rollout_buffer, []
    for step in range(HORIZON):
        with torch.no_grad():
            actions, values, log_prob = model.policy(observations[step])
        draws.append((actions, log_prob))
        start = np.full(ACTORS, step == 0)
        buffer.add(observations[step].numpy(), actions.numpy(), rewards[step], start, values, log_prob)
    buffer.compute_returns_and_advantage(torch.zeros(ACTORS), np.ones(ACTORS))

    def flat(values):
        # Theirs are one step of all actors after the other, ours one training after the other.
        return values.transpose(0, 1).flatten(0, 1).contiguous()

    ends = torch.zeros(HORIZON, ACTORS, dtype=torch.bool)
    ends[-1] = True
    batch = Batch(
        observations=flat(observations),
        allowed=torch.ones(ACTORS * HORIZON, ENTRIES, dtype=torch.bool),
        entries=flat(torch.stack([actions for actions, _ in draws])),
        log_probabilities=flat(torch.stack([log_prob for _, log_prob in draws])),
        rewards=flat(torch.from_numpy(rewards)),
        ends=flat(ends),
    )
    return model, batch


def difference(first, second):
    pairs = zip((*first.actor, *first.critic), (*second.actor, *second.critic), strict=True)
    return max(float((a - b).detach().abs().max()) for one, two in pairs for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("epochs", [1, 10])
def test_an_update_equals_that_of_stable_baselines3(epochs):
    """A wrong sign, weight, epsilon or order of clipping would learn something else than the tuned algorithm."""
    options = UpdateOptions(epochs=epochs, batch_size=ACTORS * HORIZON, entropy=0.02)
    with borrowed_randomness():
        model, batch = theirs(options, 1e-2, ACTORS * HORIZON)
        before = network_of(model)
        network = trainable(before)
        statistics = ppo_update(network, optimizer_of(network, 1e-2), batch, options, generator=generator())
        model.train()
    assert difference(network_of(model), network) < 1e-6
    assert difference(before, network) > 1e-3
    assert statistics.decisions == ACTORS * HORIZON
    assert statistics.limited == 0.0
    recorded = model.logger.name_to_value
    assert statistics.clipped == pytest.approx(recorded["train/clip_fraction"], abs=1e-6)
    assert statistics.entropy == pytest.approx(-recorded["train/entropy_loss"], abs=1e-6)
    assert statistics.value_loss == pytest.approx(recorded["train/value_loss"], rel=1e-5)
    # Ten passes at this rate go beyond the clip, so that it is compared too.
    assert (statistics.clipped > 0.05) == (epochs == 10)


def test_advantages_equal_those_of_stable_baselines3():
    """An advantage that is off by one row gives the credit to the decision beside."""
    with borrowed_randomness():
        model, batch = theirs(UpdateOptions(gae_lambda=0.9), 1e-3, 16, seed=3)
        advantages, returns = advantages_of(network_of(model), batch, 0.9)
    buffer = model.rollout_buffer
    assert np.allclose(advantages.view(ACTORS, HORIZON).T, buffer.advantages, atol=1e-6)
    assert np.allclose(returns.view(ACTORS, HORIZON).T, buffer.returns, atol=1e-6)


def small(*, hidden=4, seed=0):
    drawn = generator(seed)

    def layers(*widths):
        return tuple(
            (torch.randn(out, inside, generator=drawn) / 2, torch.randn(out, generator=drawn) / 2)
            for inside, out in itertools.pairwise(widths)
        )

    return PolicyNetwork(actor=layers(INPUTS, hidden, ENTRIES), critic=layers(INPUTS, hidden, 1))


def batch_of(network, rows, *, ends=None, seed=1):
    """Return decisions that the network would take with its own probabilities."""
    observations = torch.randn(rows, INPUTS, generator=generator(seed))
    allowed = torch.ones(rows, ENTRIES, dtype=torch.bool)
    found, _ = entries_and_values(network, observations, allowed)
    entries = torch.multinomial(found.exp(), 1, generator=generator(seed)).squeeze(1)
    return Batch(
        observations=observations,
        allowed=allowed,
        entries=entries,
        log_probabilities=found.gather(1, entries.unsqueeze(1)).squeeze(1),
        rewards=torch.zeros(rows),
        ends=torch.tensor([row == rows - 1 for row in range(rows)]) if ends is None else torch.tensor(ends),
    )


def changed(batch, **rows):
    """Return the batch with some elements replaced: name={row: value}."""
    fields = {}
    for name, values in rows.items():
        fields[name] = getattr(batch, name).clone()
        for row, value in values.items():
            fields[name][row] = value
    return replace(batch, **fields)


def test_an_unknown_decision_breaks_the_trajectory():
    """What a held decision led to says nothing of the one before it: only its state's value does."""
    network = small()
    batch = changed(batch_of(network, 4), log_probabilities={2: math.nan}, rewards={3: 1.5})
    value = network.value(batch.observations).tolist()
    advantages, returns = (found.tolist() for found in advantages_of(network, batch, 0.5))
    assert batch.known.tolist() == [True, True, False, True]
    assert advantages[3] == pytest.approx(1.5 - value[3], abs=1e-6)
    assert advantages[1] == pytest.approx(value[2] - value[1], abs=1e-6)
    assert advantages[0] == pytest.approx(value[1] - value[0] + 0.5 * advantages[1], abs=1e-6)
    assert returns[0] == pytest.approx(advantages[0] + value[0], abs=1e-6)


def test_a_decision_without_outcome_is_not_learned_about():
    """A NaN must reach neither the decision before nor the weights."""
    network = trainable(small())
    batch = changed(batch_of(network, 6), rewards={2: math.nan, 5: 1.0}, log_probabilities={4: math.nan})
    assert torch.isfinite(advantages_of(network, batch, 0.9)[0]).tolist() == [True, True, False, True, True, True]
    options = UpdateOptions(epochs=2, batch_size=2)
    found = ppo_update(network, optimizer_of(network, 1e-2), batch, options, generator=generator())
    assert found.decisions == 4
    assert bool(torch.isfinite(entries_and_values(network, batch.observations, batch.allowed)[0]).all())


def test_trainings_do_not_run_into_each_other():
    """The value of another training's first state is no outcome."""
    network = small()
    first, second = batch_of(network, 2, seed=1), batch_of(network, 3, seed=2)
    fields = ("observations", "allowed", "entries", "log_probabilities", "rewards", "ends")
    both = Batch(**{name: torch.cat([getattr(first, name), getattr(second, name)]) for name in fields})
    alone = torch.cat([advantages_of(network, one, 0.9)[0] for one in (first, second)])
    assert torch.allclose(advantages_of(network, both, 0.9)[0], alone, atol=1e-6)


def test_forbidden_entries_get_no_probability_and_no_gradient():
    """An entry that could not be chosen must not be blamed, and its logit's minus infinity must not become NaN."""
    start = small()
    network = trainable(start)
    batch = batch_of(network, 8, ends=[True] * 8)
    allowed = batch.allowed.clone()
    allowed[:, 2] = False
    found, _ = entries_and_values(network, batch.observations, allowed)
    assert bool((found[:, 2] == -math.inf).all())
    assert torch.allclose(found[:, :2].exp().sum(1), torch.ones(8))
    entries = batch.entries.clamp_max(1)
    log_probabilities = found.gather(1, entries.unsqueeze(1)).squeeze(1)
    masked = replace(
        batch, allowed=allowed, entries=entries, log_probabilities=log_probabilities, rewards=torch.arange(8.0)
    )
    ppo_update(network, optimizer_of(network, 1e-2), masked, UpdateOptions(), generator=generator())
    assert torch.equal(network.actor[-1][0][2], start.actor[-1][0][2])
    assert not torch.equal(network.actor[-1][0][1], start.actor[-1][0][1])


def test_importance_weights_are_bounded():
    """A decision that its version thought improbable must not outweigh all others: 2 times is the most."""
    start = small()
    fresh = batch_of(start, 400, ends=[True] * 400)
    # The critic is nearly right and the noise averages out, so that no gradient is so long that it is cut.
    noise = torch.randn(400, generator=generator(5)) / 100
    fresh = replace(fresh, rewards=start.value(fresh.observations).clone() + noise)
    # All were drawn with half, a third and a hundredth of the probability that they have now.
    halved, third, hundredth = (
        replace(fresh, log_probabilities=fresh.log_probabilities - math.log(share)) for share in (2.0, 3.0, 100.0)
    )
    options = UpdateOptions(epochs=1, batch_size=400, entropy=0.0)

    def after(batch):
        network = trainable(start)
        # Plain steps, since Adam's do not show the size of a gradient.
        weights = optimizer_of(network, 1.0).param_groups[0]["params"]
        found = ppo_update(network, torch.optim.SGD(weights, lr=0.1), batch, options, generator=generator())
        return (network.actor[-1][1] - start.actor[-1][1]).detach(), found.limited

    (once, free), (twice, _), (three, limited), (hundred, _) = map(after, (fresh, halved, third, hundredth))
    assert (free, limited) == (0.0, 1.0)
    assert float(once.abs().max()) > 0
    assert torch.equal(three, hundred)
    assert torch.allclose(twice, three, rtol=1e-4)
    assert torch.allclose(twice, WEIGHT_LIMIT * once, rtol=1e-3)


def test_old_decisions_are_learned_from_within_one_clip():
    """Around the recorded probabilities the clip would silence decisions of a version that is long gone."""
    start = small()
    old = batch_of(start, 32, ends=[True] * 32)
    wanted = (old.entries == 1).float()
    aged = replace(old, rewards=wanted, log_probabilities=old.log_probabilities - math.log(1.9))
    network = trainable(start)
    options = UpdateOptions(epochs=4, entropy=0.0)
    ppo_update(network, optimizer_of(network, 1e-2), aged, options, generator=generator())
    before, after = (entries_and_values(one, old.observations, old.allowed)[0].exp() for one in (start, network))
    assert float((after - before)[:, 1].mean()) > 0.01


def test_the_same_generator_gives_the_same_weights():
    """A learner that is restarted must publish the same bits again."""
    found = []
    for seed in (0, 0, 1):
        network = trainable(small())
        batch = replace(batch_of(network, 32, ends=[True] * 32), rewards=torch.randn(32, generator=generator(9)))
        options = UpdateOptions(epochs=3, batch_size=8)
        ppo_update(network, optimizer_of(network, 1e-2), batch, options, generator=generator(seed))
        found.append(network)
    assert difference(found[0], found[1]) == 0.0
    assert difference(found[0], found[2]) > 0.0


def test_what_cannot_be_learned_from_is_said():
    """A silent update of nothing would be published as a new version."""
    network = small()
    batch = batch_of(network, 3)
    nothing = replace(batch, log_probabilities=torch.full((3,), math.nan))
    with pytest.raises(InputError, match="none of the decisions"):
        ppo_update(network, optimizer_of(trainable(network), 1e-3), nothing, UpdateOptions(), generator=generator())
    with pytest.raises(InputError, match="ends with an end"):
        replace(batch, ends=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(InputError, match="of everything as many"):
        replace(batch, rewards=torch.zeros(2))
    with pytest.raises(ConfigError, match="no critic"):
        trainable(PolicyNetwork(actor=network.actor))
    with pytest.raises(ConfigError, match="learning_rate"):
        optimizer_of(trainable(network), 0.0)


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"batch_size": 1}, {"clip": 1.0}, {"gae_lambda": 1.1}])
def test_options_out_of_range_are_refused(changes):
    """A misplaced decimal point would otherwise be noticed after days."""
    with pytest.raises(ConfigError, match=next(iter(changes))):
        UpdateOptions(**changes)
