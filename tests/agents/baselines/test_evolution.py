"""Evolution of a policy on real but very short trainings: shared episodes, resuming bit for bit, what is deployed."""

from __future__ import annotations

import hashlib

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlmix._files import equal_trees, load_tree
from rlmix.agents.baselines.evolution import ESConfig, fitness_of, play, slot_seeds, train_es
from rlmix.agents.baselines.strategy import initial, layers_of
from rlmix.agents.runs import CHECKPOINT
from rlmix.envs.instances import Family, Recipe
from rlmix.envs.pool import Pool
from rlmix.errors import CheckpointError, ConfigError, OutputError
from rlmix.policy.artifact import load
from rlmix.policy.codec import catalogue
from rlmix.policy.network import PolicyNetwork
from rlmix.policy.signals import names
from rlmix.training.config import load_config

HORIZON, ACTORS, WAVES = 4, 8, 3
CHEAP = catalogue("cheap")
WIDTHS = (len(names(CHEAP)), 16, len(CHEAP))


def tiny(part, count=4):
    family = Family(data="digits", total_steps={8: 1, 16: 1}, train_size=(100, 200), noise=(0.0, 0.4))
    return Recipe(name="tiny", families=(family,), horizon=HORIZON).generate(part, count)


def config(out, **changes):
    fields = {
        "catalogue": "cheap",
        "timesteps": WAVES * ACTORS * HORIZON,
        "actors": ACTORS,
        "episodes": 2,
        "hidden": (16,),
        "evaluate_every": 1,
    }
    return ESConfig(**{**fields, "out": str(out), **changes})


def train(settings, **arguments):
    return train_es(settings, instances=tiny("train"), validation=tiny("validation", 2), **arguments)


def digest(folder):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "policy").iterdir())]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished training: its folder and its policy."""
    folder = tmp_path_factory.mktemp("evolution") / "run"
    return folder, train(config(folder))


def test_twins_share_instances_and_keys_and_pairs_do_not():
    """Common random numbers: the difference of twins is then due to their weights alone."""
    seeds = slot_seeds(3, pairs=2, episodes=2)
    assert seeds == [3, 4, 3, 4, 5, 6, 5, 6]
    pool = Pool(tiny("train"), seeds=seeds, catalogue=CHEAP, reward=None)
    observations = pool.reset()
    slots = [(slot.instance.id, slot.key, slot.visible) for slot in pool.slots]
    assert slots[0:2] == slots[2:4]
    assert slots[4:6] == slots[6:8]
    assert len({key for _, key, _ in slots}) == 4
    assert torch.equal(observations[0:2], observations[2:4])


def test_twins_that_choose_alike_get_the_same_reward_bit_for_bit():
    """If anything but the choices differed between twins, their difference would be noise."""
    pool = Pool(tiny("train"), seeds=slot_seeds(0, pairs=2, episodes=2), catalogue=CHEAP)
    members = initial(WIDTHS, 0).expand(4, -1)
    wave = play(pool, members, WIDTHS, lambda progress: None)
    rewards = wave.rewards.view(2, 2, 2)
    assert torch.equal(rewards[:, 0], rewards[:, 1])
    assert wave.observations.shape == (HORIZON, ACTORS, WIDTHS[0])


def test_fitness_is_the_mean_of_a_members_own_trainings():
    """In the order of the slots: pair, twin, episode. Another order would reward a member for what its twin did."""
    fitness = fitness_of(torch.arange(12.0), pairs=2, episodes=3)
    assert fitness.tolist() == [[1.0, 4.0], [7.0, 10.0]]
    seeds = torch.tensor(slot_seeds(0, pairs=2, episodes=3)).view(2, 2, 3)
    assert torch.equal(seeds[:, 0], seeds[:, 1])


def test_members_act_by_their_own_weights_on_their_own_slots():
    """A mixed-up member dimension would select weights for what others did."""
    pool = Pool(tiny("train"), seeds=slot_seeds(0, pairs=2, episodes=2), catalogue=CHEAP)
    members = torch.randn(4, initial(WIDTHS, 0).numel(), generator=torch.Generator().manual_seed(0))
    wave = play(pool, members, WIDTHS, lambda progress: None)
    for slot in range(ACTORS):
        network = PolicyNetwork(actor=layers_of(members[slot // 2], WIDTHS))
        expected = network.logits(wave.observations[:, slot]).argmax(-1)
        assert torch.equal(wave.actions[slot], expected)
    assert len({tuple(row) for row in wave.actions.tolist()}) > 1


def test_policy_directory_holds_the_centre_and_where_it_comes_from(finished):
    """What is deployed must be what was evolved, and traceable."""
    folder, policy = finished
    loaded = load(folder / "policy")
    for one, other in zip(loaded.network.actor, policy.network.actor, strict=True):
        assert torch.equal(one[0], other[0])
    tree = load_tree(folder / CHECKPOINT)
    observations = torch.stack([tree["ranges"]["low"], tree["ranges"]["high"]])
    whole = PolicyNetwork(actor=layers_of(tree["strategy"]["centre"], WIDTHS))
    own = loaded.network.logits(observations[:, loaded.columns(names(CHEAP))])
    torch.testing.assert_close(own[0], whole.logits(observations)[0], rtol=1e-4, atol=1e-5)
    assert loaded.card["algorithm"] == "OpenAI-ES"
    assert loaded.card["timesteps"] == WAVES * ACTORS * HORIZON
    assert loaded.card["config"]["sigma"] == 0.3
    assert {"eval/accuracy", "eval/score"} <= set(loaded.card["statistics"])
    assert str(folder) not in (folder / "policy" / "policy.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("decision", [1, 3])
def test_interrupted_and_resumed_evolution_gives_the_same_policy_bit_for_bit(finished, tmp_path, decision):
    """The promise of `--resume`, wherever the interruption fell."""

    def stop(progress):
        if progress.decisions == ACTORS * (HORIZON + decision):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path), progress=stop)
    assert load_tree(tmp_path / CHECKPOINT)["timesteps"] == ACTORS * HORIZON
    train(config(tmp_path), resume=True)
    assert digest(tmp_path) == digest(finished[0])
    assert equal_trees(load_tree(tmp_path / CHECKPOINT), load_tree(finished[0] / CHECKPOINT))


def test_a_longer_run_goes_on_from_a_shorter_one(finished, tmp_path):
    """The number of decisions does not change the course."""
    train(config(tmp_path, timesteps=1))
    train(config(tmp_path), resume=True)
    assert digest(tmp_path) == digest(finished[0])


def test_another_seed_another_policy_and_no_global_randomness(finished, tmp_path):
    """All agent seeds must not be one, and a notebook's numbers must not change by training an agent."""
    before = torch.get_rng_state()
    train(config(tmp_path, seed=1, timesteps=1, evaluate_every=0))
    assert torch.equal(before, torch.get_rng_state())
    assert digest(tmp_path) != digest(finished[0])


def test_curves_and_figures_in_one_tensorboard_run(finished):
    """A missing tag is a blind training."""
    folder, _ = finished
    assert len(list(folder.rglob("events.out.tfevents.*"))) == 1
    events = EventAccumulator(str(folder))
    events.Reload()
    expected = {"rollout/ep_rew_mean", "evolution/fitness_highest", "evolution/norm", "eval/accuracy"}
    assert expected <= set(events.Tags()["scalars"])
    assert {"policy/probabilities", "mixed/entries"} <= set(events.Tags()["images"])
    for decision in range(HORIZON):
        tags = [f"policy/probability/{name}/{decision}" for name in CHEAP.methods]
        assert sum(events.Scalars(tag)[-1].value for tag in tags) == pytest.approx(1.0, abs=1e-5)
    steps = [event.step for event in events.Scalars("rollout/ep_rew_mean")]
    assert steps == [ACTORS * HORIZON * wave for wave in range(1, WAVES + 1)]


def test_runs_of_something_else_are_refused(finished, tmp_path):
    """The result would be one that no configuration describes."""
    folder, _ = finished
    with pytest.raises(OutputError, match="already holds a run"):
        train(config(folder))
    with pytest.raises(CheckpointError, match="`sigma` was 0.3 and is now 0.2"):
        train(config(folder, sigma=0.2), resume=True)
    with pytest.raises(CheckpointError, match="does not exist"):
        train(config(tmp_path), resume=True)
    assert load_config(folder / "config.yaml", ESConfig) == config(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actors": 6, "episodes": 2}, "`actors` must be a multiple of 2 x `episodes` = 4.*got 6"),
        ({"sigma": 0.0}, "`sigma` must be above 0, got 0.0"),
        ({"learning_rate": float("inf")}, "`learning_rate` must be above 0, got inf"),
        ({"weight_decay": -1.0}, "`weight_decay` must be at least 0, got -1.0"),
        ({"hidden": ()}, r"`hidden` must hold widths of at least 1, got \[\]"),
        ({"seed": -1}, r"`seed` must be in \[0, 2\*\*32\), got -1"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    """A typo in a configuration must not become a training that fails an hour later."""
    with pytest.raises(ConfigError, match=message):
        ESConfig(**changes)
