"""Splits, batches, rates, menus: functions of (instance, key) and nothing else."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from rlmix.envs import dynamics
from rlmix.envs.instances import InstanceSet, digits_set
from rlmix.errors import ConfigError, DataError, UnknownNameError
from rlmix.training import data
from rlmix.training.models.registry import build


@pytest.fixture(scope="module")
def source():
    return dynamics.load_source("digits")


def test_the_parts_of_a_split_have_no_image_in_common(instance, source):
    """An image that is trained on and rewarded for makes memorising pay."""
    split = dynamics.split(instance("a"), source)
    rows = torch.cat([split.train_rows, split.validation_rows, split.reward_rows])
    assert rows.numel() == 100 + dynamics.VALIDATION + dynamics.REWARD
    assert rows.unique().numel() == rows.numel()


def test_a_source_holds_the_training_part_alone(source):
    """What the environment does not hold it cannot leak."""
    arrays = data.load("digits")
    assert torch.equal(source.images, dynamics.standardized(arrays.train_images, arrays.train_images))
    deviation, mean = torch.std_mean(source.images, correction=0)
    assert abs(float(mean)) < 1e-5
    assert abs(float(deviation) - 1.0) < 1e-5
    assert {field.name for field in dataclasses.fields(source)} == {"images", "labels", "num_classes"}


def test_labels_are_wrong_in_training_and_val_o_and_right_in_val_r(instance, source):
    """Clean val-O labels would tell the agent the noise; noisy val-R labels would reward learning it."""
    split = dynamics.split(instance("a", noise=0.4, train_size=1000), source)
    for rows, labels, low, high in (
        # Six standard deviations of a binomial share around 0.4: false alarms below 1e-8.
        (split.train_rows, split.train_labels, 0.306, 0.494),
        (split.validation_rows, split.validation_labels, 0.16, 0.64),
        (split.reward_rows, split.reward_labels, 0.0, 0.0),
    ):
        wrong = (labels != source.labels[rows]).double().mean().item()
        assert low <= wrong <= high
        assert labels.min() >= 0
        assert labels.max() < source.num_classes


def test_without_noise_labels_are_those_of_the_data_set(instance, source):
    """A noise of 0 means none."""
    split = dynamics.split(instance("a", noise=0.0), source)
    assert torch.equal(split.train_labels, source.labels[split.train_rows])
    assert torch.equal(split.validation_labels, source.labels[split.validation_rows])


def test_more_noise_keeps_the_labels_that_were_wrong(instance, source):
    """Instances that differ in noise alone must differ in nothing else."""
    less, more = (dynamics.split(instance("a", noise=noise), source) for noise in (0.1, 0.3))
    assert torch.equal(less.train_rows, more.train_rows)
    wrong = less.train_labels != source.labels[less.train_rows]
    assert torch.equal(less.train_labels[wrong], more.train_labels[wrong])


def test_a_data_set_that_is_too_small_names_the_largest_size(instance, source):
    """Splits that overlap for want of images would leak."""
    with pytest.raises(DataError, match=r"needs 1401 training images of `digits` \(1001 to train.*is 1000"):
        dynamics.split(instance("a", train_size=1001), source)


def test_an_unknown_data_set_is_named():
    """A typo in a recipe must not end as a missing file."""
    with pytest.raises(UnknownNameError, match="Did you mean `digits`"):
        dynamics.load_source("digit")


@pytest.mark.parametrize("size", [7, 60, 100, 128])
def test_batches_go_through_all_images_before_any_comes_again(instance, size):
    """Images that are drawn with replacement would make small sets look smaller."""
    one = instance("a", train_size=size, total_steps=40)
    rows = dynamics.batch_rows(one, 5)
    assert rows.shape == (40, 16)
    for epoch in rows.flatten()[: 640 // size * size].view(-1, size):
        assert torch.equal(epoch.sort().values, torch.arange(size))
    assert torch.equal(rows, dynamics.batch_rows(one, 5))
    assert not torch.equal(rows, dynamics.batch_rows(one, 6))


def test_learning_rates_are_those_of_torchs_cosine(instance):
    """A deployed training with CosineAnnealingLR must look as trainings here do."""
    one = instance("a", total_steps=24)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=one.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
    for rate in dynamics.learning_rates(one):
        assert rate == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_initial_weights_belong_to_the_key_and_are_copies():
    """Weights that share memory with the model would train it, and all that begin after it."""
    model = build("mlp", channels=1, height=8, width=8, num_classes=10)
    first, again, other = (dynamics.initial_weights(model, key) for key in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])
    assert first["1.weight"].data_ptr() != again["1.weight"].data_ptr()


def test_sources_are_hidden_as_often_as_said_and_independently():
    """A policy that never trained without validation would not work without."""
    shown = [dynamics.visible(key) for key in range(4000)]
    # Six standard deviations of a share of 4,000: false alarms below 1e-8.
    for name, share in (("validation", 0.30), ("examples", 0.15), ("model", 0.10)):
        hidden = sum(not getattr(one, name) for one in shown) / len(shown)
        assert abs(hidden - share) < 6 * (share * (1 - share) / len(shown)) ** 0.5
    both = sum(not one.validation and not one.examples for one in shown) / len(shown)
    assert abs(both - 0.045) < 6 * (0.045 * 0.955 / len(shown)) ** 0.5


def test_a_menu_has_four_buckets_at_most_and_changes_with_the_wave(instance):
    """Eight buckets in one wave would be eight stacks of an eighth of the size."""
    instances = InstanceSet("many", tuple(instance(f"a-{steps}", total_steps=steps) for steps in range(4, 36, 4)), 4)
    menus = [dynamics.menu(instances, instances.digest, wave) for wave in range(12)]
    assert all(len({one.bucket for one in menu}) == dynamics.MENU for menu in menus)
    assert menus[3] == dynamics.menu(instances, instances.digest, 3)
    assert {one for menu in menus for one in menu} == set(instances.instances)


def test_slots_of_a_vector_meet_the_buckets_in_proportion():
    """A wave that happens to hold long trainings only would take twice the time and teach half as much."""
    instances = digits_set("train")
    for wave in range(20):
        menu = dynamics.menu(instances, instances.digest, wave)
        picked = [dynamics.pick(menu, wave, seed) for seed in range(1000, 1064)]
        counts = Counter(one.total_steps for one in picked)
        assert all(abs(counts[steps] - expected) <= 2 for steps, expected in ((56, 24), (120, 24), (240, 16)))
        assert len({one.id for one in picked}) >= 62


def test_one_slot_meets_all_instances_in_the_course_of_waves(tiny):
    """A single environment must see the whole set, each instance about equally often."""
    menu = dynamics.menu(tiny, tiny.digest, 0)
    counts = Counter(dynamics.pick(menu, wave, 3).id for wave in range(700))
    # Six standard deviations around 100.
    assert set(counts) == set(tiny.ids)
    assert all(abs(count - 100) < 56 for count in counts.values())


def test_images_are_averaged_to_a_side_and_to_grey(source):
    """The pixels of a smaller image are means of those that lie in them, before anything is standardized."""
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    expected = images.mean(1, keepdim=True).view(5, 1, 4, 3, 4, 3).mean((3, 5))
    torch.testing.assert_close(dynamics.resized(images, 4, True), expected)
    torch.testing.assert_close(dynamics.resized(images, 4, False).mean(1, keepdim=True), expected)
    assert dynamics.resized(images, None, False) is images
    assert dynamics.resized(images, 5, False).shape == (5, 3, 5, 5)
    half = dynamics.load_source("digits", side=4)
    pooled = data.load("digits").train_images.view(-1, 1, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(half.images, dynamics.standardized(pooled, pooled))


def test_drawn_classes_are_numbered_anew_and_differ_between_seeds(instance, source):
    """Ten of a hundred classes, drawn for each instance, are many problems from one data set."""
    found = set()
    for seed in range(20):
        one = instance("a", classes=4, noise=0.0, seed=seed)
        numbers = dynamics.class_numbers(one, 10)
        assert sorted(numbers[numbers >= 0].tolist()) == [0, 1, 2, 3]
        split = dynamics.split(one, source)
        for rows, labels in (
            (split.train_rows, split.train_labels),
            (split.validation_rows, split.validation_labels),
            (split.reward_rows, split.reward_labels),
        ):
            assert torch.equal(numbers[source.labels[rows]], labels)
            assert labels.min() >= 0
        rows = torch.cat([split.train_rows, split.validation_rows, split.reward_rows])
        assert rows.unique().numel() == rows.numel() == 100 + dynamics.VALIDATION + dynamics.REWARD
        found.add(tuple(numbers.tolist()))
    assert len(found) > 10
    noisy = dynamics.split(instance("a", classes=4, noise=0.4), source)
    assert set(noisy.train_labels.tolist()) == {0, 1, 2, 3}
    with pytest.raises(ConfigError, match="needs 11 classes, `digits` has 10"):
        dynamics.split(instance("a", classes=11), source)


def test_imbalance_thins_training_and_val_o_and_leaves_val_r(instance):
    """Frequencies fall in equal ratios; what is rewarded is balanced as the data set is."""
    shapes = dynamics.load_source("shapes", side=4)
    one = instance("a", data="shapes", side=4, noise=0.0, train_size=2000, imbalance=8.0)
    split = dynamics.split(one, shapes)
    frequency = torch.cat([split.train_labels, split.validation_labels]).bincount(minlength=10).double()
    expected = 8.0 ** (-torch.arange(10) / 9)
    expected = 2150 * expected / expected.sum()
    # Each count is binomial; six standard deviations and the data set's own imbalance of a tenth: below 1e-6.
    ordered = frequency.sort(descending=True).values
    assert ((ordered - expected).abs() < 6 * expected.sqrt() + 0.15 * expected).all()
    assert split.reward_labels.bincount(minlength=10).min() >= 10
    rows = torch.cat([split.train_rows, split.validation_rows, split.reward_rows])
    assert rows.unique().numel() == rows.numel() == 2000 + dynamics.VALIDATION + dynamics.REWARD
    with pytest.raises(DataError, match=r"needs 4400 training images.*largest `train_size` is"):
        dynamics.split(dataclasses.replace(one, train_size=4000), shapes)


def test_input_noise_belongs_to_an_instance_and_has_its_deviation(instance):
    """A noisy camera is noisy for good: the same image looks the same in every epoch."""
    images = torch.zeros(50, 1, 8, 8)
    one = instance("a", input_noise=0.5)
    noisy = dynamics.noisy_images(images, one)
    assert torch.equal(noisy, dynamics.noisy_images(images, one))
    # 3,200 normal numbers: the deviation lies within 8 % but for one case in 1e9.
    assert abs(float(noisy.std()) / 0.5 - 1) < 0.08
    assert not torch.equal(noisy, dynamics.noisy_images(images, one, dynamics.TEST_GRAIN))
    assert not torch.equal(noisy, dynamics.noisy_images(images, dataclasses.replace(one, seed=1)))
    assert dynamics.noisy_images(images, instance("a")) is images
