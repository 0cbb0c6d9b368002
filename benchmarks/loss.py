"""Loss on mixed labels, from the plan to the gradient, beside the loss on plain class numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import rlmix
from benchmarks.timing import Candidate, Case, Goal

PLAIN, PAIRS, SOFT, TWICE = (
    "cross-entropy on class numbers",
    "pairs and mixed_cross_entropy",
    "soft targets",
    "two losses",
)
# Batch size, classes, rounds, and how many times as long as the loss on class numbers the mixed one may take.
SIZES = ((128, 100, 400, None), (1024, 1000, 100, 1.5))
NOTES = (
    "From the labels and a CutMix plan to the gradient of the logits; the plan is drawn before. "
    f"`{SOFT}` makes targets [B, C] for PyTorch's cross-entropy, `{TWICE}` weighs PyTorch's loss for either "
    f"label. All but `{PLAIN}`, which ignores the partners, have the same value and gradient."
)


def cases() -> list[Callable[[], Case]]:
    """Return what builds a case, for each size."""
    return [partial(_case, *size) for size in SIZES]


def losses(batch: int, classes: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the candidates as functions from logits to a loss."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(classes, (batch,), generator=generator)
    plan = rlmix.methods.get("cutmix").draw(rlmix.MixInputs(batch, 32, 32), generator=generator)

    def twice(logits: Tensor) -> Tensor:
        parts = [F.cross_entropy(logits, given, reduction="none") * weight for given, weight in plan.pairs(labels)]
        return torch.stack(parts).sum(0).mean()

    return {
        PLAIN: lambda logits: F.cross_entropy(logits, labels),
        PAIRS: lambda logits: rlmix.mixed_cross_entropy(logits, plan.pairs(labels)),
        SOFT: lambda logits: F.cross_entropy(logits, plan.soft_targets(labels, classes)),
        TWICE: twice,
    }


def _case(batch: int, classes: int, rounds: int, limit: float | None) -> Case:
    values = torch.randn(batch, classes, generator=torch.Generator().manual_seed(6))
    candidates = losses(batch, classes)

    def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
        return torch.autograd.grad(loss(logits), logits)[0]

    def check() -> None:
        expected = gradient(candidates[TWICE], values.clone().requires_grad_())
        for name in (PAIRS, SOFT):
            torch.testing.assert_close(gradient(candidates[name], values.clone().requires_grad_()), expected)

    text = f"loss on mixed labels, targets included: at most {limit} times the loss on class numbers"
    return Case(
        group="loss",
        name=f"loss and gradient on mixed labels, {batch} images, {classes} classes",
        candidates=[
            Candidate(name=name, run=partial(gradient, loss), prepare=lambda: values.clone().requires_grad_())
            for name, loss in candidates.items()
        ],
        rounds=rounds,
        goals=() if limit is None else (Goal(candidate=PAIRS, baseline=PLAIN, limit=limit, text=text),),
        check=check,
        notes=NOTES,
    )
