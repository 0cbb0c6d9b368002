"""The test part of a data set stays outside the environment."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from dataclasses import replace
from pathlib import Path

import torch

import rlmix.envs
from rlmix.envs import dynamics, heldout
from rlmix.training import data


def test_the_test_part_is_that_of_the_data_set(instance):
    """Evaluation must be on images that no instance can have."""
    images, labels = heldout.test_split(instance("a", noise=0.4))
    arrays = data.load("digits")
    mean, deviation = arrays.train_images.mean(), arrays.train_images.std(correction=0)
    # In the units of the training part: its own mean would tell something of the test images.
    assert torch.allclose(images, (arrays.test_images - mean) / deviation, atol=1e-5)
    assert torch.equal(labels, arrays.test_labels)


def test_no_image_of_the_test_part_is_in_the_training_part():
    """A split that overlaps would make every figure too good."""
    arrays = data.load("digits")
    train = {image.numpy().tobytes() for image in arrays.train_images}
    assert sum(image.numpy().tobytes() in train for image in arrays.test_images) == 0


def test_nothing_in_the_environment_reads_the_test_part():
    """A convenient import is how test images get into a reward."""
    modules = [module.name for module in pkgutil.iter_modules(rlmix.envs.__path__, "rlmix.envs.")]
    assert "rlmix.envs.pool" in modules
    for name in {"rlmix.envs", *modules} - {"rlmix.envs.heldout"}:
        tree = ast.parse(Path(importlib.import_module(name).__file__ or "").read_text(encoding="utf-8"))
        nodes = list(ast.walk(tree))
        named = {getattr(node, kind, "") for node in nodes for kind in ("attr", "id")}
        imported = {getattr(node, "module", "") for node in nodes}
        assert not named & {"test_images", "test_labels", "test_split"}, name
        assert "rlmix.envs.heldout" not in imported, name


def test_the_test_part_of_drawn_classes_has_these_alone_and_the_instances_noise(instance):
    """A classifier of three classes cannot be asked for ten, and a noisy camera is noisy at the test too."""
    arrays, parts = data.load("digits"), heldout.HeldOut()
    one = instance("a", classes=3, side=4)
    images, labels = parts.of(one)
    numbers = dynamics.class_numbers(one, 10)[arrays.test_labels]
    assert torch.equal(labels, numbers[numbers >= 0])
    train, test = (dynamics.resized(part, 4, False) for part in (arrays.train_images, arrays.test_images))
    assert torch.equal(images, dynamics.standardized(test, train)[numbers >= 0])
    noisy, same = parts.of(replace(one, input_noise=0.3))
    assert torch.equal(same, labels)
    assert 0.25 < float((noisy - images).std()) < 0.35
