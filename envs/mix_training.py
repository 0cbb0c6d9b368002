"""`rlmix/MixTraining-v0`: one episode is one training of a classifier, one step one decision how to mix."""

from __future__ import annotations

import os
from typing import Any, ClassVar, cast, final

import gymnasium
import numpy as np
import torch

from rlmix.envs.instances import InstanceSet
from rlmix.envs.pool import Reward
from rlmix.envs.shell import Meaning, Observation, apart, begun, fresh_seed, open_pool, picked, rows_of, spaces_of
from rlmix.errors import EnvError
from rlmix.policy.codec import ActionKind


@final
class MixTrainingEnv(gymnasium.Env[Observation, Any]):
    """Train a classifier, and choose at H evenly spread decisions how its images are mixed.

    Observations are `rlmix.obs/1`, float32 [D] in [-5, 5]; `observation_names` says what they are. Actions are entries
    of a catalogue, or choose a method and set its parameters. The reward is 0 until the end, then the held-out score
    relative to uniform random mixing, in [-2, 2]. The end of the budget is `terminated`; nothing is ever truncated.

    `reset(seed=)` begins the same sequence of trainings again; `reset(options={"instance": id})` names the training
    problem. Information: `instance`, `step`, and after a step `decision`, the name of the entry or, where actions set
    parameters, the text of the Decision; at the end also
    `score`, `score_uniform`, `score_norm`, `final_acc`, `ts_nll`, `is_success` and `decisions`.

    Args:
        instances: a set, "digits", or the YAML file of a recipe, whose training part is taken.
        action: what an action is. "discrete": an entry of a catalogue. "multidiscrete": an entry of a method space and
            a level of its parameter. "hybrid": numbers in [-1, 1], of which the first picks the entry and the others
            set its parameters.
        catalogue: what actions mean: for "discrete" a catalogue, else a `rlmix.policy.space.MethodSpace`, or the name
            of one ("v0", "cheap"); or a codec of that kind.
        reward: "reference", or None for none.
        masks: whether observations hide sources at random, by episode, so that policies learn to do without.
        with_validation: whether observations show the validation images at all.
        data_dir: where data sets lie that are not part of a package.
        device: where the classifier trains.
        render_mode: None or "ansi", a text about the training so far.

    Raises:
        EnvError: an unknown render mode or reward.
        ConfigError: no such instance set, or a recipe with mistakes.
        InputError: no such kind of actions, or a `catalogue` of another kind.
        UnknownNameError: no such catalogue or method space.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi"], "render_fps": 4}  # type: ignore[misc]

    def __init__(
        self,
        *,
        instances: str | os.PathLike[str] | InstanceSet = "digits",
        action: ActionKind = "discrete",
        catalogue: Meaning = "v0",
        reward: Reward = "reference",
        masks: bool = True,
        with_validation: bool = True,
        data_dir: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise EnvError(f'`render_mode` must be None or "ansi", got {render_mode!r}.')
        self.render_mode = render_mode
        self.pool = open_pool(
            1,
            instances=instances,
            action=action,
            actions=catalogue,
            reward=reward,
            masks=masks,
            with_validation=with_validation,
            data_dir=data_dir,
            device=device,
        )
        observations, self.action_space = spaces_of(self.pool)
        # A Box is declared for integers too, which these observations never are.
        self.observation_space = cast(gymnasium.Space[Observation], observations)
        self.observation_names = self.pool.observation_names
        self._seeded = False
        self._info: dict[str, Any] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin the next training.

        Args:
            seed: begins the sequence of trainings that belongs to it; None goes on with the next of the sequence.
            options: `{"instance": id}` names the training problem.

        Raises:
            EnvError: an unknown option or instance.
        """
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self.pool.seed([fresh_seed() if seed is None else seed])
            self._seeded = True
        observations = self.pool.reset(instances=[picked(options)])
        self._info = begun(self.pool)[0]
        return rows_of(observations)[0], dict(self._info)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Train until the next decision, mixed as `action`, one of the action space, says.

        Raises:
            EnvError: an action out of range, or a training that has ended.
        """
        observations, rewards, done, info = self.pool.step(np.asarray([action]))
        self._info = apart(info)[0]
        return rows_of(observations)[0], float(rewards[0]), done, False, dict(self._info)

    def render(self) -> str | None:
        """Return a text about the training so far, in the render mode "ansi"; None otherwise.

        Raises:
            EnvError: no training has begun.
        """
        if self.render_mode is None:
            gymnasium.logger.warn('Nothing is shown. Use gymnasium.make(..., render_mode="ansi").')
            return None
        if not self._info:
            raise EnvError("no training has begun. Call `reset` first.")
        instance = self.pool.slots[0].instance
        lines = [
            f"{instance.id}: {instance.model} on {instance.train_size} images of {instance.data}, "
            f"{instance.noise:.0%} wrong labels",
            f"step {self._info['step']} of {instance.total_steps}, "
            f"decision {self.pool.decision} of {self.pool.horizon}",
        ]
        if "decision" in self._info:
            lines.append(f"mixed by {self._info['decision']}")
        if "score" in self._info:
            lines.append(f"score {self._info['score']:.4f}, accuracy {self._info['final_acc']:.4f}")
        return "\n".join(lines) + "\n"
