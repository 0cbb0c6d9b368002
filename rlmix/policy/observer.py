"""What a policy sees of one training: from the tensors of an ordinary loop to the entries that the policy reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from rlmix._mix import check_batch
from rlmix.errors import InputError
from rlmix.ops.modules import unwrap
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.limits import Facts, facts_of
from rlmix.policy.probe import PROBE_EXAMPLES, RecentBatches, forward
from rlmix.policy.signals import Context, History, Predictions, names, signals

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Images [B, C, H, W] and labels [B]."""


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Training:
    """What is said of a training before it begins.

    Attributes:
        total_steps: calls of the mixer in the whole training.
        num_classes: C.
        num_examples: training examples, or None.
        validation: a batch, a function that returns one, or None.
        check: whether values are read; None reads them on the CPU only.
    """

    total_steps: int
    num_classes: int
    num_examples: int | None
    validation: Batch | Callable[[], Batch] | None
    check: bool | None


class AbstractObserver(ABC):
    """Follows one training and gives an observation when a decision is due."""

    @abstractmethod
    def see(self, images: Tensor, labels: Tensor, steps_left: int) -> None:
        """Take notice of an unmixed batch, `steps_left` calls before the next decision (0: it is due now)."""

    @abstractmethod
    def add(self, loss: Tensor | float | None, lr: Tensor | float | None, half: int) -> None:
        """Take notice of a step's loss and learning rate, in the first (0) or second (1) half of an interval."""

    @abstractmethod
    def look(self, model: nn.Module | None, step: int) -> Tensor | None:
        """Return the entries that the source reads, float32 [D] on the CPU, or None if it reads none."""

    @abstractmethod
    def record(self, entry: int, steps: int) -> None:
        """Note which entry holds for the coming steps."""

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What was known of the training when it was last looked at; empty before."""

    @property
    @abstractmethod
    def outside(self) -> Mapping[str, int]:
        """How many observations were outside the range of training, by entry; entries with 0 are left out."""

    @abstractmethod
    def state(self) -> Any:
        """Return a tree to go on from."""

    @abstractmethod
    def load_state(self, state: Any) -> None:
        """Go on from what `state` returned."""


@final
class Blind(AbstractObserver):
    """Sees nothing: for sources that decide without looking."""

    def see(self, images: Tensor, labels: Tensor, steps_left: int) -> None:
        """Do nothing."""

    def add(self, loss: Tensor | float | None, lr: Tensor | float | None, half: int) -> None:
        """Do nothing."""

    def look(self, model: nn.Module | None, step: int) -> Tensor | None:
        """Return None."""
        return None

    def record(self, entry: int, steps: int) -> None:
        """Do nothing."""

    @property
    def facts(self) -> Facts:
        """Nothing is known."""
        return {}

    @property
    def outside(self) -> Mapping[str, int]:
        """Nothing was outside."""
        return {}

    def state(self) -> Any:
        """Return None."""
        return None

    def load_state(self, state: Any) -> None:
        """Do nothing."""


@final
class Observer(AbstractObserver):
    """Sees what a learned policy reads.

    Between decisions it only adds to sums on the device. At a decision, everything is stacked into one tensor and
    read once.

    Args:
        policy: whose entries are wanted.
        training: what is known of the training.

    Raises:
        PolicyError: the policy reads an entry that no training shows.
    """

    def __init__(self, policy: LearnedPolicy, training: Training) -> None:
        self._policy, self._training = policy, training
        self._columns = policy.columns(names(policy.catalogue))
        self._outside = torch.zeros(len(self._columns), dtype=torch.int64)
        self._recent = RecentBatches()
        self._history = History.initial(1, policy.catalogue)
        self._batch_size = 0
        self._size = (0, 0)
        self._context: Context | None = None

    def see(self, images: Tensor, labels: Tensor, steps_left: int) -> None:
        """Note the batch's form, and keep a copy if the next decision will look at it."""
        if self._history.total.device != images.device:
            self._move(images.device)
        # The last batch of an epoch may be small; the largest is the one that the training is set up with.
        self._batch_size = max(self._batch_size, len(images))
        self._size = (images.shape[2], images.shape[3])
        if steps_left <= -(-PROBE_EXAMPLES // len(images)):
            labels = check_batch(images, labels, self._training.num_classes, check=self._training.check)
            self._recent.add(images, labels)

    def add(self, loss: Tensor | float | None, lr: Tensor | float | None, half: int) -> None:
        """Add to the sums."""
        if lr is not None:
            self._history.set_lr(_row(lr, self._history.lr))
        if loss is not None:
            self._history.add_loss(_row(loss, self._history.total), half=half)

    def look(self, model: nn.Module | None, step: int) -> Tensor | None:
        """Run the model on recent and on validation images, and return the policy's entries."""
        training, device = self._training, self._history.total.device
        probe = val = None
        if model is not None:
            probe = self._predictions(model, *self._recent.joined())
            if training.validation is not None:
                val = self._predictions(model, *self._validation())
        self._recent.clear()
        context = Context.of(
            1,
            device,
            total_steps=training.total_steps,
            num_examples=training.num_examples,
            batch_size=self._batch_size,
            num_classes=training.num_classes,
            height=self._size[0],
            width=self._size[1],
            num_params=None if model is None else sum(part.numel() for part in unwrap(model).parameters()),
        )
        self._context = context
        catalogue = self._policy.catalogue
        row = signals(context, self._history, step, probe=probe, val=val, catalogue=catalogue)[0].cpu()
        observation = row[self._columns]
        self._outside += (observation < self._policy.low) | (observation > self._policy.high)
        return observation

    def record(self, entry: int, steps: int) -> None:
        """Note the entry in the history."""
        self._history.record(torch.full_like(self._history.last, entry), steps)

    @property
    def facts(self) -> Facts:
        """What was known of the training when it was last looked at; empty before."""
        return {} if self._context is None else facts_of(self._context)

    @property
    def outside(self) -> Mapping[str, int]:
        """How many observations were outside the range of training, by entry."""
        counts = zip(self._policy.observation_names, self._outside.tolist(), strict=True)
        return {name: count for name, count in counts if count}

    def state(self) -> Any:
        """Return sums, memory and recent batches."""
        return {
            "history": self._history.state(),
            "recent": self._recent.state(),
            "outside": self._outside.clone(),
            "batch_size": self._batch_size,
            "size": self._size,
        }

    def load_state(self, state: Any) -> None:
        """Go on from a state, on the CPU until the next batch shows the device."""
        self._history = History.from_state(state["history"], "cpu")
        self._recent.load_state(state["recent"], torch.device("cpu"))
        self._outside = state["outside"].clone()
        self._batch_size = state["batch_size"]
        self._size = (state["size"][0], state["size"][1])

    def _move(self, device: torch.device) -> None:
        self._history = History.from_state(self._history.state(), device)
        self._recent.load_state(self._recent.state(), device)

    def _predictions(self, model: nn.Module, images: Tensor, labels: Tensor) -> Predictions:
        logits = forward(model, images)
        if logits.shape[1] != self._training.num_classes:
            raise InputError(
                f"`model` returns {logits.shape[1]} logits for each image, `num_classes` is "
                f"{self._training.num_classes}. Give the number of classes that the model was built for."
            )
        return logits.unsqueeze(0), labels.unsqueeze(0), None

    def _validation(self) -> Batch:
        """Return the validation batch, checked, where the training's tensors are."""
        given = self._training.validation
        images, labels = check_pair(given() if callable(given) else given)
        labels = check_batch(images, labels, self._training.num_classes, check=self._training.check)
        device = self._history.total.device
        recent, _ = self._recent.joined()
        return images.to(device, recent.dtype), labels.to(device)


def check_pair(batch: Any) -> Batch:
    """Return a validation batch as images and labels.

    Raises:
        InputError: it is something else.
    """
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        raise InputError(
            f"`validation` must be a pair of images and labels, or a function that returns one, got "
            f"{type(batch).__name__}. Of a loader, give one batch: next(iter(loader))."
        )
    return batch[0], batch[1]


def _row(value: Tensor | float, like: Tensor) -> Tensor:
    """Show a number, or the mean of a tensor, as [1] beside `like`."""
    if isinstance(value, Tensor):
        return value.detach().to(like.device, torch.float64).mean().reshape(1)
    return torch.full_like(like, value)
