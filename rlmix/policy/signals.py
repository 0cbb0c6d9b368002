"""Training signals and the observation made of them, for one training or for N at once.

The pool that policies are trained in and the controller that deploys them call the same `signals`; every number is
computed for each row by itself, in float64, from tensors that an ordinary training loop has. Nothing here waits for
the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeAlias, final

import torch
from torch import Tensor

from rlmix.ops.calibration import expected_calibration_error, standard_deviation, temperature_scaled_nll
from rlmix.policy.codec import Catalogue

OBSERVATION = "rlmix.obs/1"
"""Name of this observation; another set of entries or transforms must have another name."""

LIMIT = 5.0
"""Entries are clipped to [-LIMIT, LIMIT]."""

ENTRIES: Mapping[str, str] = {
    "time/progress": "2 t/T - 1",
    "time/epochs": "log10(1 + T B / n) - 1",
    "time/lr": "learning rate / largest learning rate so far",
    "context/lr": "log10(learning rate) / 2 + 1",
    "context/n": "(log10 n - 3) / 1.5, n training examples",
    "context/classes": "log10 C - 1",
    "context/batch": "log2(B) / 4 - 1.5",
    "context/side": "log2(sqrt(H W)) / 2 - 2",
    "context/params": "(log10 parameters - 5) / 2",
    "loss/mean": "mean / L - 1, over the steps since the last decision",
    "loss/sd": "standard deviation / L",
    "loss/change": "2 (mean of the second half - mean of the first half) / L",
    "loss/not_finite": "share of the steps whose loss was not finite",
    "probe/nll": "NLL / L - 0.5, on unmixed training images",
    "probe/accuracy": "2 accuracy - 1",
    "probe/accuracy_change": "5 (accuracy - accuracy at the last decision)",
    "probe/entropy": "2 entropy / L - 1",
    "probe/nll_sd": "standard deviation of the NLL over images / L",
    "probe/margin_10": "10 % quantile of p(label) - largest other p",
    "probe/margin_50": "median of the same",
    "probe/margin_90": "90 % quantile of the same",
    "probe/sure_wrong": "2 share of images with largest p > 0.9 and a wrong class",
    "val/ts_nll": "temperature-scaled NLL / L - 0.5, on validation images",
    "val/accuracy": "2 accuracy - 1",
    "val/accuracy_change": "5 (accuracy - accuracy at the last decision)",
    "val/below_best": "5 (best accuracy so far - accuracy)",
    "val/ece": "5 expected calibration error",
    "val/log_temperature": "log of the fitted temperature",
    "val/accuracy_gap": "2 (probe accuracy - validation accuracy)",
    "val/nll_gap": "(probe NLL - validation NLL) / L",
    "has/model": "1 if the model was given",
    "has/val": "1 if validation images were given",
    "has/n": "1 if the number of training examples is known",
    "has/history": "1 if losses were observed since the last decision",
}
"""Entry names and what they hold, in order; L is log C. `used/METHOD` and `last/ENTRY` of the catalogue follow."""

Predictions: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
"""Logits [N, n, C] floating point, labels int64 [N, n], and which rows have them, bool [N] (None: all)."""


def names(catalogue: Catalogue) -> tuple[str, ...]:
    """Return the names of all observation entries, in order."""
    used = (f"used/{method}" for method in catalogue.methods)
    last = (f"last/{entry}" for entry in catalogue.names)
    return (*ENTRIES, *used, *last)


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Context:
    """What is known of N trainings before they begin: float64 [N] each, NaN where it is unknown.

    Attributes:
        total_steps: T, calls of the mixer in the whole training.
        num_examples: n, training examples.
        batch_size: B.
        num_classes: C.
        height: rows of pixels.
        width: columns of pixels.
        num_params: parameters of the classifier.
    """

    total_steps: Tensor
    num_examples: Tensor
    batch_size: Tensor
    num_classes: Tensor
    height: Tensor
    width: Tensor
    num_params: Tensor

    @classmethod
    def of(cls, rows: int, device: torch.device | str | None = None, /, **known: float | Tensor | None) -> Context:
        """Return the context of `rows` trainings; what is left out or None is unknown.

        Args:
            rows: N.
            device: where the tensors live; None is the CPU.
            known: attributes by name, numbers for all rows or tensors [N].
        """
        values = {field.name: known.pop(field.name, None) for field in fields(cls)}
        if known:
            raise TypeError(f"Context has no {', '.join(map(repr, known))}")
        return cls(**{name: _row_values(value, rows, device) for name, value in values.items()})


def _row_values(value: float | Tensor | None, rows: int, device: torch.device | str | None) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device or value.device, torch.float64).expand(rows)
    return torch.full((rows,), math.nan if value is None else float(value), dtype=torch.float64, device=device)


@final
@dataclass(slots=True, kw_only=True, eq=False)
class History:
    """What N trainings have shown so far, as running sums on the device; changed in place.

    Attributes:
        count: steps with a finite loss since the last decision; this and the sums are float64 [N].
        total: sum of these losses.
        squares: sum of their squares.
        late_count: those of the interval's second half alone.
        late_total: sum of these.
        broken: steps with a loss that was not finite.
        lr: last learning rate, NaN if never told.
        lr_max: largest learning rate.
        steps: steps that Decisions were recorded for.
        used: how many of them each method got, float64 [N, M].
        last: entry of the last Decision, int64 [N], -1 before the first.
        probe_accuracy: at the last decision, NaN before the first.
        val_accuracy: likewise.
        val_best: largest so far.
        shares: which share of an entry's steps each method gets, float64 [E, M].
    """

    count: Tensor
    total: Tensor
    squares: Tensor
    late_count: Tensor
    late_total: Tensor
    broken: Tensor
    lr: Tensor
    lr_max: Tensor
    steps: Tensor
    used: Tensor
    last: Tensor
    probe_accuracy: Tensor
    val_accuracy: Tensor
    val_best: Tensor
    shares: Tensor

    @classmethod
    def initial(cls, rows: int, catalogue: Catalogue, device: torch.device | str | None = None) -> History:
        """Return the history of `rows` trainings that have not begun."""
        usages = [decision.usage() for decision in catalogue.decisions]
        table = [[usage.get(method, 0.0) for method in catalogue.methods] for usage in usages]
        shares = torch.tensor(table, dtype=torch.float64).to(device or "cpu")
        values = {field.name: torch.zeros(rows, dtype=torch.float64, device=shares.device) for field in fields(cls)}
        for name in ("lr", "probe_accuracy", "val_accuracy", "val_best"):
            values[name].fill_(math.nan)
        values["used"] = shares.new_zeros(rows, len(catalogue.methods))
        values["last"] = torch.full((rows,), -1, dtype=torch.int64, device=shares.device)
        return cls(**{**values, "shares": shares})

    def state(self) -> dict[str, Tensor]:
        """Return copies of all tensors by name."""
        return {field.name: getattr(self, field.name).clone() for field in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], device: torch.device | str | None = None) -> History:
        """Return the history that `state` was taken from, on `device` (None: where the tensors are)."""
        return cls(**{name: tensor.to(device or tensor.device, copy=True) for name, tensor in state.items()})

    def select(self, rows: Tensor) -> History:
        """Return copies of some rows, int64 [M]."""
        state = {name: tensor if name == "shares" else tensor[rows] for name, tensor in self.state().items()}
        return History(**state)

    def add_loss(self, losses: Tensor, *, half: int, lr: float | Tensor | None = None) -> None:
        """Add one step's losses.

        Args:
            losses: floating point [N]; those that are not finite are counted, not summed.
            half: 0 in the first half of the interval between two decisions, 1 in the second.
            lr: the learning rate, a number or a tensor [N]; None leaves it as it was.
        """
        values = losses.detach().double()
        finite = torch.isfinite(values)
        # Not `torch.where`, which sends a number to the device and waits for it.
        values, ones = values.masked_fill(~finite, 0.0), finite.double()
        self.count += ones
        self.total += values
        self.squares += values * values
        self.broken += 1.0 - ones
        if half:
            self.late_count += ones
            self.late_total += values
        if lr is not None:
            self.set_lr(lr)

    def set_lr(self, lr: float | Tensor) -> None:
        """Note the learning rate, a number or a tensor [N]."""
        if isinstance(lr, Tensor):
            self.lr.copy_(lr.detach())
        else:
            self.lr.fill_(lr)
        self.lr_max = torch.maximum(self.lr_max, self.lr)

    def record(self, entries: Tensor, steps: int | Tensor) -> None:
        """Note the Decisions of the interval that begins, and begin its sums at 0.

        Args:
            entries: int64 [N], positions in the catalogue.
            steps: steps until the next decision, a number or a tensor [N].
        """
        taken = steps.double() if isinstance(steps, Tensor) else torch.full_like(self.steps, steps)
        self.used += self.shares[entries] * taken.unsqueeze(1)
        self.steps += taken
        self.last.copy_(entries)
        for tensor in (self.count, self.total, self.squares, self.late_count, self.late_total, self.broken):
            tensor.zero_()


def signals(
    context: Context,
    history: History,
    step: int | Tensor,
    *,
    probe: Predictions | None = None,
    val: Predictions | None = None,
    catalogue: Catalogue,
) -> Tensor:
    """Return the observations at a decision. To be called once a decision: accuracies are kept in `history`.

    A row without `probe` has no model, hence no `val` and no parameter count either.

    Args:
        context: of N trainings.
        history: of the same trainings, on the same device; its accuracies are updated.
        step: t, a number or a tensor [N].
        probe: what the classifiers say of unmixed training images; None: no row has a model.
        val: what they say of validation images; None: no row has any.
        catalogue: the one that `history` was made with.

    Returns:
        float32 [N, D] in [-5, 5], columns as `names(catalogue)`.
    """
    log_classes = context.num_classes.log()
    parts = {**_time(context, history, step), **_context(context, history), **_loss(history, log_classes)}
    nothing = torch.zeros_like(history.last, dtype=torch.bool)
    has_model = nothing if probe is None else _rows(probe, nothing)
    has_val = nothing if val is None else _rows(val, nothing) & has_model
    parts["context/params"] = parts["context/params"].masked_fill(~has_model, 0.0)
    if probe is not None:
        statistics = _Statistics.of(probe)
        found = _probe(probe, statistics, history, log_classes)
        parts.update({name: value.masked_fill(~has_model, 0.0) for name, value in found.items()})
        if val is not None:
            found = _val(val, statistics, history, log_classes, has_val)
            parts.update({name: value.masked_fill(~has_val, 0.0) for name, value in found.items()})
        history.probe_accuracy = torch.where(has_model, statistics.accuracy, history.probe_accuracy)
    parts["has/model"], parts["has/val"] = has_model, has_val
    parts["has/n"] = ~context.num_examples.isnan()
    parts["has/history"] = history.count + history.broken > 0
    zero = torch.zeros_like(history.total)
    known = torch.stack([parts[name].double() if name in parts else zero for name in ENTRIES], 1)
    entries = torch.arange(len(catalogue), device=history.last.device)
    last = history.last.unsqueeze(1) == entries
    all_entries = torch.cat([known, history.used / history.steps.unsqueeze(1), last.double()], 1)
    return all_entries.nan_to_num(nan=0.0).clamp(-LIMIT, LIMIT).float()


def _rows(predictions: Predictions, nothing: Tensor) -> Tensor:
    return ~nothing if predictions[2] is None else predictions[2]


def _time(context: Context, history: History, step: int | Tensor) -> dict[str, Tensor]:
    epochs = context.total_steps * context.batch_size / context.num_examples
    return {
        "time/progress": 2.0 * (step / context.total_steps) - 1.0,
        "time/epochs": torch.log10(1.0 + epochs) - 1.0,
        "time/lr": history.lr / history.lr_max,
    }


def _context(context: Context, history: History) -> dict[str, Tensor]:
    return {
        "context/lr": history.lr.log10() / 2.0 + 1.0,
        "context/n": (context.num_examples.log10() - 3.0) / 1.5,
        "context/classes": context.num_classes.log10() - 1.0,
        "context/batch": context.batch_size.log2() / 4.0 - 1.5,
        "context/side": (context.height * context.width).sqrt().log2() / 2.0 - 2.0,
        "context/params": (context.num_params.log10() - 5.0) / 2.0,
    }


def _loss(history: History, log_classes: Tensor) -> dict[str, Tensor]:
    """Return the loss block; 0/0 where no loss was observed gives the NaN that becomes 0."""
    mean = history.total / history.count
    # Rounding may bring the variance of equal losses below zero.
    variance = (history.squares / history.count - mean.square()).clamp_min(0.0)
    late = history.late_total / history.late_count
    early = (history.total - history.late_total) / (history.count - history.late_count)
    return {
        "loss/mean": mean / log_classes - 1.0,
        "loss/sd": variance.sqrt() / log_classes,
        "loss/change": 2.0 * (late - early) / log_classes,
        "loss/not_finite": history.broken / (history.count + history.broken),
    }


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Statistics:
    """Of logits [N, n, C]: log-probabilities [N, n, C], each image's NLL and hit [N, n], their means [N]."""

    log_probabilities: Tensor
    losses: Tensor
    hits: Tensor
    nll: Tensor
    accuracy: Tensor

    @classmethod
    def of(cls, predictions: Predictions) -> _Statistics:
        logits, labels, _ = predictions
        log_probabilities = logits.double().log_softmax(-1)
        losses = -log_probabilities.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        hits = logits.argmax(-1) == labels
        return cls(
            log_probabilities=log_probabilities,
            losses=losses,
            hits=hits,
            nll=losses.mean(-1),
            accuracy=hits.double().mean(-1),
        )


def _probe(
    predictions: Predictions, statistics: _Statistics, history: History, log_classes: Tensor
) -> dict[str, Tensor]:
    labels = predictions[1].unsqueeze(-1)
    probabilities = statistics.log_probabilities.exp()
    # 0 log 0 is 0: a log-probability of minus infinity would give NaN.
    entropy = -(probabilities * statistics.log_probabilities.clamp_min(-1e4)).sum(-1).mean(-1)
    others = probabilities.scatter(-1, labels, -1.0).amax(-1)
    margins = (probabilities.gather(-1, labels).squeeze(-1) - others.clamp_min(0.0)).sort(-1).values
    sure_wrong = (probabilities.amax(-1) > 0.9) & ~statistics.hits
    return {
        "probe/nll": statistics.nll / log_classes - 0.5,
        "probe/accuracy": 2.0 * statistics.accuracy - 1.0,
        "probe/accuracy_change": 5.0 * (statistics.accuracy - history.probe_accuracy),
        "probe/entropy": 2.0 * entropy / log_classes - 1.0,
        "probe/nll_sd": standard_deviation(statistics.losses) / log_classes,
        "probe/margin_10": _quantile(margins, 0.1),
        "probe/margin_50": _quantile(margins, 0.5),
        "probe/margin_90": _quantile(margins, 0.9),
        "probe/sure_wrong": 2.0 * sure_wrong.double().mean(-1),
    }


def _val(
    predictions: Predictions, probe: _Statistics, history: History, log_classes: Tensor, present: Tensor
) -> dict[str, Tensor]:
    """Return the validation block and keep the accuracies of the rows that have one."""
    logits, labels, _ = predictions
    statistics = _Statistics.of(predictions)
    ts_nll, log_temperature = temperature_scaled_nll(logits, labels)
    # fmax takes the number where the other is NaN: the first accuracy is the best.
    best = torch.fmax(history.val_best, statistics.accuracy)
    entries = {
        "val/ts_nll": ts_nll / log_classes - 0.5,
        "val/accuracy": 2.0 * statistics.accuracy - 1.0,
        "val/accuracy_change": 5.0 * (statistics.accuracy - history.val_accuracy),
        "val/below_best": 5.0 * (best - statistics.accuracy),
        "val/ece": 5.0 * expected_calibration_error(statistics.log_probabilities.exp(), labels),
        "val/log_temperature": log_temperature,
        "val/accuracy_gap": 2.0 * (probe.accuracy - statistics.accuracy),
        "val/nll_gap": (probe.nll - statistics.nll) / log_classes,
    }
    history.val_accuracy = torch.where(present, statistics.accuracy, history.val_accuracy)
    history.val_best = torch.where(present, best, history.val_best)
    return entries


def _quantile(ordered: Tensor, level: float) -> Tensor:
    """Return a linearly interpolated quantile of sorted rows; the level is a host number, so nothing is sent."""
    position = level * (ordered.shape[-1] - 1)
    below = math.floor(position)
    above = min(below + 1, ordered.shape[-1] - 1)
    return ordered[..., below].lerp(ordered[..., above], position - below)
