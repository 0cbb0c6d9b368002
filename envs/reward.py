"""The reward: a held-out score, relative to uniform random mixing on the same instance.

S = accuracy + 0.25 * (1 - TS-NLL / log C) on images that nothing else looks at, once, when a training ends;
Z = clip((S - S_u) / 0.05, -2, 2), with S_u the mean of two uniform-random trainings of the instance (`reference`).
TS-NLL is the negative log-likelihood at the best temperature: neither term changes with the scale of the logits.
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from rlmix.errors import EnvError
from rlmix.ops.calibration import temperature_scaled_nll
from rlmix.policy.codec import Catalogue

CALIBRATION = 0.25
SCALE = 0.05
LIMIT = 2.0


@final
class Scores(NamedTuple):
    """How good classifiers are, float64 [...] each.

    Attributes:
        score: S.
        accuracy: share of images classified correctly.
        ts_nll: negative log-likelihood at the best temperature.
    """

    score: Tensor
    accuracy: Tensor
    ts_nll: Tensor


def measure(logits: Tensor, labels: Tensor) -> Scores:
    """Return score, accuracy and calibrated likelihood.

    A classifier whose logits are not all finite counts as one that is never right and knows nothing: score 0.

    Args:
        logits: [..., n, C].
        labels: int64 [n] or [..., n].
    """
    labels = labels.expand(logits.shape[:-1])
    log_classes = math.log(logits.shape[-1])
    usable = torch.isfinite(logits).flatten(-2).all(-1)
    accuracy = (logits.argmax(-1) == labels).double().mean(-1)
    ts_nll, _ = temperature_scaled_nll(logits, labels)
    accuracy = accuracy.masked_fill(~usable, 0.0)
    ts_nll = ts_nll.masked_fill(~usable, log_classes)
    return Scores(accuracy + CALIBRATION * (1.0 - ts_nll / log_classes), accuracy, ts_nll)


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """Return S, float64 [...]; see `measure`."""
    return measure(logits, labels).score


def relative(scores: Tensor, references: Tensor) -> Tensor:
    """Return Z for scores S and references S_u, in [-LIMIT, LIMIT]."""
    return ((scores - references) / SCALE).clamp(-LIMIT, LIMIT)


def uniform_entry(catalogue: Catalogue) -> int:
    """Return the entry that is the reference: `uniform`, or else the mixture that uses the most methods.

    Raises:
        EnvError: the catalogue has no mixture.
    """
    mixtures = [entry for entry, decision in enumerate(catalogue.decisions) if decision.method == "uniform"]
    if not mixtures:
        raise EnvError(
            f"the reward compares with uniform random mixing, but the catalogue has only {', '.join(catalogue.names)}. "
            "Add a `uniform` entry, or give reward=None."
        )
    named = [entry for entry in mixtures if catalogue.names[entry] == "uniform"]
    return max(named or mixtures, key=lambda entry: len(catalogue.decisions[entry].usage()))


def clean_entry(catalogue: Catalogue) -> int:
    """Return the entry that mixes nothing.

    Raises:
        EnvError: the catalogue has none.
    """
    for entry, decision in enumerate(catalogue.decisions):
        if decision.method == "none":
            return entry
    raise EnvError(f"the catalogue has no entry `none`, only {', '.join(catalogue.names)}. Add one.")
