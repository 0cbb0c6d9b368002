"""The pool: the determinism contract, the fire-wall, snapshots and forks, waves, and messages about mistakes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rlmix._files import equal_trees, load_tree, save_tree
from rlmix.envs import dynamics
from rlmix.envs.instances import InstanceSet, digits_set
from rlmix.envs.pool import Pool
from rlmix.envs.reward import measure
from rlmix.errors import CheckpointError, ConfigError, DataError, EnvError, UnknownNameError
from rlmix.ops import rng
from rlmix.policy.codec import Catalogue, catalogue
from rlmix.policy.controller import mixing_key
from rlmix.policy.decision import Decision
from rlmix.training import data

ENTRIES = catalogue("v0")
CHEAP = catalogue("cheap")


def pool_of(instances, seeds, **changes):
    return Pool(instances, **{"seeds": seeds, "catalogue": ENTRIES, "reward": None, **changes})


def action(seed, wave, decision, entries):
    """Return what a slot does: a function of its seed, so that it does the same in every pool."""
    return rng.host_integer(rng.derive(seed, wave, decision), 200, entries)


def parameters_of(pool):
    """Return each slot's parameters."""
    found = {}
    for rows, block in pool._blocks:
        stacked = [value.detach().flatten(1) for value in block.stack.parameters.values()]
        found.update(zip(rows, torch.cat(stacked, 1), strict=True))
    return [found[row] for row in sorted(found)]


def played(pool, waves=1):
    """Play whole waves; return for each slot its observations, rewards and final parameters, and the infos."""
    trace, seeds = [[] for _ in pool.seeds], pool.seeds
    for wave in range(waves):
        rows = [pool.reset()]
        done = False
        while not done:
            actions = [action(seed, wave, pool.decision, len(pool.catalogue)) for seed in seeds]
            observation, reward, done, info = pool.step(actions)
            rows.append(torch.cat([observation, reward.unsqueeze(1)], 1))
        for slot in range(len(seeds)):
            trace[slot] += [row[slot] for row in rows]
            trace[slot].append(parameters_of(pool)[slot])
    return trace, info


def test_a_slot_does_the_same_alone_and_among_others(tiny):
    """Points (a) and (b) of the contract: N = 1, 3, 8, any position, mixed buckets, over two waves, bit for bit."""
    seeds = [4, 0, 1, 9, 2, 3, 11, 5]
    eight, _ = played(pool_of(tiny, seeds, reward="reference"), 2)
    three, _ = played(pool_of(tiny, [3, 4, 2], reward="reference"), 2)
    assert equal_trees(three, [eight[seeds.index(seed)] for seed in (3, 4, 2)])
    for seed in (4, 5):
        (alone,), _ = played(pool_of(tiny, [seed], reward="reference"), 2)
        assert equal_trees(alone, eight[seeds.index(seed)])


def test_trainings_of_the_real_size_are_bit_identical_too():
    """Matrix kernels are chosen by size: what holds for batches of 16 must hold for those of the default set."""
    instances = digits_set("train", 8)
    short = [one for one in instances.instances if one.total_steps == 56]
    finals = []
    for rows in ([0], [0, 1, 2], [2, 1, 0, 1, 2, 1, 2, 0]):
        pool = pool_of(instances, [0], catalogue=CHEAP)
        seen = [pool.begin([short[row] for row in rows], [50 + row for row in rows])]
        for decision in range(8):
            seen.append(pool.step([(row + decision) % 5 for row in rows])[0])
        slot = rows.index(0)
        finals.append((torch.stack(seen, 1)[slot], parameters_of(pool)[slot], pool.scores().score[slot].item()))
    assert equal_trees(finals[0], finals[1])
    assert equal_trees(finals[0], finals[2])


def test_convolutional_nets_do_the_same_alone_and_among_others(instance):
    """They are looped on a CPU, so their bits do not depend on N either."""
    instances = InstanceSet("cnn", (instance("a", model="cnn", total_steps=4, batch_size=8),), 2)
    pair, _ = played(pool_of(instances, [1, 2]))
    (alone,), _ = played(pool_of(instances, [2]))
    for one, other in zip(alone, pair[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_and_another_another(tiny):
    """What cannot be repeated cannot be debugged."""
    first, _ = played(pool_of(tiny, [7]))
    again, _ = played(pool_of(tiny, [7]))
    other, _ = played(pool_of(tiny, [8]))
    assert equal_trees(first, again)
    assert not equal_trees(first, other)


def test_global_random_numbers_are_neither_used_nor_changed(tiny):
    """A training beside this one would otherwise depend on it."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, _ = played(pool_of(tiny, [7]))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again, _ = played(pool_of(tiny, [7]))
    assert equal_trees(first, again)


def test_seeding_restarts_the_waves_and_a_run_can_begin_at_any(tiny):
    """A resumed run must meet the waves that it has not met, not the first ones again."""
    pool = pool_of(tiny, [3, 4])
    waves = [pool.reset().clone() for _ in range(3)]
    assert torch.equal(pool.reset([3, 4]), waves[0])
    pool.seed([3, 4], wave=2)
    assert torch.equal(pool.reset(), waves[2])
    assert not torch.equal(waves[0], waves[1])


def test_reset_rebuilds_the_classifiers(tiny):
    """A classifier that goes on from the last episode would make episodes depend on each other."""
    pool = pool_of(tiny, [3])
    pool.reset([3])
    before = parameters_of(pool)[0].clone()
    while not pool.step([0])[2]:
        pass
    assert not torch.equal(parameters_of(pool)[0], before)
    pool.reset([3])
    assert torch.equal(parameters_of(pool)[0], before)


def test_poisoned_test_labels_change_nothing(monkeypatch, tiny):
    """The test part must be out of reach, for rewards as for observations."""
    clean, _ = played(pool_of(tiny, [0, 1], reward="reference"))
    digits = data.load("digits")
    poisoned = dataclasses.replace(
        digits, test_labels=(digits.test_labels + 1) % 10, test_images=torch.zeros_like(digits.test_images)
    )
    monkeypatch.setattr(data, "load", lambda *_, **__: poisoned)
    assert equal_trees(played(pool_of(tiny, [0, 1], reward="reference"))[0], clean)


def test_poisoned_reward_labels_change_no_observation_and_every_score(monkeypatch, tiny):
    """An observation that knows the reward's images would let the agent read its mark off."""
    clean, clean_info = played(pool_of(tiny, [0, 1, 2]))
    split = dynamics.split

    def poisoned(*arguments):
        found = split(*arguments)
        return dataclasses.replace(found, reward_labels=(found.reward_labels + 1) % 10)

    monkeypatch.setattr(dynamics, "split", poisoned)
    found, info = played(pool_of(tiny, [0, 1, 2]))
    assert equal_trees(found, clean)
    assert (info["score"] != clean_info["score"]).all()


def test_poisoned_reward_images_change_no_observation(tiny):
    """The labels are not all that could leak."""
    clean = pool_of(tiny, [5])
    poisoned = pool_of(tiny, [5])
    poisoned.reset()
    instance = poisoned.slots[0].instance
    poisoned._library.source(instance).images[poisoned._library.split(instance).reward_rows] = torch.nan
    observations = []
    for pool in (clean, poisoned):
        rows = [pool.reset([5])]
        for entry in (0, 10, 3):
            rows.append(pool.step([entry])[0])
        observations.append(torch.cat(rows))
    assert torch.equal(*observations)
    assert poisoned.scores().accuracy.item() == 0.0


def test_rewards_are_zero_until_the_end_and_then_the_relative_score(tiny):
    """The definition, from the pool's own classifiers."""
    pool = pool_of(tiny, [0, 1, 2], reward="reference")
    pool.reset()
    for decision in range(4):
        _, reward, done, info = pool.step([0, 3, 10])
        assert done == (decision == 3)
        assert done or reward.tolist() == [0.0, 0.0, 0.0]
        assert done == ("score" in info)
    for row, slot in enumerate(pool.slots):
        source = dynamics.load_source("digits")
        split = dynamics.split(slot.instance, source)
        found = measure(pool.predict([source.images[split.reward_rows]] * 3)[row], split.reward_labels)
        assert info["score"][row].item() == pytest.approx(found.score.item(), abs=1e-9)
        assert info["final_acc"][row].item() == found.accuracy.item()
    expected = ((info["score"] - info["score_uniform"]) / 0.05).clamp(-2, 2)
    assert torch.equal(reward, expected.float())
    assert info["is_success"].tolist() == (info["score"] > info["score_uniform"]).tolist()
    assert info["decisions"] == tuple((name,) * 4 for name in ("none", "cutmix-1", "uniform"))
    assert info["step"].tolist() == [slot.instance.total_steps for slot in pool.slots]


def test_a_classifier_that_breaks_is_punished_and_harms_only_itself(instance):
    """One diverging slot must cost one reward, not the wave."""
    instances = InstanceSet("mixed", tuple(instance(name) for name in "abcdefghi"), 4)
    ill = instance("ill", learning_rate=1e8)
    results = []
    for members in ([instances.instances[0], ill], [instances.instances[0]]):
        pool = pool_of(instances, [0], reward="reference", catalogue=CHEAP)
        rows = [pool.begin(members, [5, 6][: len(members)])]
        for _ in range(4):
            observation, reward, done, info = pool.step([3] * len(members))
            rows.append(observation)
        assert done
        results.append((torch.stack(rows, 1), reward, info))
    together, alone = results
    assert torch.equal(together[0][0], alone[0][0])
    assert together[1][0].item() == alone[1][0].item()
    assert together[1][1].item() == -2.0
    assert together[2]["is_success"].tolist()[1] is False
    assert together[2]["score"][1].item() == 0.0
    names = pool.observation_names
    assert together[0][1, -1, names.index("loss/not_finite")].item() == 1.0
    assert together[0][1, -1].sum().item() == 1.0
    assert torch.isfinite(together[0]).all()


def test_the_reward_prefers_mixing_where_labels_are_wrong(instance):
    """The cosine reward of RL-Mix is highest for not mixing, everywhere; ours must see that mixing helps here."""
    noisy = instance("noisy", noise=0.4, train_size=300, total_steps=240, batch_size=32, learning_rate=0.2)
    instances = InstanceSet("noisy", (noisy,), 8)
    pool = pool_of(instances, [0], catalogue=CHEAP)
    pool.begin([noisy] * 8, [1, 2, 3, 4] * 2)
    while True:
        _, _, done, info = pool.step([CHEAP.index("none")] * 4 + [CHEAP.index("cutmix-1")] * 4)
        if done:
            break
    plain, mixed = info["score"].view(2, 4)
    assert (mixed - plain).min().item() > 0.05


def test_a_snapshot_brings_everything_back(tiny, tmp_path):
    """Restored into the same or a fresh pool, through a file, the same actions give the same bits."""
    pool = pool_of(tiny, [0, 1, 2], reward="reference")
    pool.reset()
    pool.step([2, 9, 10])
    save_tree(tmp_path / "pool.safetensors", pool.snapshot())

    def rest(one):
        rows = []
        for actions in ([4, 3, 10], [1, 10, 7], [0, 2, 5]):
            observation, reward, done, info = one.step(actions)
            rows.append(torch.cat([observation, reward.unsqueeze(1)], 1))
        assert done
        rows.append(one.reset())
        return rows, parameters_of(one), info["decisions"]

    first = rest(pool)
    pool.restore(load_tree(tmp_path / "pool.safetensors"))
    assert equal_trees(rest(pool), first)
    other = pool_of(tiny, [5], reward="reference")
    other.restore(load_tree(tmp_path / "pool.safetensors"))
    assert equal_trees(rest(other), first)


def test_a_snapshot_is_not_changed_by_going_on(tiny):
    """Tensors that are shared with the living pool would be trained on."""
    pool = pool_of(tiny, [0, 1])
    pool.reset()
    pool.step([2, 9])
    tree = pool.snapshot()
    first, _, _, _ = pool.step([3, 3])
    for _ in range(2):
        pool.restore(tree)
        again, _, _, _ = pool.step([3, 3])
        assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "other/1"}, "`schema` 'other/1'"),
        ({"catalogue": "0"}, "`catalogue` '0'"),
        ({"instances": "0"}, "`instances` '0'"),
    ],
)
def test_a_snapshot_of_something_else_is_refused(tiny, changes, message):
    """Entries of another catalogue would mean other methods."""
    pool = pool_of(tiny, [0])
    pool.reset()
    tree = {**pool.snapshot(), **changes}
    with pytest.raises(CheckpointError, match=message):
        pool.restore(tree)


def test_a_damaged_snapshot_is_refused_and_leaves_the_pool_as_it_was(tiny):
    """Half a restored state would train on without a word."""
    pool = pool_of(tiny, [0])
    pool.reset()
    before = pool.snapshot()
    damaged = {name: value for name, value in before.items() if name != "blocks"}
    with pytest.raises(CheckpointError, match="the snapshot is damaged .*blocks"):
        pool.restore(damaged)
    assert equal_trees(pool.snapshot(), before)


def test_a_fork_given_the_same_actions_stays_the_same(tiny):
    """What-if comparisons need common random numbers; a fork must not train its parent."""
    pool = pool_of(tiny, [0, 1, 2, 3], reward="reference")
    pool.reset()
    pool.step([2, 9, 10, 4])
    child = pool.fork([3, 1, 1])
    for decision in range(3):
        parent = pool.step([(decision + row) % 11 for row in range(4)])
        copy = child.step([(decision + row) % 11 for row in (3, 1, 1)])
        assert torch.equal(copy[0], parent[0][[3, 1, 1]])
        assert torch.equal(copy[1], parent[1][[3, 1, 1]])
    assert equal_trees(parameters_of(child), [parameters_of(pool)[row] for row in (3, 1, 1)])
    assert copy[3]["decisions"] == tuple(parent[3]["decisions"][row] for row in (3, 1, 1))


def test_forks_differ_by_their_actions_and_by_fresh_keys(tiny):
    """Vine rollouts need copies that go different ways from one state."""
    pool = pool_of(tiny, [0])
    pool.reset()
    pool.step([2])
    by_action = pool.fork([0, 0])
    by_action.step([0, 3])
    by_key = pool.fork([0, 0], rekey=True)
    assert equal_trees(parameters_of(by_key)[0], parameters_of(pool)[0])
    by_key.step([3, 3])
    for child in (by_action, by_key):
        one, two = parameters_of(child)
        assert not torch.equal(one, two)


def test_masks_follow_the_key_and_are_off_in_evaluation(tiny):
    """An evaluation in which validation is missing at random would compare apples with pears."""
    columns = [pool_of(tiny, [0]).observation_names.index(f"has/{name}") for name in ("model", "val", "n")]
    masked, full, blind = (
        pool_of(tiny, range(64), **changes).reset()[:, columns]
        for changes in ({"masks": True}, {"masks": False}, {"masks": False, "with_validation": False})
    )
    assert torch.equal(masked, pool_of(tiny, range(64), masks=True).reset()[:, columns])
    assert ((masked.mean(0) > 0.3) & (masked.mean(0) < 1.0)).all()
    assert torch.equal(full, torch.ones(64, 3))
    assert torch.equal(blind, torch.tensor([1.0, 0.0, 1.0]).expand(64, 3))


def test_the_mixing_keys_are_those_that_a_controller_derives_from_its_seed():
    """A deployed run with the episode key as its seed must mix the same images alike."""
    assert mixing_key(77, 5) == rng.derive(77, 1, 5)


def test_an_explicit_wave_may_have_any_size_and_instances(tiny, instance):
    """Evaluations bring their own instances, in blocks of their own size."""
    pool = pool_of(tiny, [0])
    observation = pool.begin([instance("other"), *tiny.instances], range(8))
    assert observation.shape == (8, len(pool.observation_names))
    assert pool.predict(torch.zeros(5, 1, 8, 8)).shape == (8, 5, 10)


def test_a_slot_can_be_given_its_instance(tiny):
    """Looking at one problem must not need a set of one."""
    pool = pool_of(tiny, [0, 1])
    pool.reset(instances=["long-2", None])
    picked = pool.slots[1].instance.id
    assert pool.slots[0].instance.id == "long-2"
    assert pool.reset([0, 1]) is not None
    assert pool.slots[1].instance.id == picked


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([0], r"must be 2 whole numbers, shape \(2,\), got int64 of shape \(1,\)"),
        ([[0, 1]], r"of shape \(1, 2\)"),
        ([0.0, 1.0], "got float64 of shape"),
        (torch.tensor([0.0, 1.0]), "got float32 of shape"),
        ([0, 11], r"must be in \[0, 11\), got \[0, 11\]. The entries are none, mixup-0.2"),
        ([-1, 0], r"must be in \[0, 11\), got \[-1, 0\]"),
    ],
)
def test_actions_of_a_wrong_form_are_refused(tiny, actions, message):
    """An action of -1 would index the last entry in silence."""
    pool = pool_of(tiny, [0, 1])
    pool.reset()
    with pytest.raises(EnvError, match=message):
        pool.step(actions)


def test_steps_before_the_beginning_and_after_the_end_are_refused(tiny):
    """A step past the budget would train at a learning rate that does not exist."""
    pool = pool_of(tiny, [0])
    with pytest.raises(EnvError, match="Call `reset` first"):
        pool.step([0])
    for call in (pool.scores, pool.snapshot, lambda: pool.fork([0]), lambda: pool.predict(torch.zeros(1, 1, 8, 8))):
        with pytest.raises(EnvError, match="no wave has begun"):
            call()
    pool.reset()
    for _ in range(4):
        pool.step([0])
    with pytest.raises(EnvError, match="the wave has ended"):
        pool.step([0])


def test_mistaken_arguments_are_named(tiny, instance):
    """Each mistake must be named where it is made."""
    for seeds in ([], [-1], [2**63]):
        with pytest.raises(EnvError, match="`seeds` must be one or more whole numbers"):
            pool_of(tiny, seeds)
    with pytest.raises(EnvError, match="`reward` must be \"reference\" or None, got 'cosine'"):
        pool_of(tiny, [0], reward="cosine")
    with pytest.raises(EnvError, match="the catalogue has only none"):
        pool_of(tiny, [0], reward="reference", catalogue=Catalogue({"none": Decision("none")}))
    pool = pool_of(tiny, [0, 1])
    with pytest.raises(EnvError, match="Did you mean `long-1`"):
        pool.reset(instances=["lon-1", None])
    with pytest.raises(EnvError, match="one for each of 2 slots, got 1"):
        pool.reset(instances=["long-1"])
    with pytest.raises(EnvError, match="got 1 and 2 keys"):
        pool.begin(tiny.instances[:1], [0, 1])
    with pytest.raises(ConfigError, match="multiple of the horizon 4, got 6"):
        pool.begin([instance("odd", total_steps=6)], [0])
    with pytest.raises(DataError, match="The largest `train_size` is 1000"):
        pool.begin([instance("large", train_size=2000)], [0])
    with pytest.raises(UnknownNameError, match="no model `mpl`. Did you mean `mlp`"):
        pool.begin([instance("model", model="mpl")], [0])
    pool.reset()
    with pytest.raises(EnvError, match=r"slots in \[0, 2\), got \[2\]"):
        pool.fork([2])
    with pytest.raises(EnvError, match="one for each of 2 slots, got 3"):
        pool.predict([torch.zeros(1, 1, 8, 8)] * 3)
