"""Advantages from forked trainings instead of a value network.

From every state of a wave the training is forked and carried to its end under the present policy; the mean return of
the forks estimates the state's value, and an advantage is the difference of two such values. This is the "vine" of
Schulman et al. 2015 (https://arxiv.org/abs/1502.05477, Section 5.2) in the form of VinePPO (Kazemnejad et al. 2024,
https://arxiv.org/abs/2410.01679): unbiased whatever the critic knows, for K (H + 1) / 2 times the trainings' steps
on top, with K forks and H decisions.
"""

from __future__ import annotations

from typing import final

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.callbacks import BaseCallback

from rlmix.agents.callbacks import ppo_of
from rlmix.envs.pool import Pool

Values = npt.NDArray[np.float32]


@final
class Vine(BaseCallback):
    """Replaces a wave's advantages and returns by those of forks, before the policy is updated.

    A rollout must be one wave of the pool, as `rlmix.agents.ppo` has it, and the discount 1. What the trainings of the
    wave do is not changed: forks have streams of their own.

    Args:
        pool: where the trainings run.
        forks: K, forks of each training at each decision.
    """

    def __init__(self, pool: Pool, forks: int) -> None:
        super().__init__()
        self._pool, self._forks = pool, forks
        self._values: list[Values] = []

    def _on_rollout_start(self) -> None:
        observations = ppo_of(self)._last_obs
        self._values = [self._value(np.asarray(observations))]

    def _on_step(self) -> bool:
        # After its last decision the pool has begun the next wave.
        if self._pool.decision:
            self._values.append(self._value(self.locals["new_obs"]))
        return True

    def _on_rollout_end(self) -> None:
        buffer = ppo_of(self).rollout_buffer
        values = np.stack(self._values)
        # Rewards before the end are 0, so the last one is the return.
        ends = np.concatenate([values[1:], buffer.rewards[-1:]])
        error = (buffer.values - values).std()
        buffer.advantages[:], buffer.returns[:] = ends - values, values
        self.logger.record("vine/critic_error", float(error))

    def _value(self, observations: Values) -> Values:
        """Return the mean return of the forks of each training, float32 [N]."""
        rows = [row for row in range(len(observations)) for _ in range(self._forks)]
        pool = self._pool.fork(rows, rekey=True)
        policy, seen, done = ppo_of(self).policy, torch.as_tensor(observations)[rows], False
        while not done:
            with torch.no_grad():
                actions = policy.get_distribution(seen).sample()
            seen, rewards, done, _ = pool.step(actions)
            seen = seen.cpu()
        means: Values = rewards.cpu().float().view(-1, self._forks).mean(1).numpy()
        return means
