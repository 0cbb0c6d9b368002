"""The controller: mixes the batches of a training loop as a policy decides."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, final

import torch
from torch import Tensor, nn

from rlmix._files import sha256_of
from rlmix._mix import check_classes, check_dense, mix
from rlmix.errors import CheckpointError, InputError, UnknownNameError, nearest
from rlmix.methods.method import AbstractMethod
from rlmix.ops import rng
from rlmix.ops.rng import Streams
from rlmix.plan import MixPlan
from rlmix.policy import _ranks
from rlmix.policy.artifact import load
from rlmix.policy.decision import Decision
from rlmix.policy.observer import Batch, Training, check_pair
from rlmix.policy.remote import source_of
from rlmix.policy.sources import Learned
from rlmix.saliency.bank import SaliencyBank, check_mirrored
from rlmix.saliency.input_gradient import input_gradient
from rlmix.types import SaliencySource

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
        fallback: the entry that took the policy's place, in a training outside the limits of its card; None otherwise.
        origins: how many decisions came from where, of a policy service's training; otherwise empty.
    """

    steps: int
    total_steps: int
    decisions: int
    outside: Mapping[str, int]
    fallback: str | None
    origins: Mapping[str, int]

    @property
    def text(self) -> str:
        """The report as a sentence or two."""
        text = f"mixed {self.steps} of {self.total_steps} steps with {self.decisions} decisions"
        if self.fallback is not None:
            text = f"{text}, all of them `{self.fallback}` since the policy is outside its limits"
        if self.origins:
            text = f"{text} ({', '.join(f'{count} {origin}' for origin, count in self.origins.items())})"
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

    In a distributed training (`torch.distributed.init_process_group` first) each process has a controller, made and
    called alike. Where a policy decides, the first process does so for all, by one small broadcast at each decision; an
    error there ends all of them. What the others see of the training does not count.

    As a context manager it closes itself; an exception that leaves the block is told to a policy service.

    Args:
        source: a policy directory, "default" for the policy of this package, a Decision, a method or its name, a
            `rlmix.policy.sources.Schedule`, or the address of a policy service or of its database (`rlmix.connect`
            takes options).
        num_classes: C of the targets.
        total_steps: calls in the whole training; after them the last decision stays.
        seed: in [0, 2**63); equal seeds mix equally.
        num_examples: training examples.
        validation: images and labels for the policy to look at, or a function that returns them at each decision.
        explore: draw from the policy's distribution instead of taking the most probable entry.
        allow: names of the catalogue entries that may be chosen; None allows all. What stands in for a policy service
            that was never reached has entries of its own, all of which may be chosen.
        saliency: where methods with saliency get their maps from. None: the gradient of the model that is given in the
            call, a pass of its own. A function (images, labels) -> maps [B, h, w], such as
            `rlmix.saliency.Detector()`: that. A `SaliencyBank`: the bank, which the training's own backward pass
            then refreshes at every step, whatever the method; the call needs `ids`.
        refresh_every: k, to write into the bank at every k-th call what a clean pass of the model says of the unmixed
            batch; None never does.
        label_smoothing: in [0, 1]; this much of each target row is spread evenly over the classes. For class numbers
            only.
        check: whether labels and images are read to check their values; None does so on the CPU only.
        limits: whether a policy leaves a training outside the limits that its card sets to the entry that the card
            names as the safest; that is said once, by the logger `rlmix`.

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
        saliency: SaliencySource | SaliencyBank | None = None,
        refresh_every: int | None = None,
        label_smoothing: float = 0.0,
        check: bool | None = None,
        limits: bool = True,
    ) -> None:
        _check_whole("num_classes", num_classes, 1)
        _check_whole("total_steps", total_steps, 1)
        _check_whole("seed", seed, 0)
        if num_examples is not None:
            _check_whole("num_examples", num_examples, 1)
        if validation is not None and not callable(validation):
            check_pair(validation)
        self._bank: SaliencyBank | None = None
        self._provider: SaliencySource | None = None
        if isinstance(saliency, SaliencyBank):
            self._bank = saliency
        elif saliency is None or callable(saliency):
            self._provider = saliency
        else:
            raise InputError(
                "`saliency` must be a function (images, labels) -> maps [B, h, w] or a SaliencyBank, got "
                f"{type(saliency).__name__}. Maps of one batch belong to `rlmix.mix`."
            )
        if refresh_every is not None:
            _check_whole("refresh_every", refresh_every, 1)
            if self._bank is None:
                raise InputError(
                    "`refresh_every` refreshes a bank, and there is none. Give saliency=SaliencyBank(num_examples)."
                )
        if isinstance(label_smoothing, bool) or not 0.0 <= label_smoothing <= 1.0:
            raise InputError(f"`label_smoothing` must be in [0, 1], got {label_smoothing!r}.")
        self._refresh_every, self._label_smoothing = refresh_every, label_smoothing
        self._training = Training(
            total_steps=total_steps,
            num_classes=num_classes,
            num_examples=num_examples,
            validation=validation,
            check=check,
        )
        self._seed, self._explore, self._limits = seed, explore, limits
        self._source = source_of(source)
        self._points = self._source.points(total_steps)
        self._observer = self._source.observer(self._training)
        self._allowed = _allowed(self._source.names, None if self._source.stands_in else allow)
        self._plain = self._allowed & torch.tensor([not method.needs_saliency for method in self._source.methods])
        self._step, self._number, self._begun, self._entry = 0, 0, 0, 0
        self._method = self._source.methods[0]
        self._seen: tuple[Tensor | None, Tensor] | None = None
        self._question: _Question | None = None
        self._joint = _ranks.several()
        self._log: list[tuple[int, Decision]] = []
        self._fallback: int | None = None
        self._report: CloseReport | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str], **arguments: Any) -> MixController:
        """Return a controller for the policy directory at `path`, or "default" for the policy of this package.

        `arguments` are the constructor's.

        Raises:
            PolicyError: the directory is missing or damaged.
        """
        return cls(Learned(load(path)), **arguments)

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        model: nn.Module | None = None,
        ids: Tensor | None = None,
        *,
        mirrored: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: [B, C, H, W] floating point, any device; never written.
            labels: class numbers, whole [B] in [0, num_classes); or dense targets, floating point [B, num_classes] in
                [0, 1], of which a policy that looks sees the largest class.
            model: the classifier, for methods with saliency and for policies that look at it. It is left as it was.
            ids: for a `SaliencyBank`: whole numbers [B], which training example each image is, each once. On the CPU,
                where a loader gives them, they are checked.
            mirrored: for a `SaliencyBank`: bool [B], which images were mirrored left to right.

        Returns:
            Images like those given, and targets float32 [B, num_classes]. With a bank the images are part of a graph,
            so that the loop's `loss.backward()` refreshes the bank.

        Raises:
            InputError: a batch of a wrong form, or every allowed entry needs saliency and there is neither a model nor
                `saliency`; with a bank, ids that are missing, unknown, repeated, or of another batch.
        """
        # Shapes now, values in `mix`; the observer checks those of the few batches that it looks at.
        dense = labels.dim() == 2 and labels.is_floating_point()
        check = check_dense if dense else check_classes
        labels = check(images, labels, self._training.num_classes, check=False)
        remembered = None if self._bank is None else _remembered(self._bank, images, ids, mirrored)
        if self._number < len(self._points):
            due = self._points[self._number]
            if self._question is None:
                steps_left = due - self._ahead(due) - self._step
                self._observer.see(images, labels.argmax(1) if dense else labels, steps_left)
                if steps_left == 0:
                    self._question = self._look(model, due)
            if self._question is not None and due == self._step:
                self._decide(self._question)
        if remembered is not None and self._refresh_every is not None and self._step % self._refresh_every == 0:
            labels = check(images, labels, self._training.num_classes, check=self._training.check)
            remembered.update(_clean(model, images, labels))
        batch = mix(
            images,
            labels,
            self._method,
            num_classes=self._training.num_classes,
            generator=Streams([mixing_key(self._seed, self._step)]),
            saliency=self._provider if remembered is None else remembered.read,
            model=model,
            label_smoothing=self._label_smoothing,
            check=self._training.check,
        )
        self._step += 1
        mixed = batch.images if remembered is None else remembered.watch(batch.images, batch.plan)
        return mixed, batch.targets

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
            "fallback": self._fallback,
            "seen": self._seen,
            "question": None if self._question is None else self._question.state(),
            "source": self._source.state(),
            "decisions": [(step, json.dumps(decision.to_json())) for step, decision in self._log],
            "observer": self._observer.state(),
            "bank": None if self._bank is None else self._bank.state_dict(),
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
            bank = state.get("bank")
            if (bank is None) != (self._bank is None):
                has = ("one", "none") if self._bank is None else ("none", "one")
                raise CheckpointError(
                    f"the state belongs to another training: of saliency banks it has {has[0]}, this one {has[1]}."
                )
            log = [(step, Decision.from_json(json.loads(text))) for step, text in state["decisions"]]
            if self._bank is not None and bank is not None:
                self._bank.load_state_dict(bank)
            self._observer.load_state(state["observer"])
            self._seen = None if state["seen"] is None else tuple(state["seen"])
            self._step, self._number = int(state["step"]), int(state["number"])
            self._begun, self._entry, self._log = int(state["begun"]), int(state["entry"]), log
            self._fallback = state["fallback"]
            self._source.load_state(state.get("source"))
            asked = state.get("question")
            self._question = None if asked is None else _Question(number=int(asked[0]), observation=asked[1],
                                                                  allowed=asked[2])  # fmt: skip
            if self._question is not None:
                self._prepare(self._question)
            self._method = self._built(log[-1][1]) if log else self._source.methods[0]
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"the controller's state is damaged ({error!r}).") from error

    def report(self, **values: float) -> None:
        """Tell a policy service what came of the decision in force: once for each decision, finite numbers by name.

        What counts at the end is `val_accuracy`, in [0, 1], and `val_tsnll`, the negative log-likelihood of the
        temperature-scaled predictions, both on images that were not trained on. Other sources learn nothing from it.

        Raises:
            InputError: there is no decision yet, or a value is no finite number.
        """
        if not self._log:
            raise InputError("`report` tells what came of a decision, and none was taken yet.")
        wrong = [name for name, value in values.items() if not math.isfinite(float(value))]
        if wrong or not values:
            raise InputError(f"`report` takes finite numbers by name, got {values!r}.")
        self._source.report(self._number - 1, {name: float(value) for name, value in values.items()})

    def close(self, *, failed: bool = False) -> CloseReport:
        """Return what was done, and log it once (logger `rlmix`, level INFO); a service is told what it missed.

        Args:
            failed: whether an error ended the training.
        """
        if self._report is not None:
            return self._report
        finished = self._step >= self._training.total_steps
        self._report = CloseReport(
            steps=self._step,
            total_steps=self._training.total_steps,
            decisions=len(self._log),
            outside=self._observer.outside,
            fallback=None if self._fallback is None else self._source.names[self._fallback],
            origins=self._source.close(finished=finished and not failed, failed=failed),
        )
        _LOGGER.info("%s", self._report.text)
        return self._report

    def __enter__(self) -> MixController:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        # Who is interrupted from outside may go on later.
        self.close(failed=isinstance(error, Exception))

    def _ahead(self, due: int) -> int:
        """Return how many steps before a decision the training is looked at: within its interval, the first at once."""
        return min(self._source.ahead, due - self._begun - 1) if self._log else 0

    def _look(self, model: nn.Module | None, due: int) -> _Question:
        """Look at the training for the decision that is due at a step, and let the source prepare itself."""
        number = self._number
        while number + 1 < len(self._points) and self._points[number + 1] == due:
            # In a training of fewer steps than decisions, the last one of a step counts.
            number += 1
        without = model is None and self._provider is None and self._bank is None
        allowed = self._plain if without else self._allowed
        try:
            observation = self._observer.look(model, self._step)
        except Exception as error:
            if not self._joint or not _ranks.leads():
                raise
            # The others would wait for the decision for ever.
            return _Question(number=number, observation=None, allowed=allowed, problem=error)
        question = _Question(number=number, observation=observation, allowed=allowed)
        if due > self._step:
            self._prepare(question)
        return question

    def _prepare(self, question: _Question) -> None:
        """Let the source prepare itself, where the choice will be its own."""
        if self._fallback is None and (not self._joint or _ranks.leads()):
            explore = self._exploration(question.number)
            self._source.prepare(question.number, question.observation, question.allowed, explore)

    def _decide(self, question: _Question) -> None:
        """Take the decision that is due now."""
        codec = self._source.codec
        if codec is None or not self._joint:
            entry, decision, fallen = self._chosen(question)
        else:
            entry, decision, fallen = _ranks.decided(codec, question.number, lambda: self._chosen(question))
        self._fallback = entry if fallen else None
        self._question, self._seen = None, (question.observation, question.allowed)
        self._number, self._begun, self._entry = question.number + 1, self._step, entry
        self._method = self._built(decision)
        self._log.append((self._step, decision))
        self._observer.record(entry, self._end() - self._step)

    def _chosen(self, question: _Question) -> tuple[int, Decision, bool]:
        """Return the entry, what it means now, and whether it is what a training outside the limits falls back to."""
        if question.problem is not None:
            raise question.problem
        number, observation, allowed = question.number, question.observation, question.allowed
        explore = self._exploration(number)
        if not self._log and self._limits:
            self._fall_back(allowed)
        entry = self._fallback
        if entry is None:
            entry = self._source.choose(number, observation, allowed, explore)
        if not bool(allowed[entry]):
            raise self._refusal(entry, allowed)
        return entry, self._source.decision(entry, observation, explore), self._fallback is not None

    def _exploration(self, number: int) -> Streams | None:
        """Return the key that a decision is drawn with."""
        return Streams([rng.derive(self._seed, _EXPLORATION, number)]) if self._explore else None

    def _fall_back(self, allowed: Tensor) -> None:
        """Keep to the safest entry from here on, if the policy should not decide for this training."""
        found = self._source.outside(self._observer.facts)
        if found is None or not bool(allowed[found[0]]):
            return
        self._fallback, why = found
        _LOGGER.warning(
            "this training is outside the limits of the policy's card, so `%s` is used throughout: %s. "
            "MixController(..., limits=False) lets the policy decide all the same.",
            self._source.names[self._fallback],
            why,
        )

    def _built(self, decision: Decision) -> AbstractMethod:
        """Return the method of the Decision that the current entry came to."""
        # An entry's own method need not be registered, so only parameters that a policy set are built anew.
        unchanged = decision == self._source.decisions[self._entry]
        return self._source.methods[self._entry] if unchanged else decision.build()

    def _refusal(self, entry: int, allowed: Tensor) -> InputError:
        """Return the error for an entry that cannot be carried out."""
        names = self._source.names
        if bool(allowed.any()) and not bool(self._allowed[entry]):
            return InputError(f"`{names[entry]}` is not among `allow`. Leave `allow` out, or change the schedule.")
        blocked = [name for name, named in zip(names, (self._allowed & ~allowed).tolist(), strict=True) if named]
        return InputError(
            f"{', '.join(f'`{name}`' for name in blocked)}: needs saliency, and nothing else can be chosen. Saliency "
            "comes from the model: mixer(images, labels, model=model), or from MixController(..., saliency=...)."
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


@final
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Question:
    """What a decision is taken from.

    Attributes:
        number: of the decision.
        observation: float32 [D], or None.
        allowed: bool [E].
        problem: an error of this process that the others must hear of first.
    """

    number: int
    observation: Tensor | None
    allowed: Tensor
    problem: Exception | None = None

    def state(self) -> tuple[int, Tensor | None, Tensor]:
        """Return a tree to go on from."""
        return self.number, self.observation, self.allowed


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Remembered:
    """A bank's side of one batch: rows int64 [B] of the bank, and which images are mirrored, bool [B] or None."""

    bank: SaliencyBank
    rows: Tensor
    mirrored: Tensor | None

    def read(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the maps: a saliency source for this batch."""
        return self.bank.read(self.rows, self.mirrored)

    def update(self, maps: Tensor) -> None:
        """Write maps."""
        self.bank.update(self.rows, maps, self.mirrored)

    def watch(self, images: Tensor, plan: MixPlan) -> Tensor:
        """Return mixed images whose backward pass refreshes the bank."""
        return self.bank.watch(images, self.rows, plan, self.mirrored)


def _remembered(bank: SaliencyBank, images: Tensor, ids: Tensor | None, mirrored: Tensor | None) -> _Remembered:
    """Check the ids of a batch, and bring the bank to the images' device."""
    if ids is None:
        raise InputError(
            "the saliency bank needs to know the examples: mixer(images, labels, ids=ids), their numbers in the "
            "training set. Let the data set return its index beside image and label."
        )
    rows = bank.to(images.device).rows(ids)
    if len(rows) != len(images):
        raise InputError(f"`ids` must be [{len(images)}], one for each image, got {list(ids.shape)}.")
    check_mirrored(mirrored, len(rows))
    return _Remembered(bank, rows, mirrored)


def _clean(model: nn.Module | None, images: Tensor, labels: Tensor) -> Tensor:
    """Return what the model says of an unmixed batch, [B, H, W]."""
    if model is None:
        raise InputError("`refresh_every` needs the model: mixer(images, labels, model=model, ids=ids).")
    return input_gradient(model, images, labels)


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
