"""The vector form of `rlmix/MixTraining-v0`: N trainings as one pool."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar, final

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from rlmix.envs.instances import InstanceSet
from rlmix.envs.pool import Reward
from rlmix.envs.shell import Meaning, Observation, apart, begun, fresh_seed, open_pool, picked, rows_of, spaces_of
from rlmix.policy.codec import ActionKind


@final
class MixVectorEnv(gymnasium.vector.VectorEnv[Observation, npt.NDArray[Any], npt.NDArray[Any]]):
    """N trainings that begin and end together; slot i with seed s is `MixTrainingEnv` with seed s + i.

    After the last decision the next trainings begin in the same step: `final_obs` and `final_info` tell about those
    that ended.

    Args:
        num_envs: N.
        instances: see `MixTrainingEnv`, as for all others.
        action: what an action is.
        catalogue: what actions mean.
        reward: "reference" or None.
        masks: whether observations hide sources at random.
        with_validation: whether observations show validation images.
        data_dir: where data sets lie.
        device: where classifiers train.

    Raises:
        EnvError: `num_envs` is below 1, or an unknown reward.
        ConfigError: no such instance set, or a recipe with mistakes.
        InputError: no such kind of actions, or a `catalogue` of another kind.
        UnknownNameError: no such catalogue or method space.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # type: ignore[misc]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        instances: str | os.PathLike[str] | InstanceSet = "digits",
        action: ActionKind = "discrete",
        catalogue: Meaning = "v0",
        reward: Reward = "reference",
        masks: bool = True,
        with_validation: bool = True,
        data_dir: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pool = open_pool(
            num_envs,
            instances=instances,
            action=action,
            actions=catalogue,
            reward=reward,
            masks=masks,
            with_validation=with_validation,
            data_dir=data_dir,
            device=device,
        )
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = spaces_of(self.pool)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_names = self.pool.observation_names
        self._seeded = False

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin the next trainings.

        Args:
            seed: s gives slot i the seed s + i; or one seed for each slot.
            options: `{"instance": id}`, or a sequence of one id (or None) for each slot.

        Raises:
            EnvError: an unknown option or instance, or not one seed for each slot.
        """
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
            seed = [int(seed) + slot for slot in range(self.num_envs)]
        if seed is None and not self._seeded:
            first = fresh_seed()
            seed = [first + slot for slot in range(self.num_envs)]
        names = picked(options)
        if names is None or isinstance(names, str):
            names = [names] * self.num_envs
        observations = self.pool.reset(None if seed is None else list(seed), names)
        self._seeded = True
        return rows_of(observations), self._stacked(begun(self.pool))

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[Observation, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Train all slots until their next decision.

        Raises:
            EnvError: actions of a wrong shape or range, or `reset` was never called.
        """
        observations, rewards, done, info = self.pool.step(actions)
        rows, infos = rows_of(observations), apart(info)
        if done:
            finals = [{"final_obs": row, "final_info": one} for row, one in zip(rows, infos, strict=True)]
            rows = rows_of(self.pool.reset())
            infos = [{**end, **one} for end, one in zip(finals, begun(self.pool), strict=True)]
        ended, cut = np.full(self.num_envs, done), np.zeros(self.num_envs, dtype=np.bool_)
        return rows, rewards.double().cpu().numpy(), ended, cut, self._stacked(infos)

    def _stacked(self, infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the slots' information in Gymnasium's form: arrays, and which slots have them."""
        stacked: dict[str, Any] = {}
        for slot, info in enumerate(infos):
            stacked = self._add_info(stacked, info, slot)
        return stacked
