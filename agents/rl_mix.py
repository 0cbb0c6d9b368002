"""The published agent of R-Mix, trained as it was published: online, beside the classifier that it mixes for.

RL-Mix (Luu et al., https://arxiv.org/abs/2212.04875, and the authors' released code) has no policy that is deployed
afterwards: the product is the classifier. So it is judged by the classifiers that are trained while it learns, beside
the same trainings under R-Mix's own uniform random thresholds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, final

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from rlmix.agents.checkpoint import borrowed_randomness
from rlmix.envs.instances import Instance
from rlmix.envs.rl_mix import RLMixEnv
from rlmix.errors import ConfigError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RLMixConfig:
    """How the agent learns.

    The defaults are the released ones (10 epochs in four minibatches, discount 0.99) but for two: the released learning
    rate is written nowhere, and a rollout of 1,000 steps would be longer than a small training.

    Attributes:
        trainings: how many classifiers are trained while one agent learns, at least 1; as published 1.
        persistent: whether an episode is an epoch, as published, or a whole training.
        grid: cells along a side of the saliency that the agent sees and masks are cut on.
        alpha: concentration of lam.
        rollout: steps between two updates of the policy, a multiple of 4, at least 8.
        epochs: passes over a rollout.
        learning_rate: at the beginning; it falls with the 0.9th power of what remains.
        discount: in [0, 1].
        seed: of trainings, agent and random thresholds.
    """

    trainings: int = 1
    persistent: bool = False
    grid: int = 4
    alpha: float = 1.0
    rollout: int = 32
    epochs: int = 10
    learning_rate: float = 3e-4
    discount: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges; those of the environment are checked there."""
        if self.trainings < 1 or self.epochs < 1:
            raise ConfigError(f"`trainings` and `epochs` must be at least 1, got {self.trainings} and {self.epochs}.")
        if self.rollout < 8 or self.rollout % 4:
            raise ConfigError(f"`rollout` must be a multiple of 4 and at least 8, got {self.rollout}.")
        if not self.learning_rate > 0 or not 0 <= self.discount <= 1 or not 0 <= self.seed < 2**32:
            raise ConfigError(
                "`learning_rate` must be above 0, `discount` in [0, 1] and `seed` in [0, 2**32), got "
                f"{self.learning_rate}, {self.discount} and {self.seed}."
            )


@final
@dataclass(frozen=True, slots=True)
class RLMixTrainings:
    """What came of some trainings, in their order.

    Attributes:
        accuracy: of each classifier, on the instance's images for the reward of `MixTrainingEnv` (val-R).
        score: the same environment's score of each, before it is compared with uniform random mixing.
        reward: mean of RL-Mix's own reward over each training's steps.
    """

    accuracy: tuple[float, ...]
    score: tuple[float, ...]
    reward: tuple[float, ...]


@final
@dataclass(frozen=True, slots=True)
class RLMixResult:
    """The agent's trainings and their pairs: equal initial weights, batches, partners and lam, one by one.

    Attributes:
        agent: mixed as the agent said while it learned; the last one by the most learned agent.
        uniform: mixed with uniform random thresholds.
    """

    agent: RLMixTrainings
    uniform: RLMixTrainings


def train_rlmix(
    instance: Instance,
    config: RLMixConfig | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> RLMixResult:
    """Train the agent by the PPO of stable-baselines3, and the same classifiers with random thresholds.

    The agent is `PPO("MultiInputPolicy")` as it comes, with two hidden layers of 64; the released one has a layer of
    convolutions over the batch before them. The caller's random states are left as they were.

    Args:
        instance: the training problem.
        config: how to learn; None takes the defaults.
        data_dir: where data sets lie that are not part of a package.
        device: where classifiers train.

    Raises:
        DataError: a data set is missing or too small.
        EnvError: a grid that the images are too small for.
        MethodError: `alpha` out of its range.

    Example:
        >>> from rlmix.envs import digits_set
        >>> result = train_rlmix(digits_set("train", 1).instances[0])  # doctest: +SKIP
        >>> gain = result.agent.accuracy[-1] - result.uniform.accuracy[-1]  # doctest: +SKIP
    """
    config = RLMixConfig() if config is None else config

    def opened() -> RLMixEnv:
        return RLMixEnv(
            instance,
            grid=config.grid,
            alpha=config.alpha,
            persistent=config.persistent,
            data_dir=data_dir,
            device=device,
        )

    record = _Record(config.trainings)
    with borrowed_randomness():
        model = PPO(
            "MultiInputPolicy",
            opened(),
            learning_rate=lambda remaining: config.learning_rate * max(0.0, remaining) ** 0.9,
            n_steps=config.rollout,
            batch_size=config.rollout // 4,
            n_epochs=config.epochs,
            gamma=config.discount,
            seed=config.seed,
            device="cpu",
        )
        model.learn(config.trainings * instance.total_steps, callback=record)
    return RLMixResult(record.trainings, _uniform(opened(), config))


def _uniform(env: RLMixEnv, config: RLMixConfig) -> RLMixTrainings:
    """Train the classifiers that `config.seed` stands for with uniform random thresholds."""
    record = _Record(config.trainings)
    env.action_space.seed(config.seed)
    env.reset(seed=config.seed)
    going = True
    while going:
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        going = record.add(reward, info)
        if terminated and going:
            env.reset()
    return record.trainings


@final
class _Record(BaseCallback):
    """Keeps what comes of the first `count` trainings, and ends the learning with the last of them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count
        self._rewards: list[float] = []
        self._rows: list[tuple[float, float, float]] = []

    @property
    def trainings(self) -> RLMixTrainings:
        """What was kept."""
        return RLMixTrainings(*(tuple(column) for column in zip(*self._rows, strict=True)))

    def add(self, reward: float, info: dict[str, Any]) -> bool:
        """Note one step, and return whether there are trainings left."""
        self._rewards.append(reward)
        if "score" in info:
            self._rows.append((info["final_acc"], info["score"], sum(self._rewards) / len(self._rewards)))
            self._rewards = []
        return len(self._rows) < self._count

    def _on_step(self) -> bool:
        return self.add(float(self.locals["rewards"][0]), self.locals["infos"][0])
