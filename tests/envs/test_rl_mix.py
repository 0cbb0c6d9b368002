"""The RL-Mix preset: the two checkers, oracles of its three parts, what is mended, and the trap in its reward."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from rlmix import MixInputs, Streams, methods
from rlmix.envs import dynamics
from rlmix.envs.instances import Instance, InstanceSet
from rlmix.envs.pool import Pool
from rlmix.envs.rl_mix import LOGIT_LIMIT, RLMixEnv
from rlmix.errors import EnvError, MethodError
from rlmix.policy.codec import Catalogue, catalogue
from rlmix.policy.decision import Decision
from rlmix.saliency import input_gradient
from rlmix.training.models import registry

NAME = "rlmix.envs:rlmix/RLMix-v0"
B, SIDE, CLASSES = 16, 4, 10


@pytest.fixture
def env(instance):
    return RLMixEnv(instance("rl-mix"))


def network(instance, seed):
    """Return the classifier that a seed's first training begins with, and its first batch, by other means."""
    source = dynamics.load_source(instance.data)
    split, key = dynamics.split(instance, source), dynamics.episode_key(seed, 0)
    model = registry.build(instance.model, channels=1, height=8, width=8, num_classes=CLASSES)
    model.load_state_dict(dynamics.initial_weights(model, key))
    rows = dynamics.batch_rows(instance, key)[0]
    return model, source.images[split.train_rows[rows]], split.train_labels[rows]


def cells(maps):
    """Average 8 x 8 maps to the cells, in float64."""
    return maps.numpy().astype(np.float64).reshape(-1, SIDE, 2, SIDE, 2).mean((2, 4))


def whole(env, actions, **options):
    """Play one training, over as many episodes as it takes, and return observations, rewards and information."""
    observation, _ = env.reset(**options)
    rows, rewards, info = [observation], [], {}
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        rewards.append(reward)
        if terminated and "score" not in info:
            observation, _ = env.reset()
        rows.append(observation)
    assert terminated
    return rows, rewards, info


def drawn(count, size=B, seed=0):
    return np.random.default_rng(seed).integers(0, 10, (count, size))


@pytest.mark.parametrize("persistent", [False, True])
def test_both_checkers_pass_without_a_warning(instance, persistent):
    """A warning of a checker is a surprise for somebody's algorithm."""
    env = gymnasium.make(NAME, instance=instance("rl-mix", total_steps=14), persistent=persistent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        check_env_of_sb3(env)
        check_env_of_sb3(env.unwrapped)


def test_the_environment_is_made_without_arguments():
    """The preset is found under its name."""
    env = gymnasium.make(NAME)
    observation, info = env.reset(seed=0)
    assert info == {"instance": "digits-train-0000", "step": 0}
    assert observation in env.observation_space
    assert env.action_space == gymnasium.spaces.MultiDiscrete([10] * 32)


def test_the_observation_is_normalised_saliency_and_logits_of_the_next_batch(env):
    """Both are computed here from the network itself."""
    model, images, labels = network(env.instance, 3)
    maps = cells(input_gradient(model, images, labels))
    observation, _ = env.reset(seed=3)
    seen = observation["saliency"].reshape(B, SIDE, SIDE)
    np.testing.assert_allclose(seen, maps / maps.sum((1, 2), keepdims=True), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(seen.sum((1, 2)), 1.0, rtol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(observation["logits"].reshape(B, CLASSES), model(images), rtol=1e-4, atol=1e-6)


def test_the_mask_is_cut_at_the_quantile_of_the_cells_that_are_seen(env):
    """The released agent chooses levels for a grid that it does not see."""
    observation, _ = env.reset(seed=1)
    action = drawn(1)[0]
    plan = env.plan(action)
    seen = observation["saliency"].reshape(B, -1).astype(np.float64)
    cut = [np.quantile(row, level) for row, level in zip(seen, np.linspace(0, 0.99, 10)[action], strict=True)]
    # The smallest and the largest cell are the quantiles at 0 and 1, up to rounding.
    top = (seen >= np.asarray(cut)[:, None] * (1 - 1e-6)).astype(np.float32)
    partner = top[plan.partners[:, 0]]
    shares = plan.shares[:, 0].flatten(1).numpy()
    blended = shares[top == partner]
    assert np.ptp(blended) == 0.0
    assert 0.0 < blended[0] < 1.0
    np.testing.assert_array_equal(shares[top != partner], partner[top != partner])


def test_the_reward_is_the_cosine_of_unmixed_and_mixed_saliency(env):
    """Computed here image by image, with the weights before the step."""
    model, images, labels = network(env.instance, 3)
    env.reset(seed=3)
    action = drawn(1, seed=5)[0]
    plan = env.plan(action)
    mixed = torch.stack([
        torch.lerp(images[row], images[plan.partners[row, 0]], plan.shares[row, 0].repeat_interleave(2, 0)
                   .repeat_interleave(2, 1))
        for row in range(B)
    ])  # fmt: skip
    mixed.requires_grad_()
    own = plan.lam
    loss = torch.nn.functional.cross_entropy
    logits = model(mixed)
    partner = loss(logits, labels[plan.partners[:, 0]], reduction="none")
    total = (own * loss(logits, labels, reduction="none") + (1 - own) * partner).sum()
    (gradient,) = torch.autograd.grad(total, mixed)
    one, other = cells(input_gradient(model, images, labels)).ravel(), cells(gradient[:, 0].abs()).ravel()
    expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert 0.1 < expected < 0.99
    assert env.reward_of(plan) == pytest.approx(expected, abs=1e-5)
    assert env.step(action)[1] == pytest.approx(expected, abs=1e-5)


def test_a_training_is_one_of_the_pool(instance):
    """The same keys must give the same classifier, or the two could not be compared."""
    one = instance("rl-mix", total_steps=14)
    action = np.full(B, 3)
    _, _, info = whole(RLMixEnv(one), [action] * 14, seed=7)
    held = Catalogue({"held": Decision("rmix", {"threshold": 0.33, "grids": (4,)})})
    pool = Pool(InstanceSet("one", (one,), 1), seeds=[7], catalogue=held, reward=None)
    pool.begin([one], [dynamics.episode_key(7, 0)])
    final = pool.step([0])[3]
    assert {name: info[name] for name in ("score", "final_acc", "ts_nll")} == {
        name: final[name].item() for name in ("score", "final_acc", "ts_nll")
    }


def test_the_end_is_terminated_and_its_observation_has_the_right_shapes(env):
    """The released code gives logits of another shape there; `truncated` would be valued past the end of the world."""
    rows, rewards, info = whole(env, drawn(8), seed=2)
    for observation in rows:
        assert observation in env.observation_space
    assert not any(value.any() for value in rows[-1].values())
    assert all(value.any() for value in rows[-2].values())
    assert len(rewards) == 8
    assert all(type(reward) is float and 0.0 <= reward <= 1.0 for reward in rewards)
    assert set(info) == {"instance", "step", "lam", "score", "final_acc", "ts_nll"}
    assert 0.0 < info["final_acc"] <= 1.0
    assert set(env.reset()[1]) == {"instance", "step"}
    assert set(env.step(drawn(1)[0])[4]) == {"instance", "step", "lam"}


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in ("saliency", "logits"))


def test_seeds_repeat_a_sequence_and_each_reset_begins_a_new_classifier(env):
    """In the released code the classifier outlives `reset`, so that nothing can be repeated."""
    first = [whole(env, drawn(8), seed=4), whole(env, drawn(8))]
    again = [whole(env, drawn(8), seed=4), whole(env, drawn(8))]
    for one, other in zip(first, again, strict=True):
        assert all(map(same, one[0], other[0]))
        assert one[1:] == other[1:]
    assert not same(first[0][0][0], first[1][0][0])
    assert not same(first[0][0][0], env.reset(seed=5)[0])
    # Also in the middle of a training.
    env.step(drawn(1)[0])
    assert same(env.reset(seed=4)[0], first[0][0][0])
    assert same(env.reset()[0], first[1][0][0])


def test_persistent_episodes_are_the_epochs_of_one_training(instance):
    """As published: `reset` goes on with the same classifier, until its budget is spent."""
    one = instance("rl-mix", total_steps=14)
    kept = RLMixEnv(one, persistent=True)
    lengths = []
    kept.reset(seed=6)
    for action in drawn(28):
        _, _, terminated, _, info = kept.step(action)
        if terminated:
            lengths.append(info["step"])
            kept.reset()
    assert lengths == [6, 12, 14, 6, 12, 14]
    fresh = RLMixEnv(one)
    for options in ({"seed": 6}, {}):
        rows, rewards, info = whole(fresh, drawn(14), **options)
        rows_kept, rewards_kept, info_kept = whole(kept, drawn(14), **options)
        assert all(map(same, rows, rows_kept))
        assert (rewards, info) == (rewards_kept, info_kept)


def test_batch_statistics_are_updated_once_a_step(instance):
    """The released code passes every batch through the network twice, unmixed and mixed, and counts both."""
    env = RLMixEnv(instance("rl-mix", model="resnet8", total_steps=2), grid=2)
    env.reset(seed=0)
    counts = [value for name, value in env._stack.buffers.items() if name.endswith("num_batches_tracked")]
    assert counts
    assert not any(value.any() for value in counts)
    env.step(drawn(1)[0])
    assert all(value.tolist() == [1] for value in counts)


def test_a_classifier_that_is_not_finite_shows_and_earns_nothing(instance):
    """One NaN in an observation ends the training of an agent."""
    env = RLMixEnv(instance("rl-mix", learning_rate=1e30))
    rows, rewards, info = whole(env, drawn(8), seed=0)
    assert all(observation in env.observation_space for observation in rows)
    assert not any(value.any() for value in rows[-2].values())
    assert rewards[-1] == 0.0
    assert (info["score"], info["final_acc"]) == (0.0, 0.0)


def test_logits_have_limits(instance):
    """Checkers refuse endless ranges."""
    env = RLMixEnv(instance("rl-mix", learning_rate=300.0, total_steps=4))
    rows, _, _ = whole(env, drawn(4), seed=0)
    assert max(np.abs(observation["logits"]).max() for observation in rows) == LOGIT_LIMIT


def test_mistakes_are_named(env, instance):
    """Each mistake must be named where it is made."""
    with pytest.raises(EnvError, match="Call `reset` first"):
        env.step(drawn(1)[0])
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"must be in \[0, 10\), got 0 to 10"):
        env.step(np.arange(16) % 11)
    with pytest.raises(EnvError, match="must be 16 whole numbers, one for each image, got int64 of shape \\(15,\\)"):
        env.step(np.zeros(15, np.int64))
    with pytest.raises(EnvError, match="got float64"):
        env.step(np.zeros(16))
    with pytest.raises(EnvError, match="there are no options, got \\['instance'\\]"):
        env.reset(options={"instance": "a"})
    whole(env, drawn(8), seed=0)
    with pytest.raises(EnvError, match="Call `reset` first"):
        env.step(drawn(1)[0])
    with pytest.raises(EnvError, match=r"`grid` must be in \[1, 8\], the images' side, got 9"):
        RLMixEnv(instance("rl-mix"), grid=9)
    with pytest.raises(MethodError, match="`alpha`"):
        RLMixEnv(instance("rl-mix"), alpha=0.0)
    with pytest.raises(EnvError, match="`render_mode` must be None, got 'ansi'"):
        RLMixEnv(instance("rl-mix"), render_mode="ansi")


def test_unmodified_ppo_trains_and_repeats(instance):
    """The preset is for other people's algorithms."""

    def learned():
        env = RLMixEnv(instance("rl-mix"))
        model = PPO("MultiInputPolicy", env, n_steps=16, batch_size=8, n_epochs=2, seed=0, device="cpu")
        before = [value.clone() for value in model.policy.parameters()]
        model.learn(32)
        return before, list(model.policy.parameters())

    before, after = learned()
    assert all(torch.isfinite(value).all() for value in after)
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(after, learned()[1], strict=True))


# Noisy labels, and a budget that is long enough to learn them by heart.
NOISY = Instance(
    id="noisy", data="digits", seed=5, train_size=400, noise=0.35, model="mlp", batch_size=32, total_steps=400,
    learning_rate=0.1,
)  # fmt: skip


def test_the_published_reward_ranks_no_mixing_first():
    """The trap: an agent that could would learn not to mix, and where it cannot, to mix as little as it can."""
    env = RLMixEnv(NOISY)
    env.reset(seed=0)
    known = {name: methods.get(name, **params) for name, params in
             (("none", {}), ("mixup", {"alpha": 8.0}), ("cutmix", {}))}  # fmt: skip
    rewards, own, lowest = {name: [] for name in known}, [], []
    for step, action in enumerate(drawn(NOISY.total_steps, 32)):
        if step % 4 == 0:
            for name, method in known.items():
                plan = method.draw(MixInputs(32, 8, 8), generator=Streams([step]))
                rewards[name].append(env.reward_of(plan))
            # The lowest thresholds everywhere: all cells agree, and R-Mix becomes mixup with the batch's lam.
            plan = env.plan(np.zeros(32, np.int64))
            own.append(plan.lam.mean().item())
            lowest.append(env.reward_of(plan))
        env.step(action)
    none, mixup, cutmix = (np.asarray(rewards[name]) for name in known)
    np.testing.assert_allclose(none, 1.0, atol=1e-6)
    assert mixup.mean() < 0.9
    assert cutmix.mean() < 0.9
    assert (none > mixup).all()
    assert (none > cutmix).all()
    own, lowest = np.asarray(own), np.asarray(lowest)
    assert (own > 0.9).sum() >= 5
    assert lowest[own > 0.9].mean() > 0.9
    assert lowest[own < 0.5].mean() < 0.8


def test_the_score_of_a_whole_training_ranks_mixing_first_there():
    """On the same problem our own reward must not fall into the trap."""
    cheap = catalogue("cheap")
    pool = Pool(InstanceSet("noisy", (NOISY,), 1), seeds=[0], catalogue=cheap, reward=None)
    entries = [cheap.index(name) for name in ("none", "mixup-1", "cutmix-1")]
    pool.begin([NOISY] * 12, [key for _ in entries for key in range(4)])
    scores = pool.step(np.repeat(entries, 4))[3]["score"].view(3, 4)
    # In every training: the gap is about five times the spread between trainings.
    assert scores[0].max() + 0.05 < scores[1].min()
    assert scores[0].max() + 0.05 < scores[2].min()
