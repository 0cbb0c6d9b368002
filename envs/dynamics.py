"""The fixed part of a training, as pure functions of (instance, episode key): data splits, batches, weights, rates.

The fire-wall between splits stands here. Of a data set's training part each instance gets, by its own seed, disjoint
images for training, for observations (val-O) and for the reward (val-R). The data set's test part is dropped on
loading; only `heldout`, which nothing in the environment imports, can read it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from rlmix.envs.instances import Bucket, Instance, InstanceSet
from rlmix.errors import ConfigError, DataError
from rlmix.ops import grid, rng
from rlmix.training import data
from rlmix.training.models import registry

VALIDATION = 150
REWARD = 250

# A wave holds at most so many kinds of trainings, so that its stacks stay large.
MENU = 4

# The words under an episode key. Mixing must be what the controller derives from its seed.
_WEIGHTS, _BATCHES, _HIDDEN = 3, 4, 5
# What numbers are drawn for.
_SPLIT, _WRONG, _CLASS, _EPOCH = 110, 111, 112, 113
_MENU, _KINDS = 7, 114
_GOLDEN = 0x9E3779B97F4A7C15
_CLASSES, _RARE, _THINNED = 115, 116, 117
TRAIN_GRAIN, TEST_GRAIN = 118, 119
_HIDE_VALIDATION, _HIDE_EXAMPLES, _HIDE_MODEL = 120, 121, 122

HIDDEN_VALIDATION = 0.30
HIDDEN_EXAMPLES = 0.15
HIDDEN_MODEL = 0.10


@final
@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The training part of a data set.

    Args:
        images: float32 [n, C, H, W], standardized.
        labels: int64 [n].
        num_classes: how many classes there are.
    """

    images: Tensor
    labels: Tensor
    num_classes: int


@final
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Split:
    """Which images an instance uses for what; disjoint.

    Attributes:
        train_rows: int64 [train_size], rows of the source.
        train_labels: int64 [train_size], with the instance's noise.
        validation_rows: int64 [VALIDATION].
        validation_labels: int64 [VALIDATION], with the same noise: a user's validation images are no better than the
            rest, and clean ones would tell an agent how noisy the labels are.
        reward_rows: int64 [REWARD].
        reward_labels: int64 [REWARD], as they are.
    """

    train_rows: Tensor
    train_labels: Tensor
    validation_rows: Tensor
    validation_labels: Tensor
    reward_rows: Tensor
    reward_labels: Tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """Which sources of an observation an episode has.

    Attributes:
        model: without it there is neither probe nor validation.
        validation: the images of val-O.
        examples: the number of training images.
    """

    model: bool = True
    validation: bool = True
    examples: bool = True


def load_source(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, side: int | None = None, grey: bool = False
) -> Source:
    """Load the training part of a data set, with each channel's mean 0 and standard deviation 1.

    Args:
        name: of the data set, or a folder.
        data_dir: where data sets lie that are not part of a package.
        side: pixels along each side, to which the images are averaged; None leaves them as they are.
        grey: whether colours are averaged.

    Raises:
        DataError: the files are not there.
        UnknownNameError: neither a data set nor a folder.
    """
    arrays = data.load(name, data_dir)
    images = resized(arrays.train_images, side, grey)
    return Source(standardized(images, images), arrays.train_labels, arrays.num_classes)


def resized(images: Tensor, side: int | None, grey: bool) -> Tensor:
    """Return images [n, C, H, W] as [n, C or 1, side, side]: each pixel is the mean of those that lie in it."""
    shown = images.mean(1, keepdim=True) if grey else images
    if side is None or shown.shape[2:] == (side, side):
        return shown
    return grid.pool(shown.flatten(0, 1), (side, side)).view(*shown.shape[:2], side, side)


def standardized(images: Tensor, training: Tensor) -> Tensor:
    """Return images float32 [n, C, H, W] in the units of the training part's channels.

    Networks learn several times as fast from such images, which is why everybody feeds them so; the mixes that win are
    different ones where a training is too short to reach its data.
    """
    deviation, mean = torch.std_mean(training, (0, 2, 3), keepdim=True, correction=0)
    return (images - mean) / deviation.clamp_min(1e-3)


def split(instance: Instance, source: Source) -> Split:
    """Return the instance's images and labels.

    Raises:
        DataError: the data set has too few images.
    """
    labels = class_numbers(instance, source.num_classes)[source.labels]
    usable = labels >= 0
    candidates = torch.arange(len(usable)) if bool(usable.all()) else usable.nonzero().squeeze(1)
    needed = instance.train_size + VALIDATION + REWARD
    order = candidates[rng.permutation(torch.tensor([instance.seed]), _SPLIT, len(candidates))[0]]
    reward, rest = order[:REWARD], order[REWARD:]
    rest = _thinned(rest, labels[rest], instance)[: needed - REWARD]
    if len(rest) < needed - REWARD:
        raise DataError(
            f"instance `{instance.id}` needs {needed} training images of `{instance.data}` ({instance.train_size} to "
            f"train, {VALIDATION} to observe, {REWARD} for the reward), there are {len(rest) + len(reward)}. The "
            f"largest `train_size` is {max(0, len(rest) - VALIDATION)}."
        )
    noisy = _noisy(labels[rest], instance, num_classes(instance, source.num_classes))
    return Split(
        train_rows=rest[VALIDATION:],
        train_labels=noisy[VALIDATION:],
        validation_rows=rest[:VALIDATION],
        validation_labels=noisy[:VALIDATION],
        reward_rows=reward,
        reward_labels=labels[reward],
    )


def num_classes(instance: Instance, available: int) -> int:
    """Return how many classes an instance has, of a data set with so many.

    Raises:
        ConfigError: the data set has too few.
    """
    if instance.classes is None:
        return available
    if instance.classes > available:
        raise ConfigError(
            f"instance `{instance.id}` needs {instance.classes} classes, `{instance.data}` has {available}. Give a "
            "smaller `classes`."
        )
    return instance.classes


def class_numbers(instance: Instance, available: int) -> Tensor:
    """Return the number that each class of the data set has in the instance, -1 for those left out: int64 [C]."""
    if instance.classes is None:
        return torch.arange(available)
    count = num_classes(instance, available)
    places = rng.permutation(torch.tensor([instance.seed]), _CLASSES, available)[0]
    return torch.where(places < count, places, -1)


def noisy_images(images: Tensor, instance: Instance, purpose: int = TRAIN_GRAIN) -> Tensor:
    """Return images [n, C, H, W] with the instance's input noise, which is the same whenever it is asked for."""
    if instance.input_noise == 0:
        return images
    grain = rng.normal(torch.tensor([instance.seed]), purpose, tuple(images.shape))[0]
    return images + instance.input_noise * grain.to(images.device)


def menu(instances: InstanceSet, digest: str, wave: int) -> tuple[Instance, ...]:
    """Return what the slots of a wave pick from, bucket by bucket: at most four buckets, the same for every pool.

    Args:
        instances: the set.
        digest: its digest.
        wave: number of the wave.
    """
    buckets: dict[Bucket, list[Instance]] = {}
    for instance in instances.instances:
        buckets.setdefault(instance.bucket, []).append(instance)
    kinds = list(buckets)
    key = rng.derive(rng.words(digest), _MENU, wave)
    chosen = rng.permutation(torch.tensor([key]), _KINDS, len(kinds))[0, :MENU].tolist()
    return tuple(instance for place in sorted(chosen) for instance in buckets[kinds[place]])


def pick(menu: tuple[Instance, ...], wave: int, seed: int) -> Instance:
    """Return the instance of a slot: a function of its seed and the wave.

    Consecutive seeds are spread evenly over the menu (multiples of the golden ratio, shifted at random for each wave),
    so that the slots of a vector meet buckets in proportion and hardly any instance twice.
    """
    place = seed * _GOLDEN + 2 * rng.derive(_MENU, wave)
    return menu[((place % 2**64) * len(menu)) >> 64]


def episode_key(seed: int, wave: int) -> int:
    """Return the key of all random numbers of a slot's training in a wave."""
    return rng.derive(seed, wave)


def batch_rows(instance: Instance, episode_key: int) -> Tensor:
    """Return the images of each step, int64 [T, B] in [0, train_size): epochs, each in an order of its own."""
    needed = instance.total_steps * instance.batch_size
    epochs = -(-needed // instance.train_size)
    keys = [rng.derive(episode_key, _BATCHES, epoch) for epoch in range(epochs)]
    order = rng.permutation(torch.tensor(keys), _EPOCH, instance.train_size)
    return order.flatten()[:needed].view(instance.total_steps, instance.batch_size)


def weights_key(episode_key: int) -> int:
    """Return the key of the initial weights, for `training.models.registry.init`."""
    return rng.derive(episode_key, _WEIGHTS)


def initial_weights(model: torch.nn.Module, episode_key: int) -> dict[str, Tensor]:
    """Return copies of the parameters that an episode begins with, by name."""
    registry.init(model, weights_key(episode_key))
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def learning_rates(instance: Instance) -> list[float]:
    """Return the learning rate of each step: half a cosine from the instance's own to 0."""
    phase = math.pi / instance.total_steps
    return [instance.learning_rate * 0.5 * (1.0 + math.cos(phase * step)) for step in range(instance.total_steps)]


def visible(episode_key: int) -> Visible:
    """Return which sources a training episode has; each is hidden at random, independently of the others."""
    key = rng.derive(episode_key, _HIDDEN)
    return Visible(
        model=rng.host_uniform(key, _HIDE_MODEL) >= HIDDEN_MODEL,
        validation=rng.host_uniform(key, _HIDE_VALIDATION) >= HIDDEN_VALIDATION,
        examples=rng.host_uniform(key, _HIDE_EXAMPLES) >= HIDDEN_EXAMPLES,
    )


def _thinned(rows: Tensor, labels: Tensor, instance: Instance) -> Tensor:
    """Keep the share of each class that the instance's imbalance leaves of it."""
    if instance.imbalance == 1:
        return rows
    # Which classes are rare is drawn: class numbers say something about the classes of a data set.
    count = int(labels.max()) + 1
    rank = rng.permutation(torch.tensor([instance.seed]), _RARE, count)[0]
    kept = instance.imbalance ** (-rank.double() / max(1, count - 1))
    return rows[rng.uniform(torch.tensor([instance.seed]), _THINNED, labels.shape)[0] < kept[labels]]


def _noisy(labels: Tensor, instance: Instance, num_classes: int) -> Tensor:
    """Replace a share of the labels by one of the other classes."""
    key = torch.tensor([instance.seed])
    wrong = rng.uniform(key, _WRONG, labels.shape)[0] < instance.noise
    others = 1 + rng.integers(key, _CLASS, labels.shape, max(1, num_classes - 1))[0]
    return torch.where(wrong, (labels + others) % num_classes, labels)
