"""A released policy: its card's results and limits, against what they are made of."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlmix.agents.baselines.fixed import FixedAgent
from rlmix.agents.history import Training
from rlmix.agents.page import Study
from rlmix.agents.release import limits_from, release, released
from rlmix.agents.report import Report, Run
from rlmix.agents.results import LevelResult, Team
from rlmix.envs.block import Library
from rlmix.envs.instances import InstanceSet, digits_set
from rlmix.errors import InputError
from rlmix.policy.artifact import LearnedPolicy, load, save
from rlmix.policy.codec import catalogue
from rlmix.policy.limits import limits_of
from rlmix.policy.network import PolicyNetwork

CHEAP = catalogue("cheap")
LIBRARY = Library(CHEAP, None, "cpu")
TRAINING = digits_set("train", 6)
PROVENANCE = {"commit": "c0ffee", "hardware": "two cores", "date": "2026-11-21", "command": "rlmix agent evaluate"}


def level(name: str, gains: dict[str, float], *, batch_size: int = 32) -> LevelResult:
    """Return a level on which each agent is better than uniform mixing by so much on every instance."""
    instances = tuple(replace(one, batch_size=batch_size) for one in digits_set("heldout", 6).instances)
    base = {entry: gains.get(entry, 0.0) for entry in CHEAP.names} | {"learned/0": gains["learned"]}
    runs = tuple(
        Run(
            instance=instance.id, agent=agent, replicate=replicate, total_steps=instance.total_steps, epochs=5.0,
            accuracy=0.5 + 0.01 * place + base[agent], score=0.5, ts_nll=1.0, ece=0.1, actions=("none",) * 8,
        )
        for (place, instance), replicate, agent in itertools.product(enumerate(instances), range(2), base)
    )  # fmt: skip
    report = Report(instances=name, digest="d", seed=0, split="test", with_validation=True, runs=runs)
    team = Team(name="learned", members={"learned/0": FixedAgent("none", CHEAP)}, observes=True)
    return LevelResult(name=name, instances=instances, catalogue=CHEAP, teams=(team,), reports={"steps": report})


# On the new data CutMix does harm, and the policy is worse than mixup; with huge batches it is better.
RESULTS = (
    level("same", {"learned": 0.05, "cutmix-1": 0.04, "mixup-1": 0.01, "none": -0.03}),
    level("new data", {"learned": -0.01, "cutmix-1": -0.04, "mixup-1": 0.02, "none": 0.0}, batch_size=8),
    level("large batches", {"learned": 0.03, "mixup-1": 0.01}, batch_size=128),
)


def policy() -> LearnedPolicy:
    return LearnedPolicy(
        network=PolicyNetwork(actor=((torch.zeros(len(CHEAP), 1), torch.zeros(len(CHEAP))),)),
        observation_names=("time/progress",),
        low=torch.tensor([-1.0]),
        high=torch.tensor([1.0]),
        catalogue=CHEAP,
        horizon=8,
        card={"algorithm": "PPO"},
    )


def test_the_safest_entry_is_the_one_whose_worst_level_is_best() -> None:
    """CutMix wins on one level by more than mixup on any, and loses on another."""
    assert limits_from(RESULTS, "learned", TRAINING, LIBRARY).otherwise == "mixup-1"
    assert limits_from(RESULTS[:1], "learned", TRAINING, LIBRARY).otherwise == "cutmix-1"


def test_ranges_reach_to_where_the_policy_was_not_below_the_safest_entry() -> None:
    """A level on which the policy lost must not widen them."""
    limits = limits_from(RESULTS, "learned", TRAINING, LIBRARY)
    assert limits.ranges["batch_size"] == (32, 128)
    assert limits.ranges["side"] == (8, 8)
    assert limits.ranges["classes"] == (10, 10)
    sizes = [one.train_size for one in (*TRAINING.instances, *digits_set("heldout", 6).instances)]
    assert limits.ranges["examples"] == (min(sizes), max(sizes))


def test_facts_of_an_instance_are_those_of_its_net_and_images() -> None:
    """64-128-128-10 has 64*128+128 + 128*128+128 + 128*10+10 parameters."""
    instance = replace(TRAINING.instances[0], train_size=320, batch_size=32, total_steps=120)
    facts = LIBRARY.facts(instance)
    assert facts == {
        "examples": 320, "epochs": 12, "batch_size": 32, "classes": 10, "side": 8, "parameters": 26122,
    }  # fmt: skip


def test_a_card_states_the_differences_in_points_and_survives_the_disk(tmp_path) -> None:
    """What users read about a policy is computed from the study, not typed."""
    found = released(policy(), RESULTS, "learned", TRAINING, provenance=PROVENANCE, notes={"hours": 1.5})
    save(tmp_path, found)
    again = load(tmp_path)
    card = again.card
    assert (card["algorithm"], card["hours"]) == ("PPO", 1.5)
    assert [one["name"] for one in card["results"]["levels"]] == ["same", "new data", "large batches"]
    first = card["results"]["levels"][0]
    assert first["to"]["cutmix-1"] == pytest.approx([1.0, 1.0, 1.0])
    assert first["to"]["none"] == pytest.approx([8.0, 8.0, 8.0])
    assert first["accuracy"] == pytest.approx(100 * (0.525 + 0.05))
    assert (first["instances"], first["replicates"], card["results"]["seeds"]) == (6, 2, 1)
    assert card["results"]["commit"] == "c0ffee"
    limits = limits_of(card, CHEAP)
    assert limits is not None
    assert limits.otherwise == "mixup-1"


def test_notes_cannot_replace_what_is_computed_and_nothing_is_said_without_a_study() -> None:
    """A card with a typed result would be believed like a measured one."""
    with pytest.raises(InputError, match=r"must not replace .* got `results`"):
        released(policy(), RESULTS, "learned", TRAINING, provenance=PROVENANCE, notes={"results": {}})
    with pytest.raises(InputError, match="there is no level"):
        released(policy(), (), "learned", InstanceSet("none", TRAINING.instances, 8), provenance=PROVENANCE)


def study(*trainings: Training) -> Study:
    return Study(
        trainings=trainings,
        results=RESULTS,
        report={"provenance": PROVENANCE},
        machines={"two cores": 8},
        policies=len(trainings),
    )


def training(seed: int, gain: float, digest: str = TRAINING.digest) -> Training:
    """Return a training whose last evaluation on validation instances gave `gain`; an earlier one gave more."""
    card = {
        "algorithm": "PPO", "seed": seed, "timesteps": 512, "config": {"instances": "digits"},
        "instances": {"name": "digits-train", "digest": digest, "count": 6},
    }  # fmt: skip
    own = replace(policy(), card=card)
    return Training(folder=Path("runs"), policy=own, curve=((256, 0.09), (512, gain)), hours=0.251)


def test_the_policy_that_was_best_on_validation_instances_is_handed_on() -> None:
    """Chosen by the held-out results, it would be the luckiest."""
    found = release(study(training(0, 0.01), training(1, 0.02), training(2, -0.01)), TRAINING)
    assert found.card["seed"] == 1
    assert found.card["selection"]["gains"] == {"0": 1.0, "1": 2.0, "2": -1.0}
    assert found.card["compute"] == {"hours": {"0": 0.25, "1": 0.25, "2": 0.25}, "hardware": ["two cores"]}
    assert found.card["results"]["levels"][0]["to"]["none"] == pytest.approx([8.0, 8.0, 8.0])


def test_policies_of_another_set_are_refused() -> None:
    """Their limits would be those of trainings that they never saw."""
    with pytest.raises(InputError, match="trained on the sets .*'ffff'"):
        release(study(training(0, 0.01), training(1, 0.02, "ffff")), TRAINING)
    with pytest.raises(InputError, match="trained on the sets"):
        release(study(training(0, 0.01)), digits_set("train", 5))
