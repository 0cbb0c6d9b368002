"""`rlmix/RLMix-v0`: the published agent of R-Mix, with its own observation, action and reward, for comparison.

RL-Mix (Luu et al., https://arxiv.org/abs/2212.04875, and the authors' released code) lets an agent choose R-Mix's
threshold for every image of every batch, and rewards it for mixed batches whose saliency looks like that of the
unmixed ones. That reward is 1 for a batch that is not mixed at all, whatever this does to the classifier, which is why
`rlmix/MixTraining-v0` has another one.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, TypeAlias, cast, final

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from rlmix._apply import apply
from rlmix.envs import dynamics
from rlmix.envs.block import Library
from rlmix.envs.instances import Instance, digits_set
from rlmix.envs.networks import Stack
from rlmix.envs.reward import measure
from rlmix.envs.shell import fresh_seed
from rlmix.errors import EnvError
from rlmix.methods.method import usable
from rlmix.methods.rmix import HIGHEST_LEVEL, LEVELS, RMix
from rlmix.ops.grid import pool
from rlmix.ops.rng import Streams
from rlmix.plan import MixPlan
from rlmix.policy.codec import Catalogue
from rlmix.policy.controller import mixing_key
from rlmix.policy.decision import Decision
from rlmix.types import MixInputs

RLMixObservation: TypeAlias = dict[str, npt.NDArray[np.float32]]

LOGIT_LIMIT = 50.0
"""Logits are shown in [-50, 50]."""


@final
class RLMixEnv(gymnasium.Env[RLMixObservation, npt.NDArray[np.int64]]):
    """Train one classifier with R-Mix, and choose the threshold of every image of every batch.

    A step is one batch and one step of SGD. With B images in a batch, g x g cells and C classes:

    - observation: of the batch that is to be mixed next, `saliency`, float32 [B * g * g] in [0, 1], the maps of the
      unmixed images, averaged to the cells and summing to 1 for each image; and `logits`, float32 [B * C] in
      [-50, 50]. Image by image.
    - action: `MultiDiscrete([10] * B)`, for each image one of ten quantile levels from 0 to 0.99. Pairing and lam are
      drawn as R-Mix draws them; the agent sees neither.
    - reward: the cosine, in [0, 1], between the cells' saliency of the unmixed batch (not normalised) and that of the
      mixed batch, for the mixed loss at the mixed images, with the weights before the step. One number for all B
      choices.

    As published: all of the above, at every step. Mended or otherwise than in the released code:

    - `reset` begins a new classifier, and an episode is its whole training. `persistent=True` does as published: an
      episode is one epoch, and the classifier is kept until its budget is spent.
    - The mask is cut on the grid that the agent sees. The released agent sees 8 x 8 cells, while masks are cut on 2 x 2
      or 4 x 4, drawn for each batch; the default here is the finer of these.
    - Saliency and logits leave the statistics of BatchNorm as they are, which the released code updates twice a step.
      Logits are those of the network in evaluation mode.
    - The end of an episode is `terminated`. The observation there is zeros, as published, but with the right shapes.
    - A map that is nowhere above 0 counts as uniform; the released code divides by 0.
    - Both parts of the observation are flat, and logits have limits, as environment checkers ask for.
    - Random numbers are functions of (seed, number of the training, step).
    - The score of a finished training is measured on images that nothing else looks at, at its last step. The released
      code keeps the epoch that was best on the test set.

    A classifier that is no longer finite is frozen; its observations and rewards are 0 from then on.

    Information: `instance`, `step` and `lam`, after a step the mean label weight of the images themselves; at the end
    of a training also `score`, `final_acc` and `ts_nll`, as `MixTrainingEnv` has them.

    Args:
        instance: what is trained; None takes the first of the digits.
        grid: g, cells along a side.
        alpha: concentration of lam ~ Beta(alpha, alpha), above 0.
        persistent: whether episodes are epochs of a training that goes on over `reset`.
        data_dir: where data sets lie that are not part of a package.
        device: where the classifier trains.
        render_mode: None; there is nothing to see.

    Raises:
        EnvError: a grid that the images are too small for, or a render mode.
        MethodError: `alpha` out of its range.
        DataError: a data set is missing or too small.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(
        self,
        instance: Instance | None = None,
        *,
        grid: int = 4,
        alpha: float = 1.0,
        persistent: bool = False,
        data_dir: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None:
            raise EnvError(f"`render_mode` must be None, got {render_mode!r}.")
        self.render_mode = None
        self.instance = digits_set("train", 1).instances[0] if instance is None else instance
        self.grid, self._alpha, self._persistent = grid, alpha, persistent
        self._library = Library(Catalogue({"rmix": Decision("rmix", {"alpha": alpha})}), data_dir, device)
        self._images, (self._split,) = self._library.pictures([self.instance])
        self._num_classes = self._library.num_classes(self.instance)
        self._rates = torch.tensor(dynamics.learning_rates(self.instance), device=self._library.device)
        if not 1 <= grid <= min(self._images.shape[2:]):
            raise EnvError(f"`grid` must be in [1, {min(self._images.shape[2:])}], the images' side, got {grid}.")
        batch = self.instance.batch_size
        shown: dict[str, spaces.Space[Any]] = {
            "saliency": spaces.Box(0.0, 1.0, (batch * grid * grid,), np.float32),
            "logits": spaces.Box(-LOGIT_LIMIT, LOGIT_LIMIT, (batch * self._num_classes,), np.float32),
        }
        self.observation_space = cast(gymnasium.Space[RLMixObservation], spaces.Dict(shown))
        self.action_space = cast(gymnasium.Space[npt.NDArray[np.int64]], spaces.MultiDiscrete([LEVELS] * batch))
        # The one network of a stack.
        self._first = torch.zeros(1, dtype=torch.int64, device=self._library.device)
        self._alive = torch.ones(1, dtype=torch.bool, device=self._library.device)
        self._seed, self._trainings = -1, 0
        # Steps of the training, of which those before `_until` are of this episode.
        self._step, self._until = self.instance.total_steps, 0

    @property
    def steps(self) -> int:
        """How many steps an episode has; the last epoch of a training may have fewer."""
        whole = self.instance.total_steps
        return min(whole, max(1, self.instance.train_size // self.instance.batch_size)) if self._persistent else whole

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[RLMixObservation, dict[str, Any]]:
        """Begin the next training; of a persistent one that is not at its end, the next epoch.

        Args:
            seed: begins the sequence of trainings that belongs to it; None goes on.
            options: None; there are none.

        Raises:
            EnvError: an option.
        """
        if options:
            raise EnvError(f"there are no options, got {sorted(options)}. Leave `options` out.")
        super().reset(seed=seed)
        if seed is not None or self._seed < 0:
            self._seed, self._trainings = fresh_seed() if seed is None else seed, 0
            self._step = self.instance.total_steps
        if not self._persistent or self._step >= self.instance.total_steps:
            self._begin()
        self._until = min(self._step + self.steps, self.instance.total_steps)
        return self._observe(), {"instance": self.instance.id, "step": self._step}

    def step(self, action: npt.NDArray[np.int64]) -> tuple[RLMixObservation, float, bool, bool, dict[str, Any]]:
        """Mix the batch with these thresholds and train on it.

        Args:
            action: whole numbers [B] in [0, 10).

        Raises:
            EnvError: an action of a wrong shape, type or range, or an episode that has ended or not begun.
        """
        plan = self.plan(action)
        images, targets = self._mixed(plan)
        reward = self._agreement(images, targets)
        losses = self._stack.descend(
            images.unsqueeze(0),
            targets.unsqueeze(0),
            self._rates[self._step].view(1),
            self.instance.momentum,
            self.instance.weight_decay,
            self._alive,
        )
        self._alive = self._alive & torch.isfinite(losses) & self._stack.finite()
        self._step += 1
        info: dict[str, Any] = {"instance": self.instance.id, "step": self._step, "lam": float(plan.lam.mean())}
        if self._step == self.instance.total_steps:
            info |= self._scores()
        terminated = self._step >= self._until
        return self._nothing() if terminated else self._observe(), reward, terminated, False, info

    def plan(self, action: npt.NDArray[np.int64]) -> MixPlan:
        """Return how the batch at hand would be mixed with these thresholds.

        Args:
            action: whole numbers [B] in [0, 10).

        Raises:
            EnvError: an action of a wrong shape, type or range, or an episode that has ended or not begun.
        """
        levels = self._levels(action)
        height, width = self._images.shape[2:]
        inputs = MixInputs(len(levels), height, width, saliency=self._saliency)
        method = RMix(alpha=self._alpha, threshold=levels, grids=(self.grid,))
        return method.plan(inputs, Streams([mixing_key(self._key, self._step)]))

    def reward_of(self, plan: MixPlan) -> float:
        """Return the reward of the batch at hand, mixed by any plan of any method. Nothing is trained.

        Raises:
            EnvError: an episode that has ended or not begun.
            PlanError: a plan for other images.
        """
        self._check_running()
        return self._agreement(*self._mixed(plan))

    def _begin(self) -> None:
        self._key = dynamics.episode_key(self._seed, self._trainings)
        self._trainings += 1
        device = self._library.device
        model, forward = self._library.network(self.instance)
        weights = dynamics.initial_weights(model, self._key)
        self._stack = Stack.initial(forward, [weights], device, buffers=dict(model.named_buffers()))
        self._alive = torch.ones_like(self._alive)
        batches = dynamics.batch_rows(self.instance, self._key)
        # [T, B] each: rows of the images, and labels with noise.
        self._rows = self._split.train_rows[batches].to(device)
        self._labels = self._split.train_labels[batches].to(device)
        self._step = 0

    def _observe(self) -> RLMixObservation:
        """Load the batch at hand, and return what is seen of it."""
        self._batch = self._images[self._rows[self._step]]
        self._saliency = self._stack.saliency(self._batch.unsqueeze(0), self._labels[[self._step]], self._first)[0]
        logits = self._stack.logits(self._batch.unsqueeze(0))
        self._alive = self._alive & torch.isfinite(logits).all()
        if not self._finite:
            return self._nothing()
        cells = usable(self._cells(self._saliency))
        shares = (cells / cells.sum((1, 2), keepdim=True)).clamp(0.0, 1.0)
        return {
            "saliency": shares.flatten().cpu().numpy(),
            "logits": logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).flatten().cpu().numpy(),
        }

    def _nothing(self) -> RLMixObservation:
        batch = self.instance.batch_size
        sizes = {"saliency": batch * self.grid**2, "logits": batch * self._num_classes}
        return {name: np.zeros(size, np.float32) for name, size in sizes.items()}

    def _mixed(self, plan: MixPlan) -> tuple[Tensor, Tensor]:
        """Return images [B, C, H, W] and targets float32 [B, classes]."""
        return apply(self._batch, plan), plan.soft_targets(self._labels[self._step], self._num_classes)

    def _agreement(self, images: Tensor, targets: Tensor) -> float:
        """Return the cosine of the cells' saliency, unmixed and mixed; 0 for a classifier that is not finite."""
        mixed = self._stack.saliency(images.unsqueeze(0), targets.unsqueeze(0), self._first)[0]
        # In float64: gradients of a network that has learned its images are tiny, their squares more so.
        own, other = (self._cells(maps).double().flatten() for maps in (self._saliency, mixed))
        cosine = float(torch.nn.functional.cosine_similarity(own, other, dim=0, eps=1e-12))
        return min(1.0, max(0.0, cosine)) if self._finite and np.isfinite(cosine) else 0.0

    def _cells(self, maps: Tensor) -> Tensor:
        return pool(maps, (self.grid, self.grid))

    def _scores(self) -> dict[str, Any]:
        logits = self._stack.logits(self._images[self._split.reward_rows.to(self._library.device)].unsqueeze(0))
        labels = self._split.reward_labels.to(self._library.device)
        scores = measure(logits[0] if self._finite else torch.full_like(logits[0], torch.nan), labels)
        return {"score": float(scores.score), "final_acc": float(scores.accuracy), "ts_nll": float(scores.ts_nll)}

    @property
    def _finite(self) -> bool:
        return bool(self._alive)

    def _check_running(self) -> None:
        if self._step >= self._until:
            raise EnvError("the episode has ended, or none has begun. Call `reset` first.")

    def _levels(self, action: npt.NDArray[np.int64]) -> Tensor:
        """Return the thresholds of a checked action, float32 [B] in [0, 0.99]."""
        self._check_running()
        given, batch = np.asarray(action), self.instance.batch_size
        if given.shape != (batch,) or not np.issubdtype(given.dtype, np.integer):
            raise EnvError(
                f"`action` must be {batch} whole numbers, one for each image, got {given.dtype} of shape {given.shape}."
            )
        if given.min() < 0 or given.max() >= LEVELS:
            raise EnvError(f"`action` must be in [0, {LEVELS}), got {given.min()} to {given.max()}.")
        return torch.from_numpy(given.astype(np.float32)) * (HIGHEST_LEVEL / (LEVELS - 1))
