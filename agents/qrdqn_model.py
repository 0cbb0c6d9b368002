"""QR-DQN of sb3-contrib as a pool needs it: exploration by row, its state without pickle, its mean as layers.

Importing this module needs sb3-contrib.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib import QRDQN
from stable_baselines3.common.buffers import ReplayBuffer
from torch import nn

from rlmix.agents.checkpoint import capture, restore
from rlmix.errors import CheckpointError
from rlmix.ops import rng
from rlmix.policy.network import Layers

# What the exploration is drawn for.
_WHETHER, _WHICH = 139, 140
_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@final
class RowwiseQRDQN(QRDQN):
    """QR-DQN whose trainings explore one by one.

    The original draws once for all environments whether they explore, so that a whole interval of a wave is either
    random or greedy. Here each row draws for itself, as a function of the seed and the number of decisions so far:
    nothing of it has to be saved.
    """

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Return actions int64 [N], and the state as it was given."""
        greedy, state = self.policy.predict(observation, state, episode_start, deterministic=True)
        if deterministic:
            return greedy, state
        keys = torch.tensor([rng.derive(self.seed or 0, self.num_timesteps)])
        whether = rng.uniform(keys, _WHETHER, greedy.shape)[0].numpy() < self.exploration_rate
        which = rng.integers(keys, _WHICH, greedy.shape, int(self.policy.quantile_net.action_space.n))[0].numpy()
        return np.where(whether, which, greedy), state


def capture_run(model: RowwiseQRDQN) -> dict[str, Any]:
    """Return all that a run goes on with, as a tree for `rlmix._files.save_tree`: the replay buffer too."""
    buffer = _buffer(model)
    filled = buffer.buffer_size if buffer.full else buffer.pos
    return {
        **capture(model),
        "calls": model._n_calls,
        "episode_number": model._episode_num,
        "exploration": float(model.exploration_rate),
        "buffer": {
            "pos": buffer.pos,
            "full": buffer.full,
            **{name: torch.from_numpy(getattr(buffer, name)[:filled]) for name in _ARRAYS},
        },
    }


def restore_run(model: RowwiseQRDQN, tree: Mapping[str, Any]) -> None:
    """Put back what `capture_run` took, except the random states.

    Raises:
        CheckpointError: the tree is no checkpoint of such a model.
    """
    restore(model, tree)
    buffer, saved = _buffer(model), tree["buffer"]
    try:
        for name in _ARRAYS:
            rows = saved[name].numpy()
            getattr(buffer, name)[: len(rows)] = rows
        buffer.pos, buffer.full = int(saved["pos"]), bool(saved["full"])
        model._n_calls, model._episode_num = int(tree["calls"]), int(tree["episode_number"])
        model.exploration_rate = float(tree["exploration"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"The replay buffer of the checkpoint does not fit: {error}") from error


def mean_layers(model: RowwiseQRDQN) -> Layers:
    """Return the network whose outputs are each entry's mean over the quantiles, what QR-DQN is greedy for.

    The mean of linear outputs is linear: the head's rows are averaged.
    """
    linear = [module for module in model.quantile_net.quantile_net.children() if isinstance(module, nn.Linear)]
    *hidden, head = [(layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in linear]
    weight, bias = (part.view(model.n_quantiles, -1, *part.shape[1:]).double().mean(0).float() for part in head)
    return (*hidden, (weight, bias))


def _buffer(model: RowwiseQRDQN) -> ReplayBuffer:
    if model.replay_buffer is None:
        raise CheckpointError("the model has no replay buffer yet.")
    return model.replay_buffer
