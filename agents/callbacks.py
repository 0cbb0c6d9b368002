"""What happens around PPO's waves: checkpoints, observed ranges, curves, periodic evaluation, progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast, final

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter
from torch import Tensor

from rlmix._files import save_tree
from rlmix.agents.checkpoint import capture, restore_randomness
from rlmix.monitor.board import Board
from rlmix.policy.codec import Catalogue


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a training is.

    Attributes:
        decisions: decisions taken so far, over all actors.
        total: decisions in the whole training.
        reward: mean reward of the last trainings, or NaN before any has ended.
    """

    decisions: int
    total: int
    reward: float


ProgressHook: TypeAlias = Callable[[Progress], None]


@final
class Ranges:
    """Lowest and highest value of each observation entry so far.

    Args:
        low: float32 [D].
        high: float32 [D].
    """

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high

    @classmethod
    def empty(cls, size: int) -> Ranges:
        """Return the ranges of no observation at all."""
        return cls(torch.full((size,), torch.inf), torch.full((size,), -torch.inf))

    def add(self, observations: Tensor) -> None:
        """Widen the ranges by observations, float32 [..., D]."""
        rows = observations.flatten(0, -2)
        self.low = torch.minimum(self.low, rows.amin(0))
        self.high = torch.maximum(self.high, rows.amax(0))


@final
class BoardWriter(KVWriter):
    """Writes the numbers that stable-baselines3 logs to the run's own board, so that a run has one event file.

    Args:
        board: the run's board.
    """

    def __init__(self, board: Board) -> None:
        self._board = board

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write what is a number and not excluded from TensorBoard."""
        numbers = {
            key: float(value)
            for key, value in key_values.items()
            if "tensorboard" not in (key_excluded.get(key) or ()) and isinstance(value, float | int | np.number)
        }
        self._board.scalars(step, numbers)
        self._board.flush()

    def close(self) -> None:
        """Leave the board open: who opened it closes it."""


@final
class Keeper(BaseCallback):
    """Writes a checkpoint before each wave and after the last, and sets a resumed run's random state.

    Args:
        path: the checkpoint file.
        identity: what the run was started with, by name.
        ranges: the observation ranges that belong to the run.
        resumed: the checkpoint that the run goes on from, or an empty mapping.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], ranges: Ranges, resumed: Mapping[str, Any]) -> None:
        super().__init__()
        self._path, self._identity, self._ranges, self._resumed = path, dict(identity), ranges, resumed

    def _on_training_start(self) -> None:
        if self._resumed:
            restore_randomness(self._resumed)

    def _on_rollout_start(self) -> None:
        # The losses of the update just made, which would otherwise be lost with an interrupted wave.
        self.logger.dump(self.num_timesteps)
        self._write()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.logger.dump(self.num_timesteps)
        self._write()

    def _write(self) -> None:
        ranges = {"low": self._ranges.low, "high": self._ranges.high}
        save_tree(self._path, {**capture(ppo_of(self)), "identity": self._identity, "ranges": ranges})


@final
class Curves(BaseCallback):
    """Notes each wave's observations and how probable every method was at every decision.

    Args:
        catalogue: what the actions mean.
        ranges: the observation ranges to widen.
    """

    def __init__(self, catalogue: Catalogue, ranges: Ranges) -> None:
        super().__init__()
        self._methods, self._usage, self._ranges = catalogue.methods, usage(catalogue), ranges
        self.probabilities = torch.zeros(0, len(catalogue.methods))

    def _on_rollout_end(self) -> None:
        model = ppo_of(self)
        # [H, N, D]; copied, because the buffer is reused.
        observations = torch.as_tensor(model.rollout_buffer.observations).clone()
        self._ranges.add(observations)
        with torch.no_grad():
            distribution: Any = model.policy.get_distribution(observations.flatten(0, 1)).distribution
            # Of several choices, the first is that of the entry.
            first = distribution[0] if isinstance(distribution, list) else distribution
            entries = cast(torch.distributions.Categorical, first).probs
        entries = entries.view(*observations.shape[:2], -1).mean(1)
        self.probabilities = (entries.double() @ self._usage).float()
        for decision, row in enumerate(self.probabilities.tolist()):
            for method, probability in zip(self._methods, row, strict=True):
                self.logger.record(f"policy/probability/{method}/{decision}", probability)

    def _on_step(self) -> bool:
        return True

    def draw(self, board: Board, step: int) -> None:
        """Write the last wave's probabilities over the progress of a training as a figure, if there was a wave."""
        horizon = len(self.probabilities)
        if horizon:
            columns = self.probabilities.T.tolist()
            progress = [decision / horizon for decision in range(horizon)]
            board.probabilities(step, progress, dict(zip(self._methods, columns, strict=True)))


@final
class Evaluations(BaseCallback):
    """Calls `measure` every so many waves and at the end, and logs what it returns.

    Args:
        every: waves between two evaluations; 0 evaluates at the end only.
        measure: returns numbers by tag; must not use global randomness.

    Attributes:
        last: what it returned last.
    """

    def __init__(self, every: int, measure: Callable[[PPO], Mapping[str, float]]) -> None:
        super().__init__()
        self._every, self._measure = every, measure
        self.last: Mapping[str, float] = {}

    def _on_rollout_start(self) -> None:
        model = ppo_of(self)
        wave = self.num_timesteps // (model.n_steps * model.n_envs)
        if self._every and wave and wave % self._every == 0:
            self._log()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._log()

    def _log(self) -> None:
        self.last = self._measure(ppo_of(self))
        for tag, value in self.last.items():
            self.logger.record(tag, value)
        self.logger.dump(self.num_timesteps)


@final
class Reporter(BaseCallback):
    """Calls the progress hook after every decision.

    Args:
        hook: what is called.
        total: decisions in the whole training.
    """

    def __init__(self, hook: ProgressHook, total: int) -> None:
        super().__init__()
        self._hook, self._total = hook, total

    def _on_step(self) -> bool:
        rewards = [float(episode["r"]) for episode in self.model.ep_info_buffer or ()]
        reward = sum(rewards) / len(rewards) if rewards else float("nan")
        self._hook(Progress(decisions=self.num_timesteps, total=self._total, reward=reward))
        return True


def usage(catalogue: Catalogue) -> Tensor:
    """Return how often each entry uses each method, float64 [E, M]; rows sum to 1."""
    rows = [[decision.usage().get(method, 0.0) for method in catalogue.methods] for decision in catalogue.decisions]
    return torch.tensor(rows, dtype=torch.float64)


def ppo_of(callback: BaseCallback) -> PPO:
    """Return the callback's algorithm, which this package only ever runs as PPO."""
    return cast(PPO, callback.model)
