"""The policy of this package: small, with a card that says what it was measured to do, and loaded by name."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from rlmix.errors import UnknownNameError
from rlmix.policy.artifact import DEFAULT, folder_of, load
from rlmix.policy.controller import MixController
from rlmix.policy.limits import limits_of


def mixed(source: object, *, side: int, classes: int, steps: int = 16) -> MixController:
    """Return the controller of a short training on random images."""
    mixer = MixController(source, num_classes=classes, total_steps=steps, seed=0, num_examples=10 * steps)
    model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 128), nn.ReLU(), nn.Linear(128, classes))
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        images = torch.randn(32, 1, side, side, generator=generator)
        mixer(images, torch.randint(classes, (32,), generator=generator), model=model)
        mixer.observe(loss=2.0, lr=0.1)
    return mixer


def test_its_card_says_what_it_was_measured_to_do_and_where_not_to_use_it() -> None:
    """A policy that comes with a package is used by people who never saw how it was trained."""
    policy = load(DEFAULT)
    card = policy.card
    limits = limits_of(card, policy.catalogue)
    assert limits is not None
    assert set(limits.ranges) == {"examples", "epochs", "batch_size", "classes", "side", "parameters"}
    results = card["results"]
    assert results["seeds"] >= 5
    assert len(results["levels"]) >= 3
    for level in results["levels"]:
        assert level["replicates"] >= 10
        assert {"none", "uniform-cheap", *policy.catalogue.names} <= set(level["to"])
    assert card["instances"]["count"] >= 300
    assert card["compute"]["hours"]
    assert "/" not in results["commit"]
    assert len(results["commit"]) == 40


def test_it_is_small_and_names_no_machine() -> None:
    """It is part of every installation."""
    files = sorted(folder_of(DEFAULT).iterdir())
    assert [file.name for file in files if file.suffix] == ["policy.json", "policy.safetensors"]
    assert sum(file.stat().st_size for file in files) < 200_000
    text = (folder_of(DEFAULT) / "policy.json").read_text(encoding="utf-8")
    assert "/tmp" not in text
    assert "/home" not in text


def test_it_decides_where_it_was_measured_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    """Small images of ten classes are what it learned on; a thousand classes at 96 pixels are not."""
    with caplog.at_level(logging.WARNING, logger="rlmix"):
        mixer = mixed(DEFAULT, side=8, classes=10)
    assert not caplog.records
    assert len(mixer.decisions) == load(DEFAULT).horizon
    assert mixer.close().fallback is None
    with caplog.at_level(logging.WARNING, logger="rlmix"):
        far = mixed(DEFAULT, side=96, classes=1000)
    assert far.close().fallback is not None
    assert len([record for record in caplog.records if "outside the limits" in record.message]) == 1


def test_its_name_and_its_folder_are_one_policy() -> None:
    """`load`, the constructor and the command line take the name."""
    arguments = {"num_classes": 10, "total_steps": 16, "seed": 0}
    named = MixController.load(DEFAULT, **arguments)
    assert named.state_dict()["identity"] == MixController(folder_of(DEFAULT), **arguments).state_dict()["identity"]
    with pytest.raises(UnknownNameError, match="default"):
        MixController("defalt", **arguments)
    assert Path(folder_of(DEFAULT)).is_dir()
