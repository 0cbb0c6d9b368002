"""Training problems: one instance, sets of them, and the recipes that sets are made from."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, final

from rlmix._files import sha256_of
from rlmix.errors import ConfigError, EnvError, nearest
from rlmix.ops import rng
from rlmix.training.config import load_config

Part: TypeAlias = Literal["train", "validation", "heldout"]
Bucket: TypeAlias = tuple[str | int | float | bool | None, ...]
Pictures: TypeAlias = tuple[str, int | None, bool]
PARTS: tuple[Part, ...] = ("train", "validation", "heldout")
DIGITS = "digits"

# What is drawn for an instance.
_NOISE, _TRAIN_SIZE, _LEARNING_RATE, _IMBALANCE, _INPUT_NOISE = 101, 102, 103, 104, 105
_DIGITS_KEPT = 4


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One training problem: everything that does not depend on how images are mixed.

    Args:
        id: its name in its set.
        data: a data set's name, or a folder of images.
        seed: in [0, 2**63); decides which images are used for what, and which labels are wrong.
        train_size: number of training images.
        noise: share of wrong labels among training and validation images, in [0, 1).
        model: a model's name, such as "mlp" or "convnet".
        batch_size: images in a step.
        total_steps: budget in optimiser steps.
        learning_rate: at the beginning; it falls to 0 as a half cosine.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        side: pixels along each side, to which the images are averaged; None leaves them as they are.
        grey: whether colours are averaged.
        classes: how many of the data set's classes are used, drawn by the seed; None uses all.
        imbalance: how many times as frequent the most frequent class is as the rarest, among training and validation
            images, in equal ratios from class to class (Cui et al. 2019, https://arxiv.org/abs/1901.05555, Section 5).
        input_noise: standard deviation of the noise on all images, in units of the standardized pixels.

    Raises:
        ConfigError: a value out of its range.
    """

    id: str
    data: str
    seed: int
    train_size: int
    noise: float
    model: str
    batch_size: int
    total_steps: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    side: int | None = None
    grey: bool = False
    classes: int | None = None
    imbalance: float = 1.0
    input_noise: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.id:
            raise ConfigError("`id` must not be empty. Give each instance a name.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"instance `{self.id}`: `seed` must be in [0, 2**63), got {self.seed}.")
        _check_sizes(self.id, self.train_size, self.batch_size, self.total_steps)
        _check_noise(self.id, self.noise)
        if not 0.0 < self.learning_rate < math.inf:
            raise ConfigError(f"instance `{self.id}`: `learning_rate` must be above 0, got {self.learning_rate}.")
        if not 0.0 <= self.momentum < 1.0 or not 0.0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"instance `{self.id}`: `momentum` must be in [0, 1) and `weight_decay` at least 0, got "
                f"{self.momentum} and {self.weight_decay}."
            )
        _check_pictures(self.id, self.side, self.classes)
        if not 1.0 <= self.imbalance < math.inf or not 0.0 <= self.input_noise < math.inf:
            raise ConfigError(
                f"instance `{self.id}`: `imbalance` must be at least 1 and `input_noise` at least 0, got "
                f"{self.imbalance} and {self.input_noise}."
            )

    @property
    def pictures(self) -> Pictures:
        """What instances must share to be trained on the images of one source."""
        return self.data, self.side, self.grey

    @property
    def bucket(self) -> Bucket:
        """What instances must share to be trained as one stack."""
        return (
            *self.pictures,
            self.classes,
            self.model,
            self.batch_size,
            self.total_steps,
            self.momentum,
            self.weight_decay,
        )

    def document(self) -> dict[str, Any]:
        """Return the instance as JSON takes it; fields that came later are left out where they have their default."""
        return {name: value for name, value in asdict(self).items() if _LATER.get(name, _NEVER) != value}


_NEVER = object()
# So a set that uses none of them keeps its digest, and with it its references and waves.
_LATER = {
    one.name: one.default
    for one in fields(Instance)
    if one.name in ("side", "grey", "classes", "imbalance", "input_noise")
}


@final
@dataclass(frozen=True, slots=True)
class InstanceSet:
    """Training problems that an agent learns on, is chosen on, or is judged on.

    Args:
        name: what the set is called.
        instances: one or more, with different ids.
        horizon: H, decisions in a training; every budget is a multiple of it.
        part: what the set is for.

    Raises:
        ConfigError: no instance, an id twice, or a budget that the horizon does not divide.
    """

    name: str
    instances: tuple[Instance, ...]
    horizon: int
    part: Part = "train"

    def __post_init__(self) -> None:
        """Check ids and budgets."""
        if not self.instances or self.horizon < 1:
            raise ConfigError(
                f"set `{self.name}` needs one or more instances and a `horizon` of at least 1, got "
                f"{len(self.instances)} and {self.horizon}."
            )
        if len(set(self.ids)) < len(self.instances):
            twice = sorted({name for name in self.ids if self.ids.count(name) > 1})
            raise ConfigError(f"set `{self.name}` has the id `{twice[0]}` more than once.")
        for instance in self.instances:
            check_horizon(instance, self.horizon)

    @property
    def ids(self) -> tuple[str, ...]:
        """The instances' names, in order."""
        return tuple(instance.id for instance in self.instances)

    @property
    def digest(self) -> str:
        """SHA-256 of horizon and instances."""
        document = {"horizon": self.horizon, "instances": [instance.document() for instance in self.instances]}
        return sha256_of(json.dumps(document, sort_keys=True).encode("utf-8"))

    def __len__(self) -> int:
        return len(self.instances)

    def find(self, name: str) -> Instance:
        """Return the instance called `name`.

        Raises:
            EnvError: there is none; the message has the nearest known one.
        """
        for instance in self.instances:
            if instance.id == name:
                return instance
        # All ids of a large set would drown the message.
        close = [known for known in self.ids if known in nearest(name, self.ids).split(" Known:")[0]]
        raise EnvError(f"set `{self.name}` has no instance `{name}`. {nearest(name, close or self.ids[:3])}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A range of training problems, of which instances are drawn.

    Args:
        data: a data set's name, or a folder of images.
        total_steps: budgets, and how often each is used in proportion to the others.
        train_size: lowest and highest number of training images, drawn evenly on a logarithmic scale.
        noise: lowest and highest share of wrong labels, drawn evenly.
        learning_rate: lowest and highest, drawn evenly on a logarithmic scale.
        model: a model's name, such as "mlp" or "convnet".
        batch_size: images in a step.
        momentum: of SGD.
        weight_decay: of SGD.
        side: pixels along each side; None leaves the images as they are.
        grey: whether colours are averaged.
        classes: how many classes are drawn for an instance; None uses all.
        imbalance: lowest and highest ratio between classes, drawn evenly on a logarithmic scale.
        input_noise: lowest and highest standard deviation, drawn evenly.
        share: how often the family is used in proportion to others.
    """

    data: str
    total_steps: Mapping[int, int]
    train_size: tuple[int, int]
    noise: tuple[float, float] = (0.0, 0.0)
    learning_rate: tuple[float, float] = (0.1, 0.1)
    model: str = "mlp"
    batch_size: int = 32
    momentum: float = 0.9
    weight_decay: float = 0.0
    side: int | None = None
    grey: bool = False
    classes: int | None = None
    imbalance: tuple[float, float] = (1.0, 1.0)
    input_noise: tuple[float, float] = (0.0, 0.0)
    share: int = 1

    def __post_init__(self) -> None:
        """Check the ranges; single values are checked with the instances."""
        for name, (low, high) in (
            ("train_size", self.train_size),
            ("noise", self.noise),
            ("learning_rate", self.learning_rate),
            ("imbalance", self.imbalance),
            ("input_noise", self.input_noise),
        ):
            if not low <= high or (not name.endswith("noise") and low <= 0):
                raise ConfigError(f"`{name}` must be a lowest and a highest value, got {[low, high]}.")
        _check_noise(self.data, self.noise[1])
        if not self.total_steps or min(self.total_steps.values()) < 1 or self.share < 1:
            raise ConfigError(
                "`total_steps` must map each budget to how often it is used, at least 1, and `share` be at least 1, "
                f"got {dict(self.total_steps)} and {self.share}."
            )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many instances each part of a recipe has."""

    train: int = 192
    validation: int = 48
    heldout: int = 144


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How instance sets are made: three parts that have nothing but the data set's images in common.

    Args:
        name: what the sets are called.
        families: ranges to draw instances from; may be left out by a recipe that includes others.
        horizon: H, decisions in a training.
        counts: instances of each part.
        seed: in [0, 2**63).
        includes: YAML files of other recipes, whose instances come first, in this order.
    """

    name: str
    families: tuple[Family, ...] = ()
    horizon: int = 8
    counts: Counts = field(default_factory=Counts)
    seed: int = 0
    includes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that there is something to draw from."""
        if not (self.families or self.includes) or not 0 <= self.seed < 2**63:
            raise ConfigError(
                f"recipe `{self.name}` needs one or more `families`, or others that it `includes`, and a `seed` in "
                f"[0, 2**63), got {len(self.families)} and {self.seed}."
            )

    def generate(self, part: Part, count: int | None = None) -> InstanceSet:
        """Return one part.

        Args:
            part: "train", "validation" or "heldout".
            count: instances of this recipe's own families, instead of its own number; the first ones stay the same.

        Raises:
            ConfigError: no such part, no instance, or an instance out of range; or a recipe that this one includes is
                missing, has mistakes or another horizon, or includes others.
        """
        if part not in PARTS:
            raise ConfigError(f"there is no part `{part}`. {nearest(part, PARTS)}")
        total = getattr(self.counts, part) if count is None else count
        kinds = itertools.islice(_interleaved(self.families), max(0, total)) if self.families else ()
        own = (
            _drawn(family, steps, f"{self.name}-{part}-{index:04d}", rng.derive(self.seed, rng.words(part), index))
            for index, (family, steps) in enumerate(kinds)
        )
        return InstanceSet(f"{self.name}-{part}", (*self._included(part), *own), self.horizon, part)

    def _included(self, part: Part) -> Iterator[Instance]:
        """Yield the instances of the recipes that this one includes."""
        for path in self.includes:
            other = load_recipe(path)
            # A chain could be a circle.
            if other.includes or other.horizon != self.horizon:
                raise ConfigError(
                    f"recipe `{self.name}` includes `{path}`, which must have the same `horizon` and include no other "
                    f"recipe, got horizons {self.horizon} and {other.horizon} and {len(other.includes)} included."
                )
            yield from other.generate(part).instances


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        ConfigError: the file is missing, a key is unknown (the message names the nearest right one), or a value has a
            wrong type or range.
    """
    return load_config(path, Recipe)


def digits_set(part: Part = "train", counts: int | None = None) -> InstanceSet:
    """Return instances on scikit-learn's digits, which need no download.

    Multilayer perceptrons on 100 to 1,000 digits with up to 40 % of wrong labels, for 56, 120 or 240 steps.

    Args:
        part: "train" (192 instances), "validation" (48) or "heldout" (144).
        counts: instances, instead of that number.

    Raises:
        ConfigError: no such part, or no instance.
    """
    return _digits_recipe().generate(part, counts)


def instance_set(given: str | os.PathLike[str] | InstanceSet, part: Part = "train") -> InstanceSet:
    """Return a set as it is, or the part of one that is named: "digits", or the YAML file of a recipe.

    Raises:
        ConfigError: no such name or file, or a recipe with mistakes.
    """
    if isinstance(given, InstanceSet):
        return given
    if given == DIGITS:
        return digits_set(part)
    if not Path(given).is_file():
        raise ConfigError(f"there is no instance set and no file `{given}`. {nearest(str(given), [DIGITS])}")
    return load_recipe(given).generate(part)


def limited(instances: InstanceSet, limit: int | None) -> InstanceSet:
    """Return the first instances of a set, at most `limit`; None for all."""
    return instances if limit is None else replace(instances, instances=instances.instances[:limit])


def check_horizon(instance: Instance, horizon: int) -> None:
    """Raise ConfigError unless the decisions divide the instance's budget."""
    if instance.total_steps % horizon:
        below = max(1, instance.total_steps // horizon) * horizon
        raise ConfigError(
            f"instance `{instance.id}`: `total_steps` must be a multiple of the horizon {horizon}, got "
            f"{instance.total_steps}. The nearest are {below} and {below + horizon}."
        )


def _digits_recipe() -> Recipe:
    family = Family(
        data=DIGITS,
        total_steps={56: 3, 120: 3, 240: 2},
        train_size=(100, 1000),
        noise=(0.0, 0.4),
        learning_rate=(0.03, 0.3),
    )
    return Recipe(name=DIGITS, families=(family,))


def _interleaved(families: Sequence[Family]) -> Iterator[tuple[Family, int]]:
    """Yield families and budgets for ever: each prefix has them in proportion, as nearly as whole numbers can be."""
    kinds = [
        (family, steps, family.share * share / sum(family.total_steps.values()))
        for family in families
        for steps, share in family.total_steps.items()
    ]
    whole = sum(weight for _, _, weight in kinds)
    used = [0] * len(kinds)
    for count in itertools.count(1):
        lack = [count * weight / whole - done for (_, _, weight), done in zip(kinds, used, strict=True)]
        chosen = lack.index(max(lack))
        used[chosen] += 1
        yield kinds[chosen][:2]


def _drawn(family: Family, total_steps: int, name: str, seed: int) -> Instance:
    """Return the instance that belongs to a seed."""
    noise, size, rate, imbalance, grain = (
        rng.host_uniform(seed, purpose) for purpose in (_NOISE, _TRAIN_SIZE, _LEARNING_RATE, _IMBALANCE, _INPUT_NOISE)
    )
    return Instance(
        id=name,
        data=family.data,
        seed=seed,
        train_size=round(_logarithmic(family.train_size, size)),
        noise=_rounded(_evenly(family.noise, noise)),
        model=family.model,
        batch_size=family.batch_size,
        total_steps=total_steps,
        learning_rate=_rounded(_logarithmic(family.learning_rate, rate)),
        momentum=family.momentum,
        weight_decay=family.weight_decay,
        side=family.side,
        grey=family.grey,
        classes=family.classes,
        imbalance=_rounded(_logarithmic(family.imbalance, imbalance)),
        input_noise=_rounded(_evenly(family.input_noise, grain)),
    )


def _evenly(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share


def _logarithmic(bounds: tuple[float, float], share: float) -> float:
    return cast(float, bounds[0] * (bounds[1] / bounds[0]) ** share)


def _rounded(value: float) -> float:
    """Keep few digits, so that a set reads well and its digest does not hang on the last bit of a power."""
    return float(f"{value:.{_DIGITS_KEPT}g}")


def _check_sizes(name: str, *sizes: int) -> None:
    if min(sizes) < 1:
        raise ConfigError(
            f"instance `{name}`: `train_size`, `batch_size` and `total_steps` must be at least 1, got {list(sizes)}."
        )


def _check_noise(name: str, noise: float) -> None:
    if not 0.0 <= noise < 1.0:
        raise ConfigError(f"`{name}`: `noise` must be in [0, 1), got {noise}. It is the share of wrong labels.")


def _check_pictures(name: str, side: int | None, classes: int | None) -> None:
    if (side is not None and side < 1) or (classes is not None and classes < 2):
        raise ConfigError(f"`{name}`: `side` must be at least 1 and `classes` at least 2, got {side} and {classes}.")
