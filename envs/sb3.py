"""The pool as stable-baselines3 wants its environments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, final

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from rlmix.envs.instances import InstanceSet
from rlmix.envs.pool import Reward
from rlmix.envs.processes import ProcessPool
from rlmix.envs.shell import Meaning, Observation, apart, begun, fresh_seed, open_pool, picked, rows_of, spaces_of
from rlmix.errors import EnvError
from rlmix.policy.codec import ActionKind


@final
class MixVecEnv(VecEnv):
    """N trainings that begin and end together; slot i after `seed(s)` is `MixTrainingEnv` with seed s + i.

    With `n_steps` = H a rollout of PPO is one wave of whole episodes. At its end `infos` have `terminal_observation`,
    `TimeLimit.truncated` (False), `episode` (return and length), and all that `MixTrainingEnv` tells.

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
        first_wave: the wave that the first `reset`, and each after `seed`, begins; a resumed run goes on there.
        processes: how many the trainings are divided among; they do the same in any number.

    Raises:
        EnvError: `num_envs` or `processes` is below 1, or an unknown reward.
        ConfigError: no such instance set, or a recipe with mistakes.
        InputError: no such kind of actions, or a `catalogue` of another kind.
        UnknownNameError: no such catalogue or method space.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        instances: str | os.PathLike[str] | InstanceSet = "digits",
        action: ActionKind = "discrete",
        catalogue: Meaning = "v0",
        reward: Reward = "reference",
        masks: bool = True,
        with_validation: bool = True,
        data_dir: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        first_wave: int = 0,
        processes: int = 1,
    ) -> None:
        # Asked for by the base class's constructor.
        self.render_mode = None
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
            processes=processes,
        )
        super().__init__(num_envs, *spaces_of(self.pool))
        self.observation_names = self.pool.observation_names
        self._first_wave, self._seeded = first_wave, False
        self._actions: npt.NDArray[Any] = np.zeros(num_envs, dtype=np.int64)

    def start_at(self, wave: int) -> None:
        """Make the next `reset`, and each after `seed`, begin this wave."""
        self._first_wave = wave
        self.pool.seed(self.pool.seeds, wave)

    def reset(self) -> Observation:
        """Begin the next wave and return the observations, float32 [N, D].

        Raises:
            EnvError: an option that does not exist, or an unknown instance.
        """
        seeds = [seed for seed in self._seeds if seed is not None]
        if not seeds and not self._seeded:
            first = fresh_seed()
            seeds = [first + slot for slot in range(self.num_envs)]
        if seeds:
            self.pool.seed(seeds, self._first_wave)
            self._seeded = True
        observations = self.pool.reset(instances=[picked(options) for options in self._options])
        self.reset_infos = begun(self.pool)
        self._reset_seeds()
        self._reset_options()
        return rows_of(observations)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Train all slots until their next decision; after the last one the next wave begins.

        Raises:
            EnvError: actions of a wrong shape or range, or `reset` was never called.
        """
        observations, rewards, done, info = self.pool.step(self._actions)
        rows, infos, returns = rows_of(observations), apart(info), rewards.cpu().numpy()
        if done:
            for one, row, value in zip(infos, rows, returns.tolist(), strict=True):
                one["terminal_observation"] = row
                one["TimeLimit.truncated"] = False
                # Rewards before the end are 0, so the last one is the return.
                one["episode"] = {"r": value, "l": self.pool.horizon}
            rows = rows_of(self.pool.reset())
            self.reset_infos = begun(self.pool)
        return rows, returns, np.full(self.num_envs, done), infos

    def close(self) -> None:
        """End the processes, if there are several."""
        if isinstance(self.pool, ProcessPool):
            self.pool.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute, which all slots have in common, once for each."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse.

        Raises:
            EnvError: always: slots are rows of one stack and have no attributes of their own.
        """
        raise EnvError(f"`{attr_name}` cannot be set: the slots are one pool. Open another with other arguments.")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse.

        Raises:
            EnvError: always: slots are rows of one stack and have no methods of their own.
        """
        raise EnvError(f"`{method_name}` cannot be called for one slot: the slots are one pool. Use `.pool`.")

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return False for each slot."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[npt.NDArray[Any] | None]:
        """Return None for each slot: there is nothing to see."""
        return [None] * self.num_envs
