"""What the three environments over a pool have in common: how one is opened, their spaces, their information."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from torch import Tensor

from rlmix.envs.instances import InstanceSet, instance_set
from rlmix.envs.pool import Pool, Reward
from rlmix.envs.processes import ProcessPool
from rlmix.envs.reference import Progress
from rlmix.errors import EnvError, nearest
from rlmix.policy.codec import AbstractCodec, ActionKind, Catalogue, DiscreteCodec
from rlmix.policy.parametric import HybridCodec, MultiDiscreteCodec, find_codec
from rlmix.policy.signals import LIMIT
from rlmix.policy.space import MethodSpace

Observation: TypeAlias = npt.NDArray[np.float32]
Meaning: TypeAlias = str | Catalogue | MethodSpace | AbstractCodec
"""What actions mean: a catalogue or a method space, or the name of one; or a codec."""
_OPTIONS = ("instance",)


def open_pool(
    count: int,
    *,
    instances: str | os.PathLike[str] | InstanceSet = "digits",
    action: ActionKind = "discrete",
    actions: Meaning = "v0",
    reward: Reward = "reference",
    masks: bool = True,
    with_validation: bool = True,
    data_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    processes: int = 1,
) -> Pool | ProcessPool:
    """Return a pool of `count` slots.

    Args:
        count: N, at least 1.
        instances: a set, "digits", or the YAML file of a recipe, whose training part is taken.
        action: what an action is: see `MixTrainingEnv`.
        actions: what actions mean.
        reward: see `Pool`, as for all others.
        masks: whether observations hide sources at random.
        with_validation: whether observations show validation images.
        data_dir: where data sets lie that are not part of a package.
        device: where classifiers train.
        processes: how many the slots are divided among.

    Raises:
        EnvError: `count` or `processes` is below 1.
        ConfigError: no such instance set, or a recipe with mistakes.
        InputError: no such kind of actions, or `actions` of another kind.
        UnknownNameError: no such catalogue or method space.
    """
    if count < 1:
        raise EnvError(f"`num_envs` must be at least 1, got {count}.")
    chosen, codec = instance_set(instances), find_codec(action, actions)
    shared: dict[str, Any] = {
        "seeds": range(count),
        "catalogue": codec,
        "reward": reward,
        "masks": masks,
        "with_validation": with_validation,
        "data_dir": data_dir,
        "device": device,
    }
    if processes == 1:
        return Pool(chosen, progress=reference_bar(), **shared)
    return ProcessPool(processes, chosen, **shared)


def spaces_of(pool: Pool | ProcessPool) -> tuple[spaces.Box, spaces.Space[Any]]:
    """Return the spaces of one slot's observations and actions."""
    shape = (len(pool.observation_names),)
    return spaces.Box(-LIMIT, LIMIT, shape, np.float32), action_space(pool.codec)


@functools.singledispatch
def action_space(codec: AbstractCodec) -> spaces.Space[Any]:
    """Return the space of one action of a codec.

    Raises:
        EnvError: the codec is none of the library's.
    """
    raise EnvError(f"there is no action space for a {type(codec).__name__}.")


@action_space.register
def _(codec: DiscreteCodec) -> spaces.Space[Any]:
    return spaces.Discrete(codec.n)


@action_space.register
def _(codec: MultiDiscreteCodec) -> spaces.Space[Any]:
    return spaces.MultiDiscrete(np.array(codec.sizes))


@action_space.register
def _(codec: HybridCodec) -> spaces.Space[Any]:
    return spaces.Box(-1.0, 1.0, codec.shape, np.float32)


def fresh_seed() -> int:
    """Return a seed that nobody can foresee, for environments that are not given one."""
    return int(seeding.np_random()[0].integers(2**31))


def picked(options: Mapping[str, Any] | None) -> Any:
    """Return what `options` say about instances, or None.

    Raises:
        EnvError: an option that does not exist; the message has the nearest known one.
    """
    for name in options or {}:
        if name not in _OPTIONS:
            raise EnvError(f"there is no option `{name}`. {nearest(str(name), _OPTIONS)}")
    return (options or {}).get("instance")


def rows_of(observations: Tensor) -> Observation:
    """Return observations on the host, float32 [N, D], sharing nothing with the pool."""
    rows: Observation = observations.detach().cpu().numpy().copy()
    return rows


def begun(pool: Pool | ProcessPool) -> list[dict[str, Any]]:
    """Return each slot's information after a reset."""
    return [{"instance": slot.instance.id, "step": 0} for slot in pool.slots]


def apart(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each slot's part of what `Pool.step` tells, as Python numbers and strings."""
    columns: dict[str, Sequence[Any]] = {
        name: value.tolist() if isinstance(value, Tensor) else value for name, value in info.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def reference_bar() -> Progress:
    """Return a hook that draws a progress bar on the standard error stream, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    bars: list[Bar] = []

    def advance(done: int, total: int) -> None:
        if done == 0:
            bars.append(Bar(console=console, transient=True, disable=not console.is_terminal))
            bars[0].add_task("reference trainings", total=total)
            bars[0].start()
        bars[0].update(bars[0].task_ids[0], completed=done)
        if done == total:
            bars.pop().stop()

    return advance
