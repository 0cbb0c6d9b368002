"""`rlmix.apply` beside the floor, `torch.lerp(x, x[perm], mask)` with the mask at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import Candidate, Case, Goal
from rlmix import MixInputs, MixPlan, apply
from rlmix.methods.registry import get
from rlmix.ops import grid

SIZES = ((128, 32, 300), (64, 224, 30))
PLANS = {
    "mixup": "a weight for each image",
    "cutmix": "a box for each image",
    "rmix": "a 4 x 4 grid of weights for each image",
}
LIMIT = 1.15


def full_mask(plan: MixPlan) -> Tensor:
    """Return the partner's weight as lerp takes it: [B, 1, 1, 1] for one weight an image, else [B, 1, H, W]."""
    weights = plan.weights[:, 1:]
    return weights if weights.shape[-2:] == (1, 1) else grid.expand(weights, plan.size).contiguous()


def cases() -> list[Callable[[], Case]]:
    """Return what builds a case, for each size and kind of plan."""
    return [partial(_case, batch, side, rounds, method) for batch, side, rounds in SIZES for method in PLANS]


def _case(batch: int, side: int, rounds: int, method: str) -> Case:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, 3, side, side, generator=generator)
    maps = torch.rand(batch, 4, 4, generator=generator)
    chosen = get("rmix", grids=(4,)) if method == "rmix" else get(method)
    plan = chosen.draw(MixInputs(batch, side, side, saliency=maps), generator=generator)
    partners, mask = plan.partners[:, 0], full_mask(plan)

    def check() -> None:
        mixed, expected = apply(images, plan), torch.lerp(images, images[partners], mask)
        torch.testing.assert_close(mixed, expected, rtol=0.0, atol=1e-6)
        if method == "cutmix":
            assert torch.equal(mixed, expected), "a copied area must keep its bits"

    return Case(
        group="apply",
        name=f"apply, {method}, {batch}x3x{side}x{side}",
        candidates=(
            Candidate(name="torch.lerp(x, x[perm], mask)", run=lambda _: torch.lerp(images, images[partners], mask)),
            Candidate(name="rlmix.apply(x, plan)", run=lambda _: apply(images, plan)),
            Candidate(name="x.clone()", run=lambda _: images.clone()),
        ),
        rounds=rounds,
        goals=(
            Goal(
                candidate="rlmix.apply(x, plan)",
                baseline="torch.lerp(x, x[perm], mask)",
                limit=LIMIT,
                text=f"apply: at most {LIMIT} times the lerp",
            ),
        ),
        check=check,
        notes=f"The plan has {PLANS[method]}; the lerp is given its weights ready-made, outside the timed part.",
    )
