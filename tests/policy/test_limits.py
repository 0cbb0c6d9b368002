"""The limits of a policy: a training outside them is left to the entry that was measured as the safest."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlmix._files import load_tree, save_tree
from rlmix.errors import PolicyError
from rlmix.policy.artifact import LearnedPolicy, load, save
from rlmix.policy.codec import catalogue
from rlmix.policy.controller import MixController
from rlmix.policy.limits import Limits, facts_of, limits_of
from rlmix.policy.network import PolicyNetwork
from rlmix.policy.signals import Context

CHEAP = catalogue("cheap")
LIMITS = Limits(otherwise="mixup-1", ranges={"side": (8, 32), "classes": (2, 20), "examples": (100, 1000)})


def policy(limits: Limits | None = LIMITS) -> LearnedPolicy:
    """Return a policy that always prefers CutMix."""
    bias = torch.zeros(len(CHEAP))
    bias[CHEAP.index("cutmix-1")] = 5.0
    return LearnedPolicy(
        network=PolicyNetwork(actor=((torch.zeros(len(CHEAP), 1), bias),)),
        observation_names=("time/progress",),
        low=torch.tensor([-1.0]),
        high=torch.tensor([1.0]),
        catalogue=CHEAP,
        horizon=4,
        card={} if limits is None else {"limits": limits.to_json()},
    )


def trained(
    source: Any, *, side: int = 8, classes: int = 10, examples: int | None = 400, **changes: Any
) -> MixController:
    """Return the controller of a training of eight steps."""
    mixer = MixController(source, num_classes=classes, total_steps=8, seed=0, num_examples=examples, **changes)
    model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, classes))
    for _ in range(8):
        mixer(torch.rand(16, 1, side, side), torch.randint(classes, (16,)), model=model)
    return mixer


def names(mixer: MixController) -> set[str]:
    return {decision.method for _, decision in mixer.decisions}


@pytest.mark.parametrize(
    ("training", "why"),
    [
        ({}, None),
        ({"side": 32, "classes": 20, "examples": 1000}, None),
        ({"side": 36}, "36 pixels along a side of the images (8 to 32)"),
        ({"classes": 100, "examples": 50_000}, "100 classes (2 to 20); 50,000 training images (100 to 1,000)"),
        # What is not known cannot be outside.
        ({"examples": None}, None),
    ],
)
def test_outside_its_limits_a_policy_leaves_the_choice_to_its_safest_entry_and_says_so_once(
    training: dict[str, Any], why: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A policy that guesses where nobody measured it would do harm that nobody sees."""
    with caplog.at_level(logging.WARNING, logger="rlmix"):
        mixer = trained(policy(), **training)
    said = [record.message for record in caplog.records]
    if why is None:
        assert names(mixer) == {"cutmix"}
        assert not said
        assert mixer.close().fallback is None
    else:
        assert names(mixer) == {"mixup"}
        assert len(said) == 1
        assert f"`mixup-1` is used throughout: {why}. MixController(..., limits=False)" in said[0]
        report = mixer.close()
        assert report.fallback == "mixup-1"
        assert "8 steps with 4 decisions, all of them `mixup-1` since the policy is outside its limits" in report.text


def test_who_knows_better_may_let_the_policy_decide(caplog: pytest.LogCaptureFixture) -> None:
    """Measuring a policy outside its limits must be possible, or they could never be widened."""
    with caplog.at_level(logging.WARNING, logger="rlmix"):
        assert names(trained(policy(), side=40, limits=False)) == {"cutmix"}
        assert names(trained(policy(None), side=40)) == {"cutmix"}
        # The safest entry is not allowed here, so the policy chooses among those that are.
        assert names(trained(policy(), side=40, allow=["none", "cutmix-1"])) == {"cutmix"}
    assert not caplog.records


def test_a_resumed_training_stays_with_the_entry_and_is_not_told_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The limits are looked at before the first step, which a resumed training does not see."""
    save_tree(tmp_path / "state.safetensors", trained(policy(), side=40).state_dict())
    caplog.clear()
    mixer = MixController(policy(), num_classes=10, total_steps=8, seed=0)
    mixer.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    assert mixer.close().fallback == "mixup-1"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_facts_are_those_of_the_training_in_its_own_units() -> None:
    """By hand: 120 steps of 32 images over 640 are 6 epochs; 4 x 9 pixels are as many as 6 x 6."""
    known = {"num_examples": 640, "batch_size": 32, "num_classes": 10, "height": 4, "width": 9}
    facts = facts_of(Context.of(1, total_steps=120, **known))
    assert facts == {"examples": 640, "batch_size": 32, "classes": 10, "epochs": 6, "side": 6}


def test_limits_are_kept_with_the_policy(tmp_path: Path) -> None:
    """They are part of what makes a policy safe to hand on."""
    save(tmp_path, policy())
    found = load(tmp_path)
    assert limits_of(found.card, found.catalogue) == LIMITS


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ("none", "must have `otherwise` and `ranges`"),
        ({"otherwise": "none"}, "must have `otherwise` and `ranges`"),
        ({"otherwise": "cutmx", "ranges": {}}, "an entry that the catalogue does not have.*cutmix-1"),
        ({"otherwise": "none", "ranges": {"sides": [1, 2]}}, "name `sides`.*side"),
        ({"otherwise": "none", "ranges": {"side": [2, 1]}}, r"limits of `side` must be .* got \[2, 1\]"),
        ({"otherwise": "none", "ranges": {"side": [True, 2]}}, "limits of `side`"),
    ],
)
def test_limits_that_make_no_sense_are_refused_when_the_policy_is_read(limits: Any, match: str, tmp_path: Path) -> None:
    """Found at the first step, they would stop a training that has already waited for its machine."""
    save(tmp_path, replace(policy(), card={"limits": limits}))
    with pytest.raises(PolicyError, match=match):
        load(tmp_path)
