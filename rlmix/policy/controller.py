"""The controller: mixes the batches of a training loop as a policy decides."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from rlmix._files import sha256_of
from rlmix._mix import check_batch, mix
from rlmix.errors import CheckpointError, InputError, UnknownNameError, nearest
from rlmix.ops import rng
from rlmix.ops.rng import Streams
from rlmix.policy.artifact import load
from rlmix.policy.decision import Decision
from rlmix.policy.observer import Batch, Training, check_pair
from rlmix.policy.sources import Learned
from rlmix.policy.sources import source as resolve

_LOGGER = logging.getLogger("rlmix")
# Words under the seed: the mixing of step t and the exploration of decision j.
_MIXING, _EXPLORATION = 1, 2


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CloseReport:
    """What a controller did.

    Attributes:
        steps: batches that were mixed.
        total_steps: batches that were announced.
        decisions: decisions that were taken.
        outside: at how many decisions an observation entry was outside the range that the policy was trained on (and
            was clipped to it); entries that never were are left out.
    """

    steps: int
    total_steps: int
    decisions: int
    outside: Mapping[str, int]

    @property
    def text(self) -> str:
        """The report as a sentence or two."""
        text = f"mixed {self.steps} of {self.total_steps} steps with {self.decisions} decisions"
        if not self.outside:
            return f"{text}."
        entries = ", ".join(f"{name} {count}x" for name, count in self.outside.items())
        return f"{text}. Outside the policy's training range, and clipped to it: {entries}."


@final
class MixController:
    """Mixes each batch of a training as a policy, a schedule or a fixed Decision says.

    Only `num_classes`, `total_steps` and `seed` are required. `model` in the call, `num_examples`, `validation` and
    `observe` add signals that a learned policy can read; it works without each of them. Between decisions nothing
    waits for the device.

    Args:
        source: a policy directory, a Decision, a method or its name, or a `rlmix.policy.sources.Schedule`.
        num_classes: C of the targets.
        total_steps: calls in the whole training; after them the last decision stays.
        seed: in [0, 2**63); equal seeds mix equally.
        num_examples: training examples.
        validation: images and labels for the policy to look at, or a function that returns them at each decision.
        explore: draw from the policy's distribution instead of taking the most probable entry.
        allow: names of the catalogue entries that may be chosen; None allows all.
        check: whether labels and images are read to check their values; None does so on the CPU only.

    Raises:
        InputError: an argument of a wrong form.
        PolicyError: a damaged policy directory.
        UnknownNameError: no such method, directory or catalogue entry.

    Example:
        >>> import torch, rlmix
        >>> mixer = rlmix.MixController("mixup", num_classes=10, total_steps=100, seed=0)
        >>> images, targets = mixer(torch.rand(8, 3, 32, 32), torch.arange(8))
        >>> targets.shape
        torch.Size([8, 10])
        >>> mixer.decision.text
        'mixup'
    """

    def __init__(
        self,
        source: Any,
        *,
        num_classes: int,
        total_steps: int,
        seed: int,
        num_examples: int | None = None,
        validation: Batch | Callable[[], Batch] | None = None,
        explore: bool = False,
        allow: Sequence[str] | None = None,
        check: bool | None = None,
    ) -> None:
        _check_whole("num_classes", num_classes, 1)
        _check_whole("total_steps", total_steps, 1)
        _check_whole("seed", seed, 0)
        if num_examples is not None:
            _check_whole("num_examples", num_examples, 1)
        if validation is not None and not callable(validation):
            check_pair(validation)
        self._training = Training(
            total_steps=total_steps,
            num_classes=num_classes,
            num_examples=num_examples,
            validation=validation,
            check=check,
        )
        self._seed, self._explore = seed, explore
        self._source = resolve(source)
        self._points = self._source.points(total_steps)
        self._observer = self._source.observer(self._training)
        self._allowed = _allowed(self._source.names, allow)
        self._plain = self._allowed & torch.tensor([not method.needs_saliency for method in self._source.methods])
        self._step, self._number, self._begun, self._entry = 0, 0, 0, 0
        self._seen: tuple[Tensor | None, Tensor] | None = None
        self._log: list[tuple[int, Decision]] = []
        self._closed = False

    @classmethod
    def load(cls, path: str | os.PathLike[str], **arguments: Any) -> MixController:
        """Return a controller for the policy directory at `path`; `arguments` are the constructor's.

        Raises:
            PolicyError: the directory is missing or damaged.
        """
        return cls(Learned(load(path)), **arguments)

    def __call__(self, images: Tensor, labels: Tensor, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: [B, C, H, W] floating point, any device; never written.
            labels: whole numbers [B] in [0, num_classes).
            model: the classifier, for methods with saliency and for policies that look at it. It is left as it was.

        Returns:
            Images like those given, and targets float32 [B, num_classes].

        Raises:
            InputError: a batch of a wrong form, or every allowed entry needs saliency and there is no model.
        """
        # Shapes now, values in `mix`; the observer checks those of the few batches that it looks at.
        labels = check_batch(images, labels, self._training.num_classes, check=False)
        if self._number < len(self._points):
            steps_left = self._points[self._number] - self._step
            self._observer.see(images, labels, steps_left)
            if steps_left == 0:
                self._decide(model)
        batch = mix(
            images,
            labels,
            self._source.methods[self._entry],
            num_classes=self._training.num_classes,
            generator=Streams([mixing_key(self._seed, self._step)]),
            model=model,
            check=self._training.check,
        )
        self._step += 1
        return batch.images, batch.targets

    def observe(self, *, loss: Tensor | float | None = None, lr: Tensor | float | None = None) -> None:
        """Tell of the step whose batch was mixed last; may stand anywhere between two calls.

        Only adds to sums on the device.

        Args:
            loss: the training loss, a scalar (of a tensor with more elements the mean counts).
            lr: the learning rate.
        """
        position = max(0, self._step - 1 - self._begun)
        self._observer.add(loss, lr, int(2 * position >= self._end() - self._begun))

    @property
    def decision(self) -> Decision | None:
        """The Decision that holds now; None before the first call."""
        return self._log[-1][1] if self._log else None

    @property
    def decisions(self) -> list[tuple[int, Decision]]:
        """All Decisions so far, each with the step from which on it held."""
        return list(self._log)

    @property
    def observation(self) -> Tensor | None:
        """What the policy read at its last decision, float32 [D] in its order, before clipping; None of others."""
        return None if self._seen is None else self._seen[0]

    @property
    def probabilities(self) -> dict[str, float] | None:
        """How probable each entry was at the last decision of a learned policy; None otherwise."""
        found = None if self._seen is None else self._source.probabilities(*self._seen)
        return None if found is None else dict(zip(self._source.names, found.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return a tree of tensors, numbers and strings, for a checkpoint of the training."""
        return {
            "identity": self._identity(),
            "step": self._step,
            "number": self._number,
            "begun": self._begun,
            "entry": self._entry,
            "seen": self._seen,
            "decisions": [(step, json.dumps(decision.to_json())) for step, decision in self._log],
            "observer": self._observer.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the controller that `state_dict` was taken from would have.

        Raises:
            CheckpointError: the state is of another policy, seed, number of steps or classes, or damaged.
        """
        try:
            saved, mine = state["identity"], self._identity()
            different = [name for name in mine if saved[name] != mine[name]]
            if different:
                name = different[0]
                raise CheckpointError(
                    f"the state belongs to another training: its `{name}` is {saved[name]!r}, here {mine[name]!r}."
                )
            log = [(step, Decision.from_json(json.loads(text))) for step, text in state["decisions"]]
            self._observer.load_state(state["observer"])
            self._seen = None if state["seen"] is None else tuple(state["seen"])
            self._step, self._number = int(state["step"]), int(state["number"])
            self._begun, self._entry, self._log = int(state["begun"]), int(state["entry"]), log
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"the controller's state is damaged ({error!r}).") from error

    def close(self) -> CloseReport:
        """Return what was done, and log it once (logger `rlmix`, level INFO)."""
        report = CloseReport(
            steps=self._step,
            total_steps=self._training.total_steps,
            decisions=len(self._log),
            outside=self._observer.outside,
        )
        if not self._closed:
            _LOGGER.info("%s", report.text)
        self._closed = True
        return report

    def _decide(self, model: nn.Module | None) -> None:
        """Take the decision that is due now."""
        number = self._number
        while number + 1 < len(self._points) and self._points[number + 1] == self._step:
            # In a training of fewer steps than decisions, the last one of a step counts.
            number += 1
        allowed = self._plain if model is None else self._allowed
        observation = self._observer.look(model, self._step)
        explore = Streams([rng.derive(self._seed, _EXPLORATION, number)]) if self._explore else None
        entry = self._source.choose(number, observation, allowed, explore)
        if not bool(allowed[entry]):
            raise self._refusal(entry, allowed)
        self._number, self._begun, self._entry, self._seen = number + 1, self._step, entry, (observation, allowed)
        self._log.append((self._step, self._source.decisions[entry]))
        self._observer.record(entry, self._end() - self._step)

    def _refusal(self, entry: int, allowed: Tensor) -> InputError:
        """Return the error for an entry that cannot be carried out."""
        names = self._source.names
        if bool(allowed.any()) and not bool(self._allowed[entry]):
            return InputError(f"`{names[entry]}` is not among `allow`. Leave `allow` out, or change the schedule.")
        blocked = [name for name, named in zip(names, (self._allowed & ~allowed).tolist(), strict=True) if named]
        return InputError(
            f"{', '.join(f'`{name}`' for name in blocked)}: needs saliency, and nothing else can be chosen. Saliency "
            "comes from the model: mixer(images, labels, model=model)."
        )

    def _end(self) -> int:
        """Return the step of the next decision, or of the end."""
        return self._points[self._number] if self._number < len(self._points) else self._training.total_steps

    def _identity(self) -> dict[str, Any]:
        """Return what a state must agree on."""
        entries = [
            (name, decision.to_json())
            for name, decision in zip(self._source.names, self._source.decisions, strict=True)
        ]
        return {
            "source": sha256_of(json.dumps([entries, self._points], sort_keys=True).encode("utf-8")),
            "num_classes": self._training.num_classes,
            "total_steps": self._training.total_steps,
            "seed": self._seed,
        }


def mixing_key(seed: int, step: int) -> int:
    """Return the key that the batch of a step is mixed with, in a deployed training as in a pool of them."""
    return rng.derive(seed, _MIXING, step)


def _check_whole(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**63:
        raise InputError(f"`{name}` must be a whole number from {low} to 2**63 - 1, got {value!r}.")


def _allowed(names: Sequence[str], allow: Sequence[str] | None) -> Tensor:
    """Return which entries may be chosen, bool [E]."""
    for name in () if allow is None else allow:
        if name not in names:
            raise UnknownNameError(f"`allow` names `{name}`, which is no entry of the source. {nearest(name, names)}")
    allowed = torch.tensor([allow is None or name in allow for name in names])
    if not bool(allowed.any()):
        raise InputError("`allow` names no entry. Leave it out to allow all.")
    return allowed
